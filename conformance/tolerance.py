"""One rule for every comparison: from the dtype's eps, the cell's count and its condition number. Nothing else is tuned.

An answer may be off by ``roundings * eps(dtype) * rounded + eps(sums) * (log2(count) + 4) * condition * summed``: some
roundings of the result itself, and what summing `count` values as a tree costs in the dtype of the sums, times the
digits that the data lose to their offset. `rounded` is the size of the result, `summed` the size of what is added up.

Ours is held to the accuracy contract: sums in float64 about a shift, so that the condition is 1 whatever the offset;
2 roundings for the output, 1 for a moment, 4 for a gradient. A peer is held to twice what its own dtype of sums
(float32 for half precision) gives when it sums well and subtracts first: condition ``1 + |x| / std``. Twice, because
the last bits of most peers depend on the processor.
"""

from math import log2
from typing import NamedTuple

import ml_dtypes
import numpy as np

from .cases import Case
from .data import DTYPES, Array, Data, parameter_dtype
from .oracle import REAL, Answer, Truth

FIELDS = Answer._fields
OURS = {"output": 2, "mean": 1, "var": 1, "dx": 4, "dweight": 4, "dbias": 4}
PEER = {"output": 4, "mean": 2, "var": 4, "dx": 8, "dweight": 4, "dbias": 4}


class Bound(NamedTuple):
    """For one field of an answer: one unit in the last place, and how far ours and a peer's may be off."""

    unit: Array
    ours: Array
    peer: Array


class Size(NamedTuple):
    """What the rule needs to know of a field."""

    rounded: Array  # what the result's dtype rounds
    summed: Array  # what is added up before
    condition: Array  # how many digits the data lose to their offset
    terms: int


def eps(dtype: np.dtype) -> float:
    """The spacing of a dtype at 1."""
    return float(ml_dtypes.finfo(dtype).eps)


def result_dtype(name: str, case: Case) -> np.dtype:
    """The dtype of a field of our answer."""
    return DTYPES[case.dtype] if name in ("output", "dx") else parameter_dtype(case.dtype)


def bounds(case: Case, data: Data, truth: Truth) -> dict[str, Bound]:
    """What may be off by how much, for every field that the oracle answers."""
    with np.errstate(all="ignore"):
        return {name: _bound(name, case, data, truth) for name in FIELDS if getattr(truth.answer, name) is not None}


def _bound(name: str, case: Case, data: Data, truth: Truth) -> Bound:
    exact = np.abs(getattr(truth.answer, name))
    size = _SIZES[name](exact, case, data, truth)
    dtype, sums = result_dtype(name, case), parameter_dtype(case.dtype)
    growth = (log2(size.terms) + 4) * size.summed
    tiny = REAL(float(ml_dtypes.finfo(dtype).smallest_subnormal))
    coarse = DTYPES[case.dtype]  # a peer in half precision may hand out moments and gradients in half precision too
    # A result that cancels to 0 is measured by what cancels; the gradients of a parameter by the largest of them.
    largest = (_most(exact) or _most(size.summed)) if name.startswith("d") else np.where(exact == 0, size.summed, 0)
    return Bound(
        unit=eps(dtype) * np.maximum(size.rounded, largest) + tiny,
        ours=OURS[name] * (eps(dtype) * size.rounded + tiny) + eps(DTYPES["float64"]) * growth,
        peer=2
        * (PEER[name] * (eps(coarse) * np.maximum(size.rounded, largest) + tiny) + eps(sums) * growth * (1 + size.condition)),
    )


def _output(exact: Array, case: Case, data: Data, truth: Truth) -> Size:
    size = np.maximum(exact, 1)
    gain = REAL(1) if data.weight is None else np.maximum(_most(data.weight), 1)
    return Size(size, size * gain, _elements(truth.offset, case), case.count)


def _mean(exact: Array, case: Case, _data: Data, truth: Truth) -> Size:
    summed = exact + (1 / truth.rstd).reshape(case.kept_shape)
    return Size(exact, summed, (truth.offset / truth.rstd).reshape(case.kept_shape) / summed, case.count)


def _var(exact: Array, case: Case, _data: Data, truth: Truth) -> Size:
    spread = (1 / truth.rstd**2).reshape(case.kept_shape)
    return Size(exact, np.maximum(exact, spread), truth.offset.reshape(case.kept_shape), case.count)


def _dx(exact: Array, case: Case, _data: Data, truth: Truth) -> Size:
    cells = exact.reshape(case.split_shape).max(case.split_reduce, keepdims=True)
    pushed = np.maximum(truth.push, truth.push * np.abs(truth.hat).max(case.split_reduce, keepdims=True)) * truth.rstd
    return Size(*(_elements(part, case) for part in (cells, pushed, truth.offset)), case.count)


def _dweight(exact: Array, _case: Case, data: Data, truth: Truth) -> Size:
    terms = max(data.x.size // max(exact.size, 1), 1)
    return Size(exact, terms * _most(data.dy) * np.maximum(_most(truth.hat), 1), _most(truth.offset), terms)


def _dbias(exact: Array, _case: Case, data: Data, _truth: Truth) -> Size:
    terms = max(data.x.size // max(exact.size, 1), 1)
    return Size(exact, terms * _most(data.dy), REAL(0), terms)


_SIZES = {"output": _output, "mean": _mean, "var": _var, "dx": _dx, "dweight": _dweight, "dbias": _dbias}


def _most(values: Array) -> Array:
    """The largest finite size."""
    sizes = np.abs(np.asarray(values, REAL))
    return sizes.max(initial=0, where=np.isfinite(sizes))


def _elements(cells: Array, case: Case) -> Array:
    """One number for each cell, broadcast to the elements of x."""
    return np.broadcast_to(cells, case.split_shape).reshape(case.shape)
