"""The standard engine: the pure array API, for every library that has it, traced, lazy or on a device.

It is the oracle's twin (two passes, in float64 wherever the library and the device have it) and the fallback of the other
engines. It never leaves the array's device and uses nothing but the library's own operations, so whatever
differentiates, compiles or vectorises those does the same to these functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from keepnorm import powers
from keepnorm.axes import Axes
from keepnorm.engines import cells
from keepnorm.engines.dispatch import dtype_name
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name
from keepnorm.request import Request

Array = Any


class _State(NamedTuple):
    """The moments of every cell of ``x * unit``, with a 1 for each reduced axis; unit is None where it is 1 everywhere."""

    count: Any
    unit: Array | None
    shift: Array
    delta: Array
    m2: Array


class _Step(NamedTuple):
    """What normalises: ``hat = (x * unit - shift - delta) * rstd``; rstd * unit is the reciprocal of the deviation."""

    unit: Array | None
    shift: Array | None
    delta: Array | None
    rstd: Array


class _Values(NamedTuple):
    """x in the widest dtype; of 64-bit integers the lowest bits are in `low`, which is None for all others."""

    wide: Array
    low: Array | None


# The lowest bits of a 64-bit integer, so many that float64 holds the others.
_LOW = 2**20 - 1


def moments(x: Array, axes: Axes, where: Array | None = None) -> Moments:
    """Count, mean and variance of each kept cell."""
    values, mask, xp = _open(x, axes, where)
    return _handed_out(_measure(values, mask, axes, 0.0, _ranges(x, values.wide), xp), x, axes, xp)


def omitting_moments(x: Array, axes: Axes) -> Moments:
    """The moments of the values that are no NaN."""
    return moments(x, axes, x == x)


def weighted_moments(x: Array, axes: Axes, weights: Array) -> Moments:
    """Count, mean and variance of values that count as often as their weights say."""
    values, _, xp = _open(x, axes, None)
    weights = _weights(weights, values.wide, axes, xp)
    seen = weights > 0
    state = _measure(values, seen, axes, 0.0, _ranges(x, values.wide), xp, weights)
    whole = xp.reshape(cells.total(weights, axes.reduce, xp), axes.kept_shape)
    return _handed_out(state, x, axes, xp).replaced(sum_weights=whole)


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: Array | None = None) -> Array:
    """``x * scale + shift``, in float64 and rounded once."""
    (wide, _), _, xp = _open(x, axes, None)
    y = wide * _parameter(scale, wide, axes, xp)
    if shift is not None:
        y = y + _parameter(shift, wide, axes, xp)
    return _close(y, x, axes, out, xp)


def normalize(x: Array, request: Request, out: Array | None) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias``; without `center`, ``x / sqrt(mean(x^2) + eps) * weight + bias``."""
    axes, weight, bias, *_ = request
    values, mask, xp = _open(x, axes, request.where)
    step = _step(x, values, mask, request, xp)
    return _close(_apply(step, values, mask, weight, bias, axes, xp), x, axes, out, xp)


def denormalize(y: Array, request: Request) -> Array:
    """``(y - bias) / weight * sqrt(var + eps) + mean``, in the widest dtype and rounded once."""
    axes, weight, bias, eps, _, moments, _ = request
    values, _, xp = _open(y, axes, None)
    wide = values.wide if values.low is None else values.wide + values.low
    assert moments is not None
    if bias is not None:
        wide = wide - _parameter(bias, wide, axes, xp)
    if weight is not None:
        wide = wide / _parameter(weight, wide, axes, xp)
    root, shift, delta = (_own(part, wide, axes, xp) for part in (moments.root(eps), moments.shift, moments.delta))
    return _close(wide * root + delta + shift, y, axes, None, xp)


def normalize_with_moments(x: Array, request: Request) -> tuple[Array, Moments]:
    """The normalised array and the moments that it was normalised with."""
    axes, weight, bias, eps, *_ = request
    values, mask, xp = _open(x, axes, request.where)
    state = _measure(values, mask, axes, eps, _ranges(x, values.wide), xp)
    y = _apply(_own_step(state, eps, xp), values, mask, weight, bias, axes, xp)
    return _close(y, x, axes, None, xp), _handed_out(state, x, axes, xp)


