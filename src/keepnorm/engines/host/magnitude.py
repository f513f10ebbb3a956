"""float64 data whose squares float64 cannot hold: summed and normalised times a power of two for each cell, which is exact.

With ``x' = x * 2^-e`` and ``eps' = eps * 2^-2e`` the normalised values are the same, and ``dx = dx' * 2^-e``. The state that
was summed anyway tells where that is needed.
"""

from typing import Any, NamedTuple

import numpy as np

from keepnorm.axes import Axes
from keepnorm.moments import Moments
from keepnorm.powers import LEAST, MOST, USUAL, exponents, is_held

Array = np.ndarray[Any, Any]

_DOUBLE = np.dtype(np.float64)


class Scaled(NamedTuple):
    """x times a power of two for each cell, and moments of it whose variance has eps in it."""

    x: Array
    moments: Moments
    exponent: Array  # broadcasts against x in the shape of the axes


def holds(x: Array, shift: Array, m2: Array, eps: float, center: bool) -> bool:
    """Whether the states of x are all that its result needs; of infinities and zeros it may say no."""
    if x.dtype != _DOUBLE:
        return True
    if not center and not np.fmax.reduce(np.abs(shift), axis=None, initial=0.0) <= MOST**0.5:
        return False
    return is_held(shift, m2, small=eps < LEAST)


def exponents_of(x: Array, axes: Axes, where: Array | None, eps: float) -> Array | None:
    """For each cell the exponent of its largest value, 0 where that is of no unusual size; None if there is no other."""
    seen = True if where is None else np.broadcast_to(where, x.shape).reshape(axes.shape)
    size = np.abs(x.reshape(axes.shape))
    return _needed(exponents(np.max(size, axis=axes.reduce, keepdims=True, initial=0.0, where=seen)), eps)


def with_eps(x: Array, axes: Axes, moments: Moments, eps: float, exponent: Array) -> Scaled:
    """x, and moments of x times 2^-exponent, for a normalisation with eps."""
    of_cells = exponent.reshape(axes.kept_shape)
    added = np.ldexp(eps, -2 * of_cells) * (1 if moments.count is None else moments.count)
    return Scaled(scaled(x, axes, exponent), moments.replaced(m2=moments.m2 + added), exponent)


def scaled(x: Array, axes: Axes, exponent: Array) -> Array:
    """x times 2^-exponent."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(x.reshape(axes.shape), -exponent.reshape(axes.broadcast_shape)).reshape(x.shape)


def of_given(x: Array, axes: Axes, moments: Moments, eps: float) -> Scaled | None:
    """x and given moments where these have an exponent that eps leaves to them."""
    exponent = None if moments.exponent is None else _needed(moments.exponent, eps)
    if exponent is None:
        return None
    return with_eps(x, axes, moments.at(exponent), eps, exponent.reshape(axes.broadcast_shape))


def _needed(exponent: Array, eps: float) -> Array | None:
    """The exponents; where values are smaller than the root of eps, that is what counts."""
    if eps > 0.0:
        small = np.maximum(exponent, np.frexp(np.sqrt(eps))[1])
        exponent = np.where(exponent < 0, np.where(small < -USUAL, small, 0), exponent)
    return exponent if exponent.any() else None
