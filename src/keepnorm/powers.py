"""Powers of two that bring float64 values to where their squares have a number: to multiply by one is exact."""

from typing import Any

import numpy as np
from array_api_compat import array_namespace

Array = Any

# The largest exponents of values that stay as they are.
USUAL = 400

# A sum of squares in between has lost nothing, and neither has what is made of its root. Where a value exceeds FEW, squares of
# differences are not below LEAST.
MOST, LEAST, FEW = 2.0**900, 2.0**-900, 2.0**-USUAL


def is_held(shift: Array, m2: Array, *, small: bool = True) -> bool:
    """Whether states in NumPy's float64 have lost nothing (`small`: of small values either).

    Of infinities and zeros it may say no.
    """
    if not np.fmax.reduce(m2, axis=None, initial=0.0) <= MOST:
        return False
    return not small or not np.any((m2 < LEAST) & (np.abs(shift) < FEW))


def times_power(values: Array, exponent: Array) -> Array:
    """``values * 2^exponent``: in two steps, as the power alone may have no number."""
    xp = array_namespace(values, exponent)
    half = exponent // 2
    with np.errstate(over="ignore", under="ignore"):
        for part in (half, exponent - half):
            values = values * xp.pow(xp.asarray(2.0, dtype=values.dtype), xp.astype(part, values.dtype))
    return values


def exponents(size: Array) -> Array:
    """The exponents of NumPy's floats, 0 where they are usual, and of infinities and NaN."""
    exponent = np.where(np.isfinite(size) & (size != 0), np.frexp(size)[1] - 1, 0)
    return np.where(np.abs(exponent) > USUAL, exponent, 0)