def normalize_vjp(
    x: Array, request: Request, add: Callable[[Array], Array] | None = None, weights: Array | None = None
) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and a function from its gradient to those of x, weight and bias.

    With `add`, x is a part of what the given moments are of: the gradient flows through them, and `add` takes the sums of
    g and of g * hat of each cell, of shape ``(2, *kept shape)``, to those of all parts. With `weights`, the given moments are
    those of x with these weights.
    """
    axes, weight, bias, _, center, moments, where = request
    values, mask, xp = _open(x, axes, where)
    wide = values.wide
    step = _step(x, values, mask, request, xp)
    y = _close(_apply(step, values, mask, weight, bias, axes, xp), x, axes, None, xp)
    count: Any = None
    bad = cells.left_out(wide, mask, xp)
    if weights is not None:
        weights = _weights(weights, wide, axes, xp)
        count = cells.total(weights, axes.reduce, xp)
        bad = cells.left_out(wide, weights > 0, xp)
    elif moments is None:
        count = cells.number(mask, axes, xp)
    elif add:
        count = _own(moments.count, wide, axes, xp)
    hat = _hat(step, _without(values, bad, xp), xp)
    if bad is not None:
        hat = xp.where(bad, xp.zeros_like(hat), hat)

    def sums_of(g: Array) -> tuple[Array, Array]:
        plain = g if bad is None else xp.where(bad, xp.zeros_like(g), g)
        own = cells.total(plain, axes.reduce, xp), cells.total(plain * hat, axes.reduce, xp)
        if add is None:
            return own
        of_all = add(xp.stack([xp.reshape(part, axes.kept_shape) for part in own]))
        return xp.reshape(of_all[0, ...], axes.broadcast_shape), xp.reshape(of_all[1, ...], axes.broadcast_shape)

    def vjp(dy: Array) -> Gradients:
        g = _widen(xp.reshape(dy, axes.shape), xp)
        others = tuple(a for a in range(len(axes.shape)) if a not in axes.affine)
        dweight = None if weight is None else _narrow(cells.total(g * hat, others, xp), weight, xp)
        heard = g if bad is None else xp.where(bad, xp.zeros_like(g), g)
        dbias = None if bias is None else _narrow(cells.total(heard, others, xp), bias, xp)
        if weight is not None:
            g = g * _parameter(weight, wide, axes, xp)
        dx = g
        if count is not None:
            # Through the mean and the variance, which every value that the mask lets in has moved.
            first, second = (cells.divide(part, count, xp) for part in sums_of(g))
            second = xp.where(step.rstd == 0, xp.zeros_like(second), second)  # of infinities: the finite values are 0
            share = hat * second
            if center:
                share = share + first
            if weights is not None:
                share = share * weights
            dx = dx - (share if mask is None else xp.where(mask, share, xp.zeros_like(share)))
        dx = dx * step.rstd
        return Gradients(_close(dx if step.unit is None else dx * step.unit, x, axes, None, xp), dweight, dbias)

    return y, vjp


def _open(x: Array, axes: Axes, where: Array | None) -> tuple[_Values, Array | None, Any]:
    """x in the widest dtype and in `axes.shape`, the mask likewise, and their namespace."""
    xp = array_namespace(x)
    if where is not None:
        where = _shaped(xp.broadcast_to(where, axes.source), axes.shape, xp)
    low = None
    if dtype_name(x.dtype) in ("int64", "uint64") and cells.has("float64", x, xp):
        low = x & _LOW  # float64 holds what is left of x, a multiple of 2^20, and this
        x = x - low
        low = _shaped(_widen(low, xp), axes.shape, xp)
    return _Values(_shaped(_widen(x, xp), axes.shape, xp), low), where, xp


def _less(values: _Values, shift: Array) -> Array:
    """x less a number of each cell near it, with what float64 has lost of x."""
    wide, low = values
    return wide - shift if low is None else (wide - shift) + low


def _without(values: _Values, bad: Array | None, xp: Any) -> _Values:
    """x with 0 in place of what is left out and no number, which integers never have."""
    return values if bad is None else values._replace(wide=xp.where(bad, xp.zeros_like(values.wide), values.wide))


def _close(y: Array, x: Array, axes: Axes, out: Array | None, xp: Any) -> Array:
    """y rounded to the result's dtype, in the shape of x, in `out` if that is given."""
    y = xp.astype(_shaped(y, axes.source, xp), _dtype(result_name(dtype_name(x.dtype)), x, xp))
    if out is None:
        return y
    out[...] = y
    return out


