"""Powers of two that bring float64 values to where their squares have a number: to multiply by one is exact."""

from contextlib import AbstractContextManager, nullcontext
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


def quiet(values: Array, **kinds: Any) -> AbstractContextManager[Any]:
    """NumPy's `errstate`, but for PyTorch's tensors, which need none and whose compiler cannot trace it."""
    return nullcontext() if type(values).__module__.startswith("torch") else np.errstate(**kinds)


def times_power(values: Array, exponent: Array) -> Array:
    """``values * 2^exponent``: in two steps, as the power alone may have no number."""
    xp = array_namespace(values, exponent)
    half = exponent // 2
    with quiet(values, over="ignore", under="ignore"):
        for part in (half, exponent - half):
            values = values * xp.pow(xp.full_like(part, 2, dtype=values.dtype), xp.astype(part, values.dtype))
    return values


def exponents(size: Array) -> Array:
    """The exponents of NumPy's floats, 0 where they are usual, and of infinities and NaN."""
    exponent = np.where(np.isfinite(size) & (size != 0), np.frexp(size)[1] - 1, 0)
    return np.where(np.abs(exponent) > USUAL, exponent, 0)


def unit(size: Array, least: float, xp: Any) -> Array:
    """A power of two for each cell that takes the size of its values to where squares neither overflow nor vanish.

    1 for middling sizes, and at least for that of `least`: what is added under the root must not overflow either.
    """
    size = xp.where(size > least, size, xp.full_like(size, least))
    size = xp.where(xp.isfinite(size) & (size > 0), size, xp.ones_like(size))
    scale = xp.ones_like(size)
    for exponent in (512, 256) if "64" in str(size.dtype) else (64, 32, 16):
        small, large = 2.0**-exponent, 2.0**exponent
        down, up = size >= large, size <= small
        for_all = xp.ones_like(size)
        step = xp.where(down, small * for_all, xp.where(up, large * for_all, for_all))
        size, scale = size * step, scale * step
    return scale


def exponent_of(unit: Array, xp: Any) -> Array:
    """The exponent that a unit takes off the values."""
    return xp.astype(xp.round(-xp.log2(unit)), xp.int32)
