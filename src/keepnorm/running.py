"""The update of running moments: frameworks differ in three numbers of one formula, and in what they do without values.

With R the share that the running value has gathered so far, all of them are
``R' = a R + b`` and ``running' = (a R running + b batch) / R'``.
An exponential average has ``a = decay, b = 1 - decay`` and starts from R = 1 (its initial value counts as data) or,
zero-debiased, from R = 0; a cumulative average has ``a = b = 1`` and starts from R = 0.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from array_api_compat import array_namespace, is_lazy_array

from keepnorm.moments import Moments
from keepnorm.states.state import narrowed
from keepnorm.transfer import is_passing, lasting, like

Array = Any

SINGLETON = ("error", "zero")
EMPTY = ("error", "skip", "nan")


class Running(NamedTuple):
    """What a batch norm remembers between batches; replaced as a whole, so that every thread sees parts that belong together.

    Attributes
    ----------
    mean, var : array of the kept shape
        The running mean, and the running variance as it stands: of the correction that its batch norm has. In the dtype of
        the batch norm; in float64 where float32 cannot hold them, such as the variance of data of 1e30.
    share : float or array
        How much the running value has gathered: 1 for an exponential average, the number of batches for a cumulative one.
    updates : int
        How many training batches were seen (``num_batches_tracked`` in PyTorch).
    count : int or array of int, or None
        How many values a cell had in the last batch, which is what takes a sample variance to a population variance.
    keep, ndim : tuple of int and int, or None
        The kept axes of the last batch, and how many axes it had.
    extra : mapping
        What a dialect stores besides, until the next update.
    """

    mean: Array
    var: Array
    share: Any
    updates: int = 0
    count: Any = None
    keep: tuple[int, ...] | None = None
    ndim: int | None = None
    extra: Mapping[str, Any] = {}


class Rule(NamedTuple):
    """How a batch changes the running moments; the words are those of `BatchNorm`."""

    decay: float | None
    correction: int
    empty: str
    dtype: str
    # blend(stays, old, comes, new) is the new running variance; None: the average of the variances.
    blend: Callable[[Any, Array, Any, Array], Array] | None = None


def allow(count: Any, singleton: str, empty: str) -> None:
    """Refuse a batch with too few values, where the policy says so.

    Raises
    ------
    ValueError
        If a cell has one value and `singleton` is "error", or none and `empty` is "error".
    """
    if singleton == "error" and _any(count == 1):
        raise ValueError(
            "training needs more than one value per cell, as the output would be the bias whatever x is; got a cell with a "
            "count of 1 (singleton='zero' takes a variance of 0, as Keras and Flax do)"
        )
    if empty == "error" and _any(count == 0):
        raise ValueError("training needs values; got a cell with a count of 0 (empty='skip' and empty='nan' take it)")


def advance(old: Running, batch: Moments, rule: Rule, total: int | None = None) -> Running:
    """The running moments after one batch, computed in the precision of the batch's state.

    `total` is the count that a cell would have without its mask: a cumulative average weights a masked batch by
    count / total.
    """
    if isinstance(batch.count, int) and batch.count == 0:
        return advance_empty(old, rule, batch.keep, batch.ndim)
    xp = array_namespace(batch.m2)
    mean = lasting(batch.shift + batch.delta)
    var = lasting(batch.spread_over(_divisor(batch.count, rule.correction, mean, xp)))
    old_mean, old_var = (xp.astype(like(values, mean), mean.dtype) for values in (old.mean, old.var))
    a: Any = 1.0 if rule.decay is None else rule.decay
    b: Any = 1.0 if rule.decay is None else 1.0 - rule.decay
    if not isinstance(batch.count, int):
        # Cell by cell: a mask may have left some of them empty.
        count = xp.astype(batch.count, mean.dtype)
        seen, ones = count > 0, xp.ones_like(mean)
        if rule.decay is None:
            b = count / (total or xp.where(seen, xp.max(count), ones))
        if rule.empty == "nan":
            nothing = xp.full_like(mean, xp.nan)
            mean, var = xp.where(seen, mean, nothing), xp.where(seen, var, nothing)
            b = xp.where(seen, b * ones, ones)
        else:
            mean, var = xp.where(seen, mean, old_mean), xp.where(seen, var, old_var)
            a, b = xp.where(seen, a * ones, ones), xp.where(seen, b * ones, 0 * ones)
    share = old.share if isinstance(old.share, float) else xp.astype(like(old.share, mean), mean.dtype)
    gathered = a * share + b
    # A cell that has gathered nothing yet keeps its initial value.
    divisor = gathered if isinstance(gathered, float) else xp.where(gathered > 0, gathered, xp.ones_like(gathered))
    stays, comes = a * share / divisor, b / divisor
    if not isinstance(gathered, float):
        stays = xp.where(gathered > 0, stays, xp.ones_like(stays))
    mean = stays * old_mean + comes * mean
    var = stays * old_var + comes * var if rule.blend is None else rule.blend(stays, old_var, comes, var)
    return Running(
        narrowed(mean, rule.dtype),
        narrowed(var, rule.dtype),
        gathered,
        old.updates + 1,
        batch.count if isinstance(batch.count, int) else lasting(batch.count),
        batch.keep,
        batch.ndim,
    )


def advance_empty(old: Running, rule: Rule, keep: tuple[int, ...], ndim: int) -> Running:
    """After a batch without a value: counted, and otherwise as the policy says."""
    mean, var = old.mean, old.var
    if rule.empty == "nan":
        mean, var = mean * float("nan"), var * float("nan")
    return old._replace(mean=mean, var=var, updates=old.updates + 1, keep=keep, ndim=ndim, extra={})


def _divisor(count: Any, correction: int, mean: Array, xp: Any) -> Any:
    """The divisor of a batch's M2; at least 1, so that the variance of one value is 0 with either correction."""
    if isinstance(count, int):
        return max(count - correction, 1)
    free = xp.astype(count, mean.dtype) - correction
    return xp.where(free >= 1, free, xp.ones_like(free))


def _any(truth: Any) -> bool:
    """Whether any cell is; a count that is lazy or traced is not known yet, and passes."""
    if not hasattr(truth, "dtype"):
        return bool(truth)
    return not (is_lazy_array(truth) or is_passing(truth)) and bool(array_namespace(truth).any(truth))