def _weights(weights: Array, wide: Array, axes: Axes, xp: Any) -> Array:
    """Weights in the widest dtype and in `axes.shape`, without a history: they are the caller's."""
    whole = xp.broadcast_to(_converted(weights, wide, xp), axes.source)
    return cells.constant(_shaped(whole, axes.shape, xp))


def _shaped(x: Array, shape: tuple[int, ...], xp: Any) -> Array:
    return x if tuple(x.shape) == shape else xp.reshape(x, shape)


def _dtype(name: str, x: Array, xp: Any) -> Any:
    """A dtype by name; that of x where it has that name, since bfloat16 is in no namespace of NumPy's kind."""
    if dtype_name(x.dtype) == name and getattr(x.dtype, "isnative", True):
        return x.dtype
    return getattr(xp, name)


def _widen(x: Array, xp: Any) -> Array:
    """x in float64, or in float32 where the library or the device has no wider (some accelerators)."""
    wide = xp.float64 if cells.has("float64", x, xp) else xp.float32
    return cells.truths(x, wide, xp) if dtype_name(x.dtype) == "bool" else xp.astype(x, wide)


def _ranges(x: Array, wide: Array) -> bool:
    """Whether squares of x may leave the range of the widest dtype: float64 holds those of all others."""
    return dtype_name(x.dtype) == "float64" or dtype_name(wide.dtype) == "float32"


def _measure(
    values: _Values, mask: Array | None, axes: Axes, eps: float, ranges: bool, xp: Any, weights: Array | None = None
) -> _State:
    """Two passes about a member of each cell: exact for a constant, and no digits lost to an offset."""
    count = cells.number(mask, axes, xp)
    divisor = count if weights is None else cells.total(weights, axes.reduce, xp)

    def total(parts: Array) -> Array:
        return cells.total(parts if weights is None else weights * parts, axes.reduce, xp)

    wide, low = values
    least, most = cells.extremes(wide, mask, axes, xp)
    unit = None
    if ranges:
        # The deviations of a constant are 0 in any unit, and 1 is the one in which eps stays as it is.
        size = cells.largest(least, most, xp)
        unit = powers.unit(xp.where(least == most, xp.ones_like(size), size), eps**0.5, xp)
        wide, least = wide * unit, least * unit
    shift = cells.member(least, xp)
    if axes.count == 0:
        return _State(count, unit, shift, shift, shift)
    if mask is not None:
        wide, low = xp.where(mask, wide, shift), low if low is None else xp.where(mask, low, xp.zeros_like(low))
    off = _less(_Values(wide, low), shift)
    delta = cells.divide(total(off), divisor, xp)
    # The second pass finds what rounding left out of the first mean; an infinite mean stays, and has no variance.
    sound = xp.isfinite(delta)
    rest = off - xp.where(sound, delta, xp.zeros_like(delta))
    if mask is not None:
        rest = xp.where(mask, rest, xp.zeros_like(rest))
    left = xp.where(sound, cells.divide(total(rest), divisor, xp), xp.zeros_like(delta))
    m2 = total(rest * rest) - left * left * cells.real(divisor, left, xp)
    m2 = xp.where(sound, xp.where(m2 < 0, xp.zeros_like(m2), m2), xp.full_like(m2, xp.nan))
    # The mean itself becomes the shift, so that what the rounding of a mean in x's own precision loses stays in delta.
    mean = cells.constant(shift + delta)
    fits = xp.isfinite(mean)
    mean = xp.where(fits, mean, shift)
    return _State(count, unit, mean, xp.where(fits, (shift - mean) + delta + left, delta), m2)


def _handed_out(state: _State, x: Array, axes: Axes, xp: Any) -> Moments:
    """The state as Moments, in units of x."""
    count, unit, shift, delta, m2 = state
    exponent = None
    if unit is not None:
        shift, delta = shift / unit, delta / unit
        exponent = xp.reshape(powers.exponent_of(unit, xp), axes.kept_shape)
    if getattr(count, "ndim", 0):  # where a mask makes counts differ; a number that PyTorch traces is a tensor too
        count = xp.reshape(count, axes.kept_shape)
    shift, delta, m2 = (xp.reshape(part, axes.kept_shape) for part in (shift, delta, m2))
    known: dict[str, Any] = {"keep": axes.keep, "ndim": len(axes.shape), "dtype": moments_name(dtype_name(x.dtype))}
    return Moments(count, shift, delta, m2, exponent=exponent, **known)


