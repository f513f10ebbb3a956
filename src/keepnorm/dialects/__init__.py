"""Batch norms of other frameworks, read and written in their own names, shapes and meanings.

`load` takes one framework's state to a `BatchNorm`, `dump` gives a `BatchNorm` back in any framework's form; what the
frameworks mean by the same words is the table in conventions.py.
"""

from collections.abc import Mapping
from typing import Any, Never

import numpy as np

from keepnorm.axes import Keep, as_ints, normal
from keepnorm.batchnorm import BatchNorm
from keepnorm.dialects.conventions import CONVENTIONS, Convention
from keepnorm.dialects.paths import build, recognise
from keepnorm.keywords import check, described, show
from keepnorm.running import Running
from keepnorm.transfer import to_numpy

Array = Any

__all__ = ["CONVENTIONS", "Convention", "arguments", "dump", "load"]


def load(
    dialect: str,
    state: Mapping[Any, Any],
    *,
    keep: Keep | None = None,
    eps: float | None = None,
    momentum: float | str | None = None,
    count: int | None = None,
    **unknown: Never,
) -> BatchNorm:
    """The batch norm that a framework's state describes; it trains and infers as the framework's does.

    Parameters
    ----------
    dialect : {"keras", "tf_keras_fused", "torch", "flax", "flax_nnx", "haiku", "onnx", "mlx"}
    state : mapping
        The framework's own names to arrays of any library, copied: a ``state_dict()`` (torch, mlx); weights by name (keras:
        gamma, beta, moving_mean, moving_variance, of which gamma and beta may be absent); the variables
        ``{"params": ..., "batch_stats": ...}`` (flax); ``nnx.state(layer)``; ``scale``, ``offset``, ``mean_ema`` and
        ``var_ema`` (haiku); ``scale``, ``B``, ``input_mean``, ``input_var`` and the attributes ``epsilon`` and ``momentum``
        (onnx).
        Prefixes such as a layer's name may be there; one batch norm at a time.
    keep : int or tuple of int, optional
        The kept axes of the data; the dialect's own channel axis if None: 1 for torch and onnx, -1 for the others.
    eps : float, optional
        The dialect's default if None (ONNX: the attribute).
    momentum : float or "cumulative", optional
        In the dialect's meaning; its default if None. "cumulative" is PyTorch's ``momentum=None``.
    count : int, optional
        How many values a cell had in a training batch, if it is known: see `dump`.

    Returns
    -------
    BatchNorm
        With the dialect's correction and its policies for one value and for none.

    Raises
    ------
    ValueError
        If the dialect is unknown, or the state lacks a running mean or variance, holds something else, or has other shapes.
    TypeError
        If the state is no mapping.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> state = {"gamma": np.ones(2), "beta": np.zeros(2), "moving_mean": np.zeros(2), "moving_variance": np.ones(2)}
    >>> kn.dialects.load("keras", state)
    BatchNorm((2,), keep=(-1,), eps=0.001, decay=0.99, correction=0, updates=0)
    """
    check(load, unknown)
    convention = _convention(dialect)
    found = recognise(state, convention.names, dialect)
    values: dict[str, Any] = {role: None if value is None else np.array(to_numpy(value)) for role, (_, value) in found.items()}
    for role in ("mean", "var"):
        if values.get(role) is None:
            raise ValueError(f"state of {dialect} lacks {'/'.join(convention.names[role])}; got {sorted(map(str, state))}")
    keep = convention.channel if keep is None else keep
    mean = values["mean"]
    shape, ndim = _cells(mean, keep, convention, dialect)
    for role in ("weight", "bias", "mean", "var", "mean_hidden", "var_hidden"):
        got = values.get(role)
        if got is not None and got.shape != mean.shape:
            name = "/".join(convention.names[role])
            raise ValueError(f"{name} must have the shape of the running mean, {mean.shape}; got {got.shape}")
    decay = _decay(convention, dialect, values.get("momentum") if momentum is None else momentum)
    eps = float(values.get("eps", convention.eps)) if eps is None else eps
    bn = BatchNorm(
        shape,
        keep=keep,
        eps=eps,
        decay=decay,
        correction=convention.correction,
        affine=False,
        singleton=convention.singleton,
        empty=convention.empty,
        debias=convention.debias,
        dtype="float64" if mean.dtype == np.float64 else "float32",
    )
    cells = {role: None if a is None or role in _NUMBERS else a.reshape(shape) for role, a in values.items()}
    bn.weight, bn.bias = cells.get("weight"), cells.get("bias")
    updates = int(values.get("updates", 0))
    share = 1.0 if decay is not None and not convention.debias else float(updates)
    if decay is not None and convention.debias:
        share = 1.0 - decay**updates
    extra: dict[str, Any] = {role: cells[role] for role in ("mean_hidden", "var_hidden") if role in cells}
    kept = None if ndim is None or isinstance(bn.keep, str) else normal(bn.keep, ndim, "keep", mean.shape)
    bn.state = Running(cells["mean"], cells["var"], share, updates, count, kept, ndim, extra)
    bn.form = dialect, {role: path for role, (path, _) in found.items()}
    return bn


