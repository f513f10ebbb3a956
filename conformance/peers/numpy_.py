"""NumPy: np.mean and np.var over the complement of keep, and the formula as one writes it, all in the dtype of x."""

import numpy as np

from ..cases import Case
from ..data import Array, Data
from ..oracle import Answer
from . import Limit, training_step

VERSIONS = ("numpy",)
LIMITS = (
    Limit("NumPy has no gradients", lambda c: c.mode == "backward"),
    Limit("NumPy has no running moments", training_step),
)


def answer(case: Case, data: Data) -> Answer:
    """NumPy's answer."""
    x, axis = data.x.reshape(case.split_shape), case.split_reduce
    if case.mode == "inference":
        mean, var = (given.reshape(_sizes(case, case.split_keep)) for given in (data.mean, data.var))
        return Answer(_formula(case, data, x, mean, var))
    where = True if data.where is None else data.where
    with np.errstate(all="ignore"):
        mean = np.mean(x, axis=axis, keepdims=True, where=where)
        var = np.var(x, axis=axis, keepdims=True, where=where)
        if case.operation == "rms":
            return Answer(_formula(case, data, x, x.dtype.type(0), np.mean(x * x, axis=axis, keepdims=True)))
        y = _formula(case, data, x, mean, var)
    return Answer(y, mean.reshape(case.kept_shape), var.reshape(case.kept_shape))


def _formula(case: Case, data: Data, x: Array, mean: Array, var: Array) -> Array:
    w, b = (None if p is None else p.reshape(_sizes(case, case.split_affine)) for p in (data.weight, data.bias))
    with np.errstate(all="ignore"):
        y = (x - mean) / np.sqrt(var + case.eps)
        y = y if w is None else y * w
        y = y if b is None else y + b
    return y.reshape(case.shape).astype(data.x.dtype)


def _sizes(case: Case, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if a in axes else 1 for a, n in enumerate(case.split_shape))