def _step(x: Array, values: _Values, mask: Array | None, request: Request, xp: Any) -> _Step:
    """How to normalise: by given moments, by those of x, or without `center` by its mean square."""
    axes, _, _, eps, center, moments, _ = request
    wide, low = values
    if moments is not None:
        unit, given = cells.in_unit(moments, eps)
        var = cells.variance(given)
        if not center:
            var = var + (given.shift + given.delta) ** 2
        shift, delta, var = (_own(part, wide, axes, xp) for part in (given.shift, given.delta, var))
        unit = None if unit is None else _own(unit, wide, axes, xp)
        rstd = cells.reciprocal(var, _in_unit(eps, unit), xp)
        return _Step(unit, shift, delta, rstd) if center else _Step(unit, None, None, rstd)
    if center:
        return _own_step(_measure(values, mask, axes, eps, _ranges(x, wide), xp), eps, xp)
    unit = None
    wide = wide if low is None else wide + low
    if _ranges(x, wide):
        unit = powers.unit(cells.largest(*cells.extremes(wide, mask, axes, xp), xp), eps**0.5, xp)
        wide = wide * unit
    seen = wide if mask is None else xp.where(mask, wide, xp.zeros_like(wide))
    square = cells.divide(cells.total(seen * seen, axes.reduce, xp), cells.number(mask, axes, xp), xp)
    return _Step(unit, None, None, cells.reciprocal(square, _in_unit(eps, unit), xp))


def _own_step(state: _State, eps: float, xp: Any) -> _Step:
    var = cells.divide(state.m2, state.count, xp)
    return _Step(state.unit, state.shift, state.delta, cells.reciprocal(var, _in_unit(eps, state.unit), xp))


def _in_unit(eps: float, unit: Array | None) -> Any:
    """eps as it is added to a variance in the square of a unit."""
    return eps if unit is None else eps * unit * unit


def _hat(step: _Step, values: _Values, xp: Any) -> Array:
    """x less its mean and divided by its deviation."""
    if step.unit is not None:
        values = values._replace(wide=values.wide * step.unit)
    if step.shift is None:
        wide, low = values
        return (wide if low is None else wide + low) * step.rstd
    return (_less(values, step.shift) - step.delta) * step.rstd


def _apply(
    step: _Step, values: _Values, mask: Array | None, weight: Array | None, bias: Array | None, axes: Axes, xp: Any
) -> Array:
    """The normalised values, with weight and bias."""
    wide = values.wide
    factor = None if weight is None else _parameter(weight, wide, axes, xp)
    bad = cells.left_out(wide, mask, xp)
    y = _hat(step, _without(values, bad, xp), xp)
    y = y if factor is None else y * factor
    offset = None if bias is None else _parameter(bias, wide, axes, xp)
    if bad is not None:
        # What is no number and left out by the mask must not reach the gradient of a mean, a deviation or a parameter.
        offset = None if offset is None else xp.where(bad, cells.constant(offset), offset)
        still = _Step(*(part if part is None else cells.constant(part) for part in step))
        alone = _hat(still, values, xp)
        y = xp.where(bad, alone if factor is None else alone * cells.constant(factor), y)
    return y if offset is None else y + offset


def _own(values: Any, wide: Array, axes: Axes, xp: Any) -> Any:
    """A number as it is; values of each cell in the library and the dtype of `wide`, with a 1 for each reduced axis."""
    return values if isinstance(values, int) else xp.reshape(_converted(values, wide, xp), axes.broadcast_shape)


def _converted(values: Array, wide: Array, xp: Any) -> Array:
    """Values of the library of `wide`, or NumPy's (a state, a parameter), as its library's array of its dtype."""
    if type(values).__module__ == "numpy" and type(wide).__module__ != "numpy":
        device = cells.device_of(wide)  # MLX has no word for one
        return xp.asarray(values, dtype=wide.dtype, **({} if device is None else {"device": device}))
    return xp.astype(values, wide.dtype)


def _parameter(values: Array, wide: Array, axes: Axes, xp: Any) -> Array:
    """A weight or a bias in the widest dtype, with a 1 for each axis that is not affine."""
    return xp.reshape(_converted(values, wide, xp), axes.affine_broadcast_shape)


def _narrow(gradient: Array, like: Array, xp: Any) -> Array:
    """A gradient in the shape of a parameter, and in its dtype if that is floating."""
    gradient = xp.reshape(gradient, tuple(like.shape))
    return xp.astype(gradient, _dtype(result_name(dtype_name(like.dtype)), like, xp))
