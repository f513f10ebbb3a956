"""JAX arrays without x64 that no kernel can read (traced, or on another device): in pairs of float32.

Values come from pairs, derivatives from plain formulas, in every mode and of every order.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from keepnorm import powers
from keepnorm.axes import Axes
from keepnorm.engines import cells
from keepnorm.engines.dispatch import dtype_name
from keepnorm.engines.jax import pairs
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name
from keepnorm.request import Request

Array = Any
Pair = pairs.Pair


class _Step(NamedTuple):
    """What normalises: ``(x * unit - rough - delta) * rstd``; rough is None where no mean is subtracted."""

    unit: Array
    rough: Array | None
    delta: Pair
    rstd: Pair


def moments(x: Array, axes: Axes, where: Array | None) -> Moments:
    """Count, mean and variance of each kept cell."""
    high, low, mask = _open(x, axes, where)
    return _handed_out(*_measured(high, low, mask, axes, 0.0, True), x, axes, mask)


def weighted_moments(x: Array, axes: Axes, weights: Array) -> Moments:
    """The moments of values that count as often as their weights say."""
    high, low, _ = _open(x, axes, None)
    weights = _weights(weights, axes)
    seen = weights > 0
    measured = _measured(high, low, seen, axes, 0.0, True, weights)
    total = cells.total(weights, axes.reduce, jnp)
    found = _handed_out(*measured, x, axes, seen)
    unit, var = measured[0], measured[3]
    m2 = pairs.times(var, (total, jnp.zeros_like(total)))[0]
    known = {"m2": jnp.reshape(m2, axes.kept_shape), "exponent": jnp.reshape(powers.exponent_of(unit, jnp), axes.kept_shape)}
    return found.replaced(sum_weights=jnp.reshape(total, axes.kept_shape), **known)


def _weights(weights: Array, axes: Axes) -> Array:
    """Weights in float32 and in `axes.shape`."""
    whole = jnp.broadcast_to(jnp.asarray(weights, jnp.float32), axes.source)
    return cells.constant(jnp.reshape(whole, axes.shape))


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: None) -> Array:
    """``x * scale + shift``."""
    high, low, _ = _open(x, axes, None)
    one = jnp.ones((), jnp.float32)
    step = _Step(one, None, (one, one), (one, 0 * one))
    return _close(_apply((), high, low, step, *_parameters(scale, shift, axes)), x, axes)


def normalize(x: Array, request: Request, out: None) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    axes, weight, bias, eps, center, moments, where = request
    high, low, mask = _open(x, axes, where)
    parameters = _parameters(weight, bias, axes)
    if moments is None:
        return _close(_own((axes, eps, center), high, low, mask, *parameters), x, axes)
    return _close(_apply((), high, low, _given_step(axes, eps, center, moments), *parameters), x, axes)


def normalize_with_moments(x: Array, request: Request) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalised it."""
    axes, weight, bias, eps, _, _, where = request
    high, low, mask = _open(x, axes, where)
    y = _own((axes, eps, True), high, low, mask, *_parameters(weight, bias, axes))
    return _close(y, x, axes), _handed_out(*_measured(high, low, mask, axes, eps, True), x, axes, mask)


