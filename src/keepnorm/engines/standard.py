"""The standard engine: the pure array API, for every library that has it, traced, lazy or on a device.

It is the oracle's twin (two passes, in float64 wherever the library and the device have it) and the fallback of the other
engines. It never leaves the array's device and uses nothing but the library's own operations, so whatever
differentiates, compiles or vectorises those does the same to these functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device

from keepnorm.axes import Axes
from keepnorm.dispatch import dtype_name
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name

Array = Any


class _State(NamedTuple):
    """The moments of every cell with a 1 for each reduced axis, and what they were taken from."""

    count: Any
    shift: Array
    delta: Array
    m2: Array


def moments(x: Array, axes: Axes, where: Array | None) -> Moments:
    """Count, mean and variance of each kept cell."""
    wide, mask, xp = _open(x, axes, where)
    count, *state = _measure(wide, mask, axes, xp)
    if mask is not None:
        count = xp.reshape(count, axes.kept_shape)
    shift, delta, m2 = (xp.reshape(part, axes.kept_shape) for part in state)
    return Moments(count, shift, delta, m2, keep=axes.keep, ndim=len(axes.shape), dtype=moments_name(dtype_name(x.dtype)))


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: Array | None) -> Array:
    """``x * scale + shift``, in float64 and rounded once."""
    wide, _, xp = _open(x, axes, None)
    y = wide * _parameter(scale, wide, axes, xp)
    if shift is not None:
        y = y + _parameter(shift, wide, axes, xp)
    return _close(y, x, axes, out, xp)


def normalize(
    x: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    moments: Moments | None,
    where: Array | None,
    out: Array | None,
) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias``; without `center`, ``x / sqrt(mean(x^2) + eps) * weight + bias``."""
    wide, mask, xp = _open(x, axes, where)
    hat, _ = _standardize(wide, mask, axes, eps, center, moments, xp)
    return _close(_scale(hat, weight, bias, axes, xp), x, axes, out, xp)


def normalize_with_moments(
    x: Array, axes: Axes, weight: Array | None, bias: Array | None, eps: float, where: Array | None
) -> tuple[Array, Moments]:
    """The normalised array and the moments that it was normalised with."""
    seen = moments(x, axes, where)
    return normalize(x, axes, weight, bias, eps, True, seen, where, None), seen


def normalize_vjp(
    x: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    moments: Moments | None,
    where: Array | None,
) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and a function from its gradient to those of x, weight and bias."""
    wide, mask, xp = _open(x, axes, where)
    hat, rstd = _standardize(wide, mask, axes, eps, center, moments, xp)
    y = _close(_scale(hat, weight, bias, axes, xp), x, axes, None, xp)
    count = axes.count if mask is None else _count(mask, axes, xp)

    def vjp(dy: Array) -> Gradients:
        g = _widen(xp.reshape(dy, axes.shape), xp)
        others = tuple(a for a in range(len(axes.shape)) if a not in axes.affine)
        dweight = None if weight is None else _narrow(_sum(g * hat, others, xp), weight, xp)
        dbias = None if bias is None else _narrow(_sum(g, others, xp), bias, xp)
        if weight is not None:
            g = g * _parameter(weight, wide, axes, xp)
        dx = g
        if moments is None:
            # Through the mean and the variance, which every value that the mask lets in has moved.
            share = hat * _divide(_sum(g * hat, axes.reduce, xp), count, xp)
            if center:
                share = share + _divide(_sum(g, axes.reduce, xp), count, xp)
            dx = dx - (share if mask is None else xp.where(mask, share, xp.zeros_like(share)))
        return Gradients(_close(dx * rstd, x, axes, None, xp), dweight, dbias)

    return y, vjp


def _open(x: Array, axes: Axes, where: Array | None) -> tuple[Array, Array | None, Any]:
    """x in the widest dtype and in `axes.shape`, the mask likewise, and their namespace."""
    xp = array_namespace(x)
    if where is not None:
        where = _shaped(xp.broadcast_to(where, axes.source), axes.shape, xp)
    return _shaped(_widen(x, xp), axes.shape, xp), where, xp


def _close(y: Array, x: Array, axes: Axes, out: Array | None, xp: Any) -> Array:
    """y rounded to the result's dtype, in the shape of x, in `out` if that is given."""
    y = xp.astype(_shaped(y, axes.source, xp), _dtype(result_name(dtype_name(x.dtype)), x, xp))
    if out is None:
        return y
    out[...] = y
    return out


