"""The shift K of a block: what is subtracted from a cell's values before they are summed and squared in float64.

float64 has digits enough for the squares of narrower floats as they are, unless these lie far from 0 beside their spread.
So their K is 0, and nothing needs to be subtracted, where the first values of the block already differ as much as they lie
away from 0; else it is the first value, as for every other dtype. The sums themselves then tell whether K was far from the
mean: if it was, the block is swept again about its mean. All of it is a matter of the cell's own values.
"""

import numpy as np
from numba import types

from keepnorm.kernels.columns import DELTA, K
from keepnorm.kernels.cpu.integers import least, whole_range
from keepnorm.kernels.cpu.scalars import difference
from keepnorm.kernels.cpu.simd import WIDTH, all_near, is_narrow_float, load
from keepnorm.kernels.jit.compile import exact, variant

# A reduction whose q = sum (x - K)^2 exceeds this multiple of M2 had a K too far away and is swept again about its mean. Of
# values of 64 bits no digit may be lost; of narrower ones seven bits of float64 may, those of a mean 11 deviations from K.
FAR = 3.0
FAR_OF_NARROW = 2.0**7

_WHOLE = types.int64, types.uint64
_WIDE = types.float64, *_WHOLE


def anchor(value):
    """The value as the shift K of its block: as float64 (64-bit integers with the last bits cleared), 0 if not finite."""


@variant(anchor)
def _anchor(value):
    if value is types.int64:
        return lambda value: (
            np.float64(value & np.int64(-2048)) if abs(value) >= 2**53 or value == -(2**63) else np.float64(value)
        )
    if value is types.uint64:
        return lambda value: np.float64(value & np.uint64(2**64 - 2048)) if value >= np.uint64(2**53) else np.float64(value)

    def finite(value):
        k = difference(value, 0.0)
        return k if -np.inf < k < np.inf else 0.0

    return finite


def first_shift(x, start, step, n):
    """The K of a block of a cell whose first n values are x[start], x[start + step] and so on."""


@variant(first_shift)
def _first_shift(x, start, step, n):
    if not is_narrow_float(x.dtype):
        return lambda x, start, step, n: anchor(x[start])  # noqa: ARG005

    def of_eight(x, start, step, n):
        k = anchor(x[start])
        if step == 1 and n >= WIDTH:
            return k if all_near(load(x, start, 0), k) else 0.0
        for i in range(1, least(n, WIDTH)):
            if not 2.0 * abs(difference(x[start + i * step], k)) < abs(k):
                return 0.0
        return k

    return of_eight


def is_outlier(x, q, m2):
    """Whether q = sum (x - K)^2 tells that K lies too far from the others."""


@variant(is_outlier)
def _is_outlier(x, q, m2):
    far = FAR if x.dtype in _WIDE else FAR_OF_NARROW
    return lambda x, q, m2: q > far * m2 and q < np.inf  # noqa: ARG005


def next_shift(x, part, k, far):
    """The mean of cell k as the shift of a second sweep if the old one is `far`; the old shift else, or if that is not finite.

    It is called for every cell, and chooses inside: LLVM makes one load of a choice between a call's result and an element of
    an array, and where it then turns the loop into vectors, every lane gets the last lane's result. The shift of integers of
    64 bits is one of them.
    """


@variant(next_shift)
def _next_shift(x, part, k, far):
    if x.dtype not in _WHOLE:
        return lambda x, part, k, far: _next_mean(part, k, far)  # noqa: ARG005
    low, high = whole_range(x.dtype)
    return lambda x, part, k, far: _next_whole(part, k, far, low, high)  # noqa: ARG005


@exact
def _next_mean(part, k, far):
    """Exact, because a sum that may be reordered is no NaN once it is subtracted from itself, which is what isfinite does."""
    shift = part[K, k]
    mean = shift + part[DELTA, k]
    return mean if far and -np.inf < mean < np.inf else shift


@exact
def _next_whole(part, k, far, low, high):
    shift = part[K, k]
    mean = np.trunc(shift + part[DELTA, k])
    within = low if mean < low else high if mean > high else mean
    return within if far else shift
