"""The exact answer, by the definition: no keepnorm, no framework.

Moments of small cells are exact: every float is an integer times a power of two, so their sums are sums of integers and the
mean and the variance are fractions. Larger cells take two passes with `math.fsum`. What follows the moments (a square root,
products, sums of a few thousand terms) is done in `numpy.longdouble`, which on x86 has eleven bits more than float64; where it
has none more, float64 results are known to about one unit in the last place only.
"""

import math
from fractions import Fraction
from math import fsum, isfinite, isinf, isnan
from typing import NamedTuple

import numpy as np

from .cases import Case
from .data import Array, Data

REAL = np.longdouble
EXACT_LIMIT = 4096


class Answer(NamedTuple):
    """What comes out; None for what was not asked. `mean` and `var` are the new running moments after an update."""

    output: Array | None = None
    mean: Array | None = None
    var: Array | None = None
    dx: Array | None = None
    dweight: Array | None = None
    dbias: Array | None = None


class Truth(NamedTuple):
    """The exact answer, and what a tolerance needs to know; cells have a 1 for each reduced axis of the split x."""

    answer: Answer
    hat: Array  # (x - mean) * rstd
    rstd: Array
    offset: Array  # the largest |x| over the deviation: how many digits a subtraction can cost
    push: Array  # the largest |dy * weight| of the cell


def exact_moments(values: list[float]) -> tuple[Fraction, Fraction]:
    """Mean and population variance of finite floats, as fractions."""
    ratios = [v.as_integer_ratio() for v in values]
    common = max(d for _, d in ratios)
    whole = [n * (common // d) for n, d in ratios]
    n, total = len(whole), sum(whole)
    squares = sum(w * w for w in whole)
    return Fraction(total, n * common), Fraction(n * squares - total * total, (n * common) ** 2)


def cell_moments(values: list[float]) -> tuple[float, Array, Array]:
    """The mean of one cell as a float64 and the rest, and its population variance; NaN for an empty one.

    In two parts, because even an extended float loses ten bits of ``x - mean`` where the mean is 1e6 deviations from 0.
    """
    nan = REAL("nan")
    if not values:
        return math.nan, nan, nan
    if not all(map(isfinite, values)):
        infinite = {v for v in values if isinf(v)}
        mixed = len(infinite) == 2 or any(map(isnan, values))
        return (math.nan if mixed else infinite.pop()), REAL(0), nan
    if len(values) <= EXACT_LIMIT:
        mean, var = exact_moments(values)
        high = float(mean)
        return high, REAL(float(mean - Fraction(high))), _extended(var)
    high = fsum(values) / len(values)
    off = np.asarray(values) - high
    low = fsum(off) / len(values)
    var = fsum(np.square(off.astype(REAL)).astype(np.float64)) / len(values) - low * low
    return high, REAL(low), REAL(var)


def _extended(value: Fraction) -> Array:
    """A fraction as the sum of two float64, which an extended float holds to 64 bits."""
    high = float(value)
    return REAL(high) + REAL(float(value - Fraction(high)))


def truth(case: Case, data: Data) -> Truth:
    """The exact answer to a case."""
    with np.errstate(all="ignore"):
        return _truth(case, data)


def _truth(case: Case, data: Data) -> Truth:
    x = data.x.astype(REAL).reshape(case.split_shape)
    where = None if data.where is None else np.broadcast_to(data.where, case.shape).reshape(case.split_shape)
    cells = tuple(n if a in case.split_keep else 1 for a, n in enumerate(case.split_shape))
    mean, low, var = _moments(x, where, case, cells)
    batch_mean, batch_var = mean + low, var
    if case.mode == "inference":
        mean, var = (given.astype(REAL).reshape(cells) for given in (data.mean, data.var))
        low = np.zeros_like(mean)
    if case.operation == "rms":
        # The mean square takes the place of the variance; an infinite one makes finite values 0 and infinite ones NaN.
        var = np.where(np.isinf(mean), REAL("inf"), var + batch_mean * batch_mean)
        mean = low = np.zeros_like(mean)
    rstd = 1 / np.sqrt(var + REAL(case.eps))
    hat = ((x - mean) - low) * rstd
    weight, bias = (None if p is None else p.astype(REAL).reshape(_affine(case)) for p in (data.weight, data.bias))
    y = hat if weight is None else hat * weight
    y = y if bias is None else y + bias
    push = data.dy.astype(REAL).reshape(case.split_shape)
    push = np.abs(push if weight is None else push * weight).max(case.split_reduce, keepdims=True)
    offset = np.abs(x).max(case.split_reduce, keepdims=True, initial=0, where=np.isfinite(x)) * rstd
    answer = Answer(output=y.reshape(case.shape))
    if case.mode == "backward":
        answer = answer._replace(**_gradients(case, data, hat, rstd, weight, where))
    elif case.mode == "update":
        free = case.count - case.correction
        new_var = batch_var * case.count / REAL(free) if free > 0 else np.full_like(batch_var, np.nan)
        keep, take = REAL(data.decay), 1 - REAL(data.decay)
        answer = answer._replace(
            mean=data.mean.astype(REAL) * keep + batch_mean.reshape(case.kept_shape) * take,
            var=data.var.astype(REAL) * keep + new_var.reshape(case.kept_shape) * take,
        )
    elif case.mode == "forward":
        answer = answer._replace(mean=batch_mean.reshape(case.kept_shape), var=batch_var.reshape(case.kept_shape))
    return Truth(answer, hat, rstd, offset, push)


def _affine(case: Case) -> tuple[int, ...]:
    return tuple(n if a in case.split_affine else 1 for a, n in enumerate(case.split_shape))


def _moments(x: Array, where: Array | None, case: Case, cells: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The moments of every cell, the mean in two parts, in the shape `cells`."""
    order = case.split_keep + case.split_reduce
    rows = x.transpose(order).reshape(-1, case.count).astype(np.float64)
    chosen = None if where is None else where.transpose(order).reshape(rows.shape)
    found = [cell_moments((row if chosen is None else row[chosen[i]]).tolist()) for i, row in enumerate(rows)]
    mean, low, var = (np.array(part, REAL).reshape(cells) for part in zip(*found, strict=True))
    return mean, low, var


def _gradients(
    case: Case, data: Data, hat: Array, rstd: Array, weight: Array | None, where: Array | None
) -> dict[str, Array | None]:
    """The gradient of sum(y * dy): by x, through the mean and the variance too, by weight and by bias."""
    dy = data.dy.astype(REAL).reshape(case.split_shape)
    others = tuple(a for a in range(dy.ndim) if a not in case.split_affine)
    shape = case.affine_shape
    g = dy if weight is None else dy * weight
    inside = np.ones(dy.shape, bool) if where is None else where
    count = inside.sum(case.split_reduce, keepdims=True)
    share = hat * (g * hat).sum(case.split_reduce, keepdims=True) / count
    if case.operation != "rms":
        share = share + g.sum(case.split_reduce, keepdims=True) / count
    dx = (g - np.where(inside, share, 0)) * rstd
    if case.operation == "rms":
        # An infinite mean square makes finite values 0 whatever they are; an infinite one is NaN, and so is its gradient.
        dx = np.where((rstd == 0) & np.isfinite(hat), REAL(0), dx)
    return {
        "dx": dx.reshape(case.shape),
        "dweight": None if weight is None else (dy * hat).sum(others).reshape(shape),
        "dbias": None if data.bias is None else dy.sum(others).reshape(shape),
    }