def _shaped(x: Array, shape: tuple[int, ...], xp: Any) -> Array:
    return x if tuple(x.shape) == shape else xp.reshape(x, shape)


def _dtype(name: str, x: Array, xp: Any) -> Any:
    """A dtype by name; that of x where it has that name, since bfloat16 is in no namespace of NumPy's kind."""
    if dtype_name(x.dtype) == name and getattr(x.dtype, "isnative", True):
        return x.dtype
    return getattr(xp, name)


def _widen(x: Array, xp: Any) -> Array:
    """x in float64, or in float32 where the library or the device has no wider (JAX without x64, some accelerators)."""
    return xp.astype(x, xp.float64 if _has("float64", x, xp) else xp.float32)


def _has(name: str, x: Array, xp: Any) -> bool:
    """Whether there are arrays of this dtype where x is."""
    info = getattr(xp, "__array_namespace_info__", None)
    return info is None or name in info().dtypes(device=_device(x))


def _device(x: Array) -> Any:
    found = device(x)
    # A traced JAX array has no device yet, and NumPy's is a word that its own info refuses in no version.
    return None if type(found).__module__.startswith("jax") else found


def _measure(wide: Array, mask: Array | None, axes: Axes, xp: Any) -> _State:
    """Two passes about a member of each cell: exact for a constant, and no digits lost to an offset."""
    count = axes.count if mask is None else _count(mask, axes, xp)
    shift = _member(wide, mask, axes, xp)
    if axes.count == 0:
        return _State(count, shift, shift, shift)
    off = wide - shift
    if mask is not None:
        off = xp.where(mask, off, xp.zeros_like(off))
    delta = _divide(_sum(off, axes.reduce, xp), count, xp)
    # The second pass finds what rounding left out of the first mean; an infinite mean stays, and has no variance.
    sound = xp.isfinite(delta)
    rest = off - xp.where(sound, delta, xp.zeros_like(delta))
    if mask is not None:
        rest = xp.where(mask, rest, xp.zeros_like(rest))
    left = xp.where(sound, _divide(_sum(rest, axes.reduce, xp), count, xp), xp.zeros_like(delta))
    m2 = _sum(rest * rest, axes.reduce, xp) - left * left * _real(count, left, xp)
    m2 = xp.where(sound, xp.where(m2 < 0, xp.zeros_like(m2), m2), xp.full_like(m2, xp.nan))
    # The mean itself becomes the shift, so that what the rounding of a mean in x's own precision loses stays in delta.
    mean = _constant(shift + delta)
    fits = xp.isfinite(mean)
    mean = xp.where(fits, mean, shift)
    return _State(count, mean, xp.where(fits, (shift - mean) + delta + left, delta), m2)


def _member(wide: Array, mask: Array | None, axes: Axes, xp: Any) -> Array:
    """A finite value of each cell, 0 where there is none: the smallest, which a mask finds as easily.

    It has no gradient: the mean and the variance do not depend on it.
    """
    still = _constant(wide)
    if axes.count == 0:
        return xp.zeros_like(xp.sum(still, axis=axes.reduce, keepdims=True))
    if mask is not None:
        still = xp.where(mask, still, xp.full_like(still, xp.inf))
    least = xp.min(still, axis=axes.reduce, keepdims=True) if axes.reduce else still
    return xp.where(xp.isfinite(least), least, xp.zeros_like(least))


def _constant(x: Array) -> Array:
    """x without its history, in the libraries that keep one."""
    root = type(x).__module__.partition(".")[0]
    if root in ("jax", "jaxlib"):
        from jax.lax import stop_gradient

        return stop_gradient(x)
    return x.detach() if hasattr(x, "detach") else x