def dump(dialect: str, bn: BatchNorm, *, count: Any = None, ndim: int | None = None, **unknown: Never) -> dict[Any, Any]:
    """The state of a batch norm in a framework's own names and shapes; ``dump(d, load(d, state))`` is `state`, bit for bit.

    Parameters
    ----------
    dialect : str
        As for `load`.
    bn : BatchNorm
    count : int or array of int, optional
        How many values a cell has in a training batch. Without it the running variance is written as it stands, so that the
        other framework's inference gives the same output as this batch norm's. With it, a sample variance becomes a population
        variance or the reverse where the two differ in that: the other framework then has the number that it would have
        stored itself, and its output differs by about ``1 / (2 count)`` of its size. ``bn.state.count`` is that of the last
        batch.
    ndim : int, optional
        For haiku, whose arrays have all axes of the data: how many these are; those of the last batch if None.

    Returns
    -------
    dict
        Names to NumPy arrays, copied (and numbers for ONNX's attributes). ``arguments`` gives eps and momentum, which no other
        framework keeps in its state.

    Raises
    ------
    TypeError
        If `bn` is no BatchNorm.
    ValueError
        If the dialect is unknown, or cannot say what the batch norm is: several kept axes, or no ndim for haiku.

    Examples
    --------
    >>> import keepnorm as kn
    >>> state = kn.dialects.dump("torch", kn.BatchNorm(3, keep=1))  # load_state_dict takes torch.as_tensor of each
    >>> sorted(state)
    ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    check(dump, unknown)
    convention = _convention(dialect)
    if not isinstance(bn, BatchNorm):
        raise TypeError(f"dump takes a BatchNorm; got {type(bn).__name__}")
    if len(bn.shape) != 1 and not convention.several:
        raise ValueError(f"{dialect} keeps one axis; got a batch norm with cells of shape {bn.shape}, keep={bn.keep!r}")
    state = bn.state
    var = state.var if count is None else bn.variance(correction=convention.correction, count=count)
    values: dict[str, Any] = {"weight": bn.weight, "bias": bn.bias, "mean": state.mean, "var": var}
    values = {role: None if a is None else np.array(to_numpy(a)) for role, a in values.items()}
    if convention.affine == "always" or (convention.affine == "pair" and (bn.weight is None) != (bn.bias is None)):
        values["weight"] = np.ones_like(values["mean"]) if bn.weight is None else values["weight"]
        values["bias"] = np.zeros_like(values["mean"]) if bn.bias is None else values["bias"]
    if dialect == "haiku":
        values = _haiku(values, bn, ndim)
    else:
        values["updates"] = np.asarray(state.updates, np.int64)
    values["eps"], values["momentum"] = bn.eps, bn.decay
    same, form = bn.form if bn.form is not None else ("", {})
    if same == dialect:
        return build({path: values[role] for role, path in form.items()})
    return build({name: values[role] for role, name in convention.names.items() if values.get(role) is not None})


def arguments(dialect: str, bn: BatchNorm, **unknown: Never) -> dict[str, Any]:
    """What the framework's own constructor has to be told, in its own words: eps and momentum.

    The channel axis is that of the data there, which may have another layout. A cumulative average has no word but in
    PyTorch; momentum is then left out for the others, whose inference does not need it.

    Raises
    ------
    ValueError
        If the dialect is unknown.

    Examples
    --------
    >>> import keepnorm as kn
    >>> kn.dialects.arguments("torch", kn.BatchNorm(3, keep=1, decay=0.9))
    {'momentum': 0.1, 'eps': 1e-05}
    >>> kn.dialects.arguments("keras", kn.BatchNorm(3, keep=-1, decay=0.9))
    {'momentum': 0.9, 'epsilon': 1e-05}
    """
    check(arguments, unknown)
    convention = _convention(dialect)
    momentum = bn.decay
    if convention.momentum == "new" and bn.decay is not None:
        momentum = float(f"{1 - bn.decay:.12g}")  # 0.1, where 1 - 0.9 is 0.09999999999999998
    said = {"momentum": momentum, "eps": bn.eps}
    if momentum is None and dialect != "torch":
        del said["momentum"]
    return {convention.arguments[word]: value for word, value in said.items()}


_NUMBERS = ("updates", "var_updates", "eps", "momentum")


def _convention(dialect: str) -> Convention:
    if dialect not in CONVENTIONS:
        raise ValueError(f"dialect must be one of {', '.join(CONVENTIONS)}; got {described(dialect)}")
    return CONVENTIONS[dialect]


def _cells(mean: Array, keep: Keep, convention: Convention, dialect: str) -> tuple[tuple[int, ...], int | None]:
    """The kept shape, and how many axes the data have where the state tells (haiku's arrays have all of them)."""
    number = mean.ndim if isinstance(keep, str) else len(as_ints(keep, "keep"))
    if dialect == "haiku" and not isinstance(keep, str):
        axes = normal(as_ints(keep, "keep"), mean.ndim, "keep", mean.shape)
        if any(n != 1 for a, n in enumerate(mean.shape) if a not in axes):
            raise ValueError(f"keep={keep} does not fit haiku's arrays of shape {mean.shape}: all other axes must have size 1")
        return tuple(mean.shape[a] for a in axes), mean.ndim
    if mean.ndim != number or (mean.ndim != 1 and not convention.several):
        raise ValueError(f"{dialect} with keep={keep!r} needs a running mean with {number} axes; got shape {mean.shape}")
    return tuple(mean.shape), None


def _decay(convention: Convention, dialect: str, momentum: Any) -> float | None:
    if momentum is None:
        momentum = convention.default_momentum
    if isinstance(momentum, str):
        if momentum != "cumulative" or dialect != "torch":
            raise ValueError(f"momentum must be a number, or for torch 'cumulative'; got {described(momentum)}")
        return None
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be between 0 and 1; got {described(momentum)}")
    return float(momentum) if convention.momentum == "old" else 1.0 - float(momentum)


def _haiku(values: dict[str, Any], bn: BatchNorm, ndim: int | None) -> dict[str, Any]:
    """Haiku's arrays: in all axes of the data, with the zero-debiased average's hidden value and counter."""
    state = bn.state
    ndim = state.ndim if ndim is None else ndim
    if ndim is None or isinstance(bn.keep, str):
        raise ValueError(
            f"haiku's arrays have all axes of the data: say ndim=, with axes counted as integers; got keep={bn.keep!r}"
        )
    axes = normal(bn.keep, ndim, "keep", (1,) * ndim)
    share = to_numpy(state.share) if bn.debias else 1.0
    for role in ("mean", "var"):
        hidden = state.extra.get(f"{role}_hidden")
        values[f"{role}_hidden"] = (values[role] * share).astype(values[role].dtype) if hidden is None else hidden.copy()
    sizes = iter(bn.shape)
    full = tuple(next(sizes) if a in axes else 1 for a in range(ndim))
    values = {role: None if a is None else a.reshape(full) for role, a in values.items()}
    # A state without a debiasing counter counts as one that has forgotten its start.
    updates = state.updates if bn.debias else _FORGOTTEN
    values["updates"] = np.asarray(updates, np.int32)
    values["var_updates"] = values["updates"].copy()
    return values


_FORGOTTEN = 2**20


show(load, dump, arguments)