def normalize_vjp(
    x: Array, request: Request, add: Callable[[Array], Array] | None = None, weights: Array | None = None
) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and the function from its gradient to those of x, weight and bias.

    `add` is that of the standard engine; its sums are float32, but those of this part keep the pairs.
    """
    axes, weight, bias, eps, center, moments, where = request
    high, low, mask = _open(x, axes, where)
    if moments is None:
        step = _own_step(*_measured(high, low, mask, axes, eps, center), eps)
    else:
        step = _given_step(axes, eps, center, moments)
    factor, offset = _parameters(weight, bias, axes)
    y = _close(_apply((), high, low, step, factor, offset), x, axes)
    bad = cells.left_out(high, mask, jnp)
    inner = high if bad is None else jnp.where(bad, 0, high)
    hat = pairs.but(bad, _hat(inner, low, step))
    count = cells.number(mask, axes, jnp) if moments is None else _count(moments, axes) if add else None
    if weights is not None:
        weights = _weights(weights, axes)
        bad = cells.left_out(high, weights > 0, jnp)
        hat = pairs.but(bad, _hat(high if bad is None else jnp.where(bad, 0, high), low, step))
        count = cells.total(weights, axes.reduce, jnp)
    others = tuple(a for a in range(len(axes.shape)) if a not in axes.affine)

    def vjp(dy: Array) -> Gradients:
        wide = jnp.reshape(dy, axes.shape).astype(jnp.float32)
        flat = wide, jnp.zeros_like(wide)
        (dweight,), (dbias,) = pairs.totals(others, (pairs.times(flat, hat),)), pairs.totals(others, (pairs.but(bad, flat),))
        g = flat if factor is None else pairs.product(wide, factor)
        dx = g
        if count is not None:
            known = pairs.but(bad, g)
            first, second = _of_all(pairs.totals(axes.reduce, (known, pairs.times(known, hat))), axes, add)
            second = pairs.but(step.rstd[0] == 0, second)  # of infinities: the finite values are 0
            share = pairs.times(hat, pairs.over(second, count))
            if center:
                share = pairs.plus(share, pairs.over(first, count))
            if weights is not None:
                share = pairs.times(share, (weights, jnp.zeros_like(weights)))
            dx = pairs.plus(dx, pairs.minus(share if mask is None else pairs.but(~mask, share)))
        dx = pairs.times(dx, step.rstd)[0] * step.unit
        return Gradients(_close(dx, x, axes), _narrow(dweight[0], weight), _narrow(dbias[0], bias))

    return y, vjp


def _open(x: Array, axes: Axes, where: Array | None) -> tuple[Array, Array | None, Array | None]:
    """x as a pair, whose low part is None where float32 holds every value of its dtype, and the mask, in `axes.shape`."""
    x = jnp.reshape(x, axes.shape)
    mask = None if where is None else jnp.reshape(jnp.broadcast_to(where, axes.source), axes.shape)
    if x.dtype.name == "bool":
        x = cells.truths(x, jnp.float32, jnp)
    if x.dtype.name not in ("int32", "uint32"):
        return x.astype(jnp.float32), None, mask
    return *pairs.whole(x), mask


def _close(y: Array, x: Array, axes: Axes) -> Array:
    return jnp.reshape(y, axes.source).astype(result_name(dtype_name(x.dtype)))


def _parameters(weight: Array | None, bias: Array | None, axes: Axes) -> tuple[Array | None, Array | None]:
    weight, bias = (
        p if p is None else jnp.reshape(jnp.asarray(p, jnp.float32), axes.affine_broadcast_shape) for p in (weight, bias)
    )
    return weight, bias


def _narrow(gradient: Array, like: Array | None) -> Array | None:
    """A gradient in the shape of a parameter, and in its dtype if that is floating."""
    return None if like is None else jnp.reshape(gradient, like.shape).astype(result_name(dtype_name(like.dtype)))


def _measured(
    high: Array,
    low: Array | None,
    mask: Array | None,
    axes: Axes,
    eps: float,
    center: bool,
    weights: Array | None = None,
) -> tuple[Array, Array | None, Pair, Pair]:
    """unit, rough, delta and the variance of each cell of ``x * unit``, whose mean is rough + delta."""
    least, most = cells.extremes(high, mask, axes, jnp)
    size = cells.largest(least, most, jnp)
    if center:
        # The deviations of a constant are 0 in any unit, and 1 is the one in which eps stays as it is.
        size = jnp.where((least == most) & (low is None), 1, size)
    unit = powers.unit(size, eps**0.5, jnp)
    count = cells.number(mask, axes, jnp)
    high, low = high * unit, low if low is None else low * unit
    rough = None
    if center:
        first = cells.member(least * unit, jnp)
        off = cells.constant(high if mask is None else jnp.where(mask, high, first)) - first
        if weights is not None:
            count, off = cells.total(weights, axes.reduce, jnp), off * weights
        rough = first + cells.divide(cells.total(off, axes.reduce, jnp), count, jnp)
        rough = jnp.where(jnp.isfinite(rough), rough, first)
    return unit, rough, *_measure((axes.reduce,), high, low, mask if weights is None else weights, rough, count)


def _handed_out(unit: Array, rough: Any, delta: Pair, var: Pair, x: Array, axes: Axes, mask: Array | None) -> Moments:
    """A state as Moments, in units of x."""
    count = cells.number(mask, axes, jnp)
    m2, exponent = pairs.times(var, pairs.as_pair(count))[0], powers.exponent_of(unit, jnp)
    shift, delta, m2, exponent = (jnp.reshape(a, axes.kept_shape) for a in (rough / unit, delta[0] / unit, m2, exponent))
    count = count if isinstance(count, int) else jnp.reshape(count, axes.kept_shape)
    known: dict[str, Any] = {"keep": axes.keep, "ndim": len(axes.shape), "dtype": moments_name(dtype_name(x.dtype))}
    return Moments(count, shift, delta, m2, exponent=exponent, **known)


def _given_step(axes: Axes, eps: float, center: bool, moments: Moments) -> _Step:
    unit, given = cells.in_unit(moments, eps)
    shift, delta, var = given.shift, given.delta, cells.variance(given)
    if not center:
        var = var + (shift + delta) ** 2
    plain = 1.0 if unit is None else unit.reshape(axes.broadcast_shape)  # of NumPy where the state is
    unit = jnp.ones((), jnp.float32) if unit is None else unit.reshape(axes.broadcast_shape)
    shift, delta, var = (a.reshape(axes.broadcast_shape) for a in (shift, delta, var))
    if isinstance(var, np.ndarray):
        # A state of NumPy's has float64, of which pairs keep nearly all.
        rstd = pairs.split(cells.reciprocal(var, eps * plain * plain, np))
        rough = shift.astype(np.float32)
        delta = pairs.split((shift - rough) + delta)
    else:
        high, low = pairs.split(eps)
        rstd = pairs.reciprocal((), (var, jnp.zeros_like(var)), (high * plain * plain, low * plain * plain))
        rough, delta = shift, (delta, jnp.zeros_like(delta))
    # In the unit of the deviation, a difference overflows only where the result does.
    scale = powers.unit(cells.constant(jnp.asarray(rstd[0])), 0.0, jnp)
    rstd, delta = ((a * s, b * s) for (a, b), s in ((rstd, scale), (delta, 1 / scale)))
    return _Step(unit / scale, rough / scale if center else None, delta, rstd)


def _own_step(unit: Array, rough: Array | None, delta: Pair, var: Pair, eps: float) -> _Step:
    high, low = pairs.split(eps)
    return _Step(unit, rough, delta, pairs.reciprocal((), var, (high * unit * unit, low * unit * unit)))


def _count(moments: Moments, axes: Axes) -> Any:
    """The count of given moments, with a 1 for each reduced axis."""
    return moments.count if isinstance(moments.count, int) else jnp.reshape(moments.count, axes.broadcast_shape)


def _centred(high: Array, low: Array | None, step: _Step) -> Pair:
    """x less its mean, in units, as pairs."""
    off = _off(high * step.unit, low if low is None else low * step.unit, step.rough)
    return off if step.rough is None else pairs.plus(off, pairs.minus(step.delta))


def _hat(high: Array, low: Array | None, step: _Step) -> Pair:
    """The normalised values, as pairs."""
    return pairs.times(_centred(high, low, step), step.rstd)


def _of_all(own: tuple[Pair, ...], axes: Axes, add: Callable[[Array], Array] | None) -> tuple[Pair, ...]:
    """The sums of all parts, given those of one."""
    if add is None:
        return own
    mine = jnp.stack([jnp.reshape(high, axes.kept_shape) for high, _ in own])
    # What others add is all that is rounded: alone, a part has the sums of its pairs.
    theirs = jnp.reshape(add(mine) - mine, (2, *axes.broadcast_shape))
    return tuple(pairs.settled(*pairs.plus(pair, (theirs[i], jnp.zeros_like(theirs[i])))) for i, pair in enumerate(own))


def _plain_measure(
    static: tuple[tuple[int, ...]], high: Array, low: Array | None, mask: Array | None, rough: Array | None, count: Any
) -> tuple[Pair, Pair]:
    (over,) = static

    def mean(values: Array) -> Array:
        seen = values if mask is None else jnp.where(mask > 0, values, 0) * mask
        return cells.divide(cells.total(seen, over, jnp), count, jnp)

    off = high if mask is None else jnp.where(mask > 0, high, 0)
    if rough is None:
        square = mean(off * off)
        return (jnp.zeros_like(square),) * 2, (square, jnp.zeros_like(square))
    off = off - rough
    delta = mean(off)
    var = mean((off - delta) ** 2)
    return (delta, jnp.zeros_like(delta)), (var, jnp.zeros_like(var))


@pairs.precise(_plain_measure)
def _measure(
    static: tuple[tuple[int, ...]], high: Array, low: Array | None, mask: Array | None, rough: Array | None, count: Any
) -> tuple[Pair, Pair]:
    """The mean less `rough` and the variance; without `rough` 0 and the mean square."""
    (over,) = static
    off = _off(high, low, rough)
    off = off if mask is None else pairs.but(mask == 0, off)
    if rough is None:
        (squares,) = pairs.totals(over, (pairs.times(off, off),))
        square = pairs.over(squares, count)
        return (jnp.zeros_like(square[0]),) * 2, square
    squares = pairs.times(off, off)
    if mask is not None and mask.dtype != bool:  # weights
        squares = pairs.times(squares, (mask, jnp.zeros_like(mask)))
        off = pairs.times(off, (mask, jnp.zeros_like(mask)))
    values, squares = pairs.totals(over, (off, squares))
    delta = pairs.over(values, count)
    high, low = pairs.over(pairs.plus(squares, pairs.minus(pairs.times(values, delta))), count)
    # An infinite mean has no variance; a rounding below 0 is none.
    high = jnp.where(jnp.isfinite(delta[0]), jnp.where(high < 0, 0, high), jnp.nan)
    return delta, (high, jnp.where(high > 0, low, 0))


def _plain_apply(
    static: tuple[()], high: Array, low: Array | None, step: _Step, weight: Array | None, bias: Array | None
) -> Array:
    off = high * step.unit
    off = off if step.rough is None else (off - step.rough) - step.delta[0]
    y = off * step.rstd[0] if weight is None else off * step.rstd[0] * weight
    return y if bias is None else y + bias


@pairs.precise(_plain_apply)
def _apply(static: tuple[()], high: Array, low: Array | None, step: _Step, weight: Array | None, bias: Array | None) -> Array:
    """The normalised values with weight and bias, rounded once."""
    y = _hat(high, low, step)
    if weight is not None:
        y = pairs.times(y, (weight, jnp.zeros_like(weight)))
    return y[0] if bias is None else pairs.plus(y, (bias, jnp.zeros_like(bias)))[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _own(
    static: tuple[Axes, float, bool],
    high: Array,
    low: Array | None,
    mask: Array | None,
    weight: Array | None,
    bias: Array | None,
) -> Array:
    """The values normalised by their own moments."""
    axes, eps, center = static
    step = _own_step(*_measured(high, low, mask, axes, eps, center), eps)
    return _apply((), high, low, step, weight, bias)


def _own_rule(static: tuple[Axes, float, bool], primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The tangent ``rstd * (c - hat * mean(hat * c))`` with ``c = dx - mean(dx)``, and those of weight and bias.

    hat is the standard score u times ``sqrt(1 - d)`` with ``d = eps / (var + eps)``, so ``c - u * mean(u * c)`` and a
    small term are added: where the first cancels, as for two values, the second is what is left.
    """
    axes, eps, center = static
    high, low, mask, weight, bias = primals
    dx, _, _, dweight, dbias = tangents
    unit, rough, delta, var = _measured(high, low, mask, axes, eps, center)
    step = _own_step(unit, rough, delta, var, eps)
    # What is no number and left out by the mask must not reach the gradient of a mean, a deviation or a parameter.
    bad = cells.left_out(high, mask, jnp)
    centred = pairs.but(bad, _centred(high if bad is None else jnp.where(bad, 0, high), low, step))
    none = jnp.zeros_like(unit)
    hat, score = pairs.times(centred, step.rstd)[0], pairs.times(centred, pairs.reciprocal((), var, (none, none)))[0]
    count, rstd = cells.number(mask, axes, jnp), step.rstd[0]

    def mean(values: Array) -> Array:
        return cells.divide(cells.total(values if mask is None else jnp.where(mask, values, 0), axes.reduce, jnp), count, jnp)

    def central(values: Array) -> Array:
        return values - mean(values) if center else values

    # Infinities make the finite values of a root mean square 0, and their gradients too; those of the infinities are NaN.
    endless = rstd == 0
    score = jnp.where(endless, 0, score)
    off = central(dx * jnp.where(endless & jnp.isnan(hat), jnp.nan, unit))
    # A transposed program runs backwards. What it centres and projects first cancels there, and the small rest comes last.
    rest = score * mean(score * off * (np.float32(eps) * unit * unit * rstd * rstd))
    dy = (central(off - score * mean(score * off)) + rest) * rstd
    if weight is not None:
        dy = dy * weight + hat * dweight
    if bias is not None:
        dy = dy + (dbias if bad is None else jnp.where(bad, 0, dbias))
    return _own(static, *primals), dy


_own.defjvp(_own_rule)


def _off(high: Array, low: Array | None, rough: Array | None) -> Pair:
    """x less a number of float32."""
    if rough is None:
        return high, jnp.zeros_like(high) if low is None else low
    off = pairs.settled(*pairs.two_sum(high, -rough))
    return off if low is None else pairs.plus(off, (low, jnp.zeros_like(low)))