def _standardize(
    wide: Array, mask: Array | None, axes: Axes, eps: float, center: bool, moments: Moments | None, xp: Any
) -> tuple[Array, Array]:
    """x less its mean and divided by its deviation, and the reciprocal of that deviation."""
    shift, delta, var = _spread(wide, mask, axes, center, moments, xp)
    rstd = 1 / xp.sqrt(var + eps)
    return ((wide - shift - delta) if center else wide) * rstd, rstd


def _spread(
    wide: Array, mask: Array | None, axes: Axes, center: bool, moments: Moments | None, xp: Any
) -> tuple[Array, Array, Array]:
    """The mean in two parts, and what is under the root: the variance, or without `center` the mean square."""
    if moments is not None:
        var = variance(moments)
        if not center:
            var = var + (moments.shift + moments.delta) ** 2
        parts = (moments.shift, moments.delta, var)
        shift, delta, var = (_cells(_own(part, wide, xp), axes, xp) for part in parts)
        return shift, delta, var
    if center:
        state = _measure(wide, mask, axes, xp)
        return state.shift, state.delta, _divide(state.m2, state.count, xp)
    square = wide * wide
    if mask is not None:
        square = xp.where(mask, square, xp.zeros_like(square))
    count = axes.count if mask is None else _count(mask, axes, xp)
    none = xp.zeros_like(_sum(square, axes.reduce, xp))
    return none, none, _divide(_sum(square, axes.reduce, xp), count, xp)


def variance(state: Moments) -> Array:
    """The population variance of a state, in its own precision."""
    if state.count is None:
        return state.squares
    return _divide(state.squares, state.count, array_namespace(state.m2))


def _own(values: Array, wide: Array, xp: Any) -> Array:
    """Values of the library of `wide`, or NumPy's (a state, a parameter), as its library's array of its dtype."""
    if type(values).__module__ == "numpy" and type(wide).__module__ != "numpy":
        return xp.asarray(values, dtype=wide.dtype, device=_device(wide))
    return xp.astype(values, wide.dtype)


def _cells(values: Array, axes: Axes, xp: Any) -> Array:
    """An array of the kept shape, with a 1 for each reduced axis."""
    return xp.reshape(values, axes.broadcast_shape)


def _parameter(values: Array, wide: Array, axes: Axes, xp: Any) -> Array:
    """A weight or a bias in the widest dtype, with a 1 for each axis that is not affine."""
    return xp.reshape(_own(values, wide, xp), axes.affine_broadcast_shape)


def _scale(hat: Array, weight: Array | None, bias: Array | None, axes: Axes, xp: Any) -> Array:
    y = hat
    if weight is not None:
        y = y * _parameter(weight, hat, axes, xp)
    if bias is not None:
        y = y + _parameter(bias, hat, axes, xp)
    return y


def _narrow(gradient: Array, like: Array, xp: Any) -> Array:
    """A gradient in the shape of a parameter, and in its dtype if that is floating."""
    gradient = xp.reshape(gradient, tuple(like.shape))
    return xp.astype(gradient, _dtype(result_name(dtype_name(like.dtype)), like, xp))


def _count(mask: Array, axes: Axes, xp: Any) -> Array:
    whole = xp.astype(mask, xp.int64 if _has("int64", mask, xp) else xp.int32)
    return _sum(whole, axes.reduce, xp)


def _sum(x: Array, over: tuple[int, ...], xp: Any) -> Array:
    """The sum over some axes, which stay with size 1; no axes, no sum (libraries disagree on ``axis=()``)."""
    return xp.sum(x, axis=over, keepdims=True) if over else x


def _real(count: Any, like: Array, xp: Any) -> Any:
    return float(count) if isinstance(count, int) else xp.astype(count, like.dtype)


def _divide(total: Array, count: Any, xp: Any) -> Array:
    """total / count, and NaN where nothing was counted."""
    if isinstance(count, int):
        return total / count if count else xp.full_like(total, xp.nan)
    divisor = _real(count, total, xp)
    none = divisor == 0
    return xp.where(none, xp.full_like(total, xp.nan), total / xp.where(none, xp.ones_like(divisor), divisor))
