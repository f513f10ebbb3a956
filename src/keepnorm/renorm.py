"""Batch renormalisation: a training step that sees nearly what inference will see, for small or dependent batches."""

from collections.abc import Callable
from typing import Any, ClassVar, Never

import numpy as np
from array_api_compat import array_namespace

from keepnorm import validate
from keepnorm.axes import Keep
from keepnorm.batchnorm import BatchNorm
from keepnorm.engines.cells import variance
from keepnorm.engines.dispatch import eager
from keepnorm.functional import moments as moments_of
from keepnorm.functional import normalize, normalize_vjp
from keepnorm.gradients import Gradients
from keepnorm.keywords import REQUIRED, check, described, show
from keepnorm.moments import Moments
from keepnorm.running import Rule
from keepnorm.transfer import fixed, like

Array = Any


class BatchRenorm(BatchNorm):
    """Batch renormalisation.

    Training: ``y = ((x - mean) / std * r + d) * weight + bias`` with the mean and ``std = sqrt(var + eps)`` of the batch,
    ``r = clip(std / running std, 1 / r_max, r_max)`` and ``d = clip((mean - running mean) / running std, -d_max, d_max)``,
    through which no gradient flows. Where neither is clipped, y is what inference gives. The running standard deviation is
    averaged, not the variance. Inference is that of `BatchNorm`.

    Parameters
    ----------
    shape, keep
        As for `BatchNorm`.
    r_max : float, default 3
        At least 1; ``r_max=1, d_max=0`` is batch norm. The paper starts there and raises both over the first thousands of
        steps: both are attributes, to be set at any time.
    d_max : float, default 5
        At least 0.
    correction : {0, 1}, default 0
        As for `BatchNorm`; the paper's standard deviations are the population's.
    **options
        Further arguments of `BatchNorm`.

    Raises
    ------
    TypeError, ValueError
        As `BatchNorm`; ValueError if `r_max` or `d_max` is too small.

    References
    ----------
    .. [1] S. Ioffe, "Batch renormalization", 2017, https://arxiv.org/abs/1702.03275

    Examples
    --------
    >>> import numpy as np
    >>> from keepnorm.renorm import BatchRenorm
    >>> bn = BatchRenorm(1, keep=-1)
    >>> bn(np.array([[1.0], [3.0]]), training=True).round(3)  # the running mean is 0, the running deviation 1
    array([[1.],
           [3.]])
    """

    _PLAIN: ClassVar[tuple[str, ...]] = (*BatchNorm._PLAIN, "r_max", "d_max")

    def __init__(self, shape: Any, *, keep: Keep = REQUIRED, r_max: float = 3.0, d_max: float = 5.0, **options: Any) -> None:
        super().__init__(shape, keep=keep, **{"correction": 0, **options})
        if not r_max >= 1:
            raise ValueError(f"r_max must be at least 1; got {described(r_max)}")
        if not d_max >= 0:
            raise ValueError(f"d_max must be at least 0; got {described(d_max)}")
        self.r_max = r_max
        self.d_max = d_max

    @eager
    def __call__(
        self,
        x: Array,
        /,
        *,
        training: bool = REQUIRED,
        where: Array | None = None,
        moments: Moments | None = None,
        **unknown: Never,
    ) -> Array:
        """Normalise x, as `BatchNorm` does; in training with r and d."""
        if unknown:
            check(type(self).__call__, unknown)
        _, axes = self._call(x)
        if training is not True or axes.count == 0:
            return super().__call__(x, training=training, where=where, moments=moments)
        if moments is None:
            batch = moments_of(x, self.keep, where=where, **self.sizes)
        elif where is None:
            batch = moments
        else:
            raise ValueError("moments= are of the values that count already; got where= as well")
        self._accept(batch)
        weight, bias, _, _ = self._corrected(batch, x)
        y = normalize(x, self.keep, weight, bias, eps=self.eps, moments=batch, **self.sizes)
        self._advance(batch, axes.count if moments is None else None)
        return y

    @eager
    def vjp(
        self, x: Array, /, *, training: bool | None = None, where: Array | None = None, **unknown: Never
    ) -> tuple[Array, Callable[[Array], Gradients]]:
        """The output and its vector-Jacobian product, as `BatchNorm.vjp`; r and d are constants of it."""
        if unknown:
            check(type(self).vjp, unknown)
        _, axes = self._call(x)
        if training is False or axes.count == 0:
            return super().vjp(x, training=training, where=where)
        batch = moments_of(x, self.keep, where=where, **self.sizes)
        self._accept(batch)
        weight, bias, r, d = self._corrected(batch, x)
        y, pull = normalize_vjp(x, self.keep, weight, bias, eps=self.eps, where=where, **self.sizes)
        if training:
            self._advance(batch, axes.count)

        @eager
        def vjp(dy: Array) -> Gradients:
            got = pull(dy)
            # y = (hat r + d) weight + bias, and `pull` knows weight r and weight d + bias, in the precision of r.
            dweight = None if self.weight is None else self._narrow(got.weight * r + got.bias * d)
            return Gradients(got.x, dweight, None if self.bias is None else self._narrow(got.bias))

        return y, vjp

    def _corrected(self, batch: Moments, x: Array) -> tuple[Array, Array, Array, Array]:
        """The weight and the bias with r and d in them, and r and d, in the precision of the moments, where x is."""
        state, xp = self.state, array_namespace(batch.m2)
        mean = fixed(batch.shift + batch.delta)
        std = xp.sqrt(variance(batch) + self.eps)
        old_var = validate.rooted(state.var, self.eps, "running var")
        old_mean, old_var = (xp.astype(like(a, mean), mean.dtype) for a in (state.mean, old_var))
        old_std = xp.sqrt(old_var + self.eps)
        r = _clip(_ratio(fixed(std), old_std, 1.0, xp), 1 / self.r_max, self.r_max, xp)
        d = _clip(_ratio(mean - old_mean, old_std, 0.0, xp), -self.d_max, self.d_max, xp)
        weight, bias = like(self.weight, x), like(self.bias, x)
        r, d = like(r, x), like(d, x)
        scale = r if weight is None else r * weight
        shift = d if weight is None else d * weight
        return scale, shift if bias is None else shift + bias, r, d

    def _narrow(self, gradient: Array) -> Array:
        """A gradient in the dtype of the batch norm."""
        xp = array_namespace(gradient)
        return xp.astype(gradient, getattr(xp, self.dtype))

    def _rule(self) -> Rule:
        return super()._rule()._replace(blend=self._blend)

    def _blend(self, stays: Any, old: Array, comes: Any, new: Array) -> Array:
        """The variance whose standard deviation is the average of the two."""
        xp = array_namespace(new)
        std = stays * xp.sqrt(old + self.eps) + comes * xp.sqrt(new + self.eps)
        var = std * std - self.eps
        return xp.where(var > 0, var, xp.zeros_like(var))


def _ratio(above: Array, below: Array, neutral: float, xp: Any) -> Array:
    """above / below; neutral where both are 0, as with eps = 0 for constants."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return xp.where((above == 0) & (below == 0), xp.full_like(above, neutral), above / below)


def _clip(values: Array, least: float, most: float, xp: Any) -> Array:
    values = xp.where(values < least, xp.full_like(values, least), values)
    return xp.where(values > most, xp.full_like(values, most), values)


show(BatchRenorm)
