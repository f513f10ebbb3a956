"""Kernels for columns whose values have weights of their own; the formulas are those of affine_elementwise.py.

Lanes side by side may belong to cells of both kinds: every value is worked out in both ways, and one is taken.
"""

from numba import types
from numpy import float32

from keepnorm.kernels.columns import (
    AFFINE,
    INNER_AFFINE,
    INNER_X,
    INNER_Y,
    KEPT_AFFINE,
    LANE_REDUCED,
    LANE_X,
    LANE_Y,
    LOW,
    MEAN,
    REDUCED_AFFINE,
    SCALE,
    X,
    Y,
)
from keepnorm.kernels.cpu.affine_elementwise import float32_is_enough, float32_parts, is_held, largest_mean
from keepnorm.kernels.cpu.columns import kernel
from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.prefetch import gathered, prefetch_ahead, put
from keepnorm.kernels.cpu.scalars import block_bounds, offset
from keepnorm.kernels.cpu.simd import (
    FLOATS,
    WIDTH,
    affine_twice,
    deviations,
    either,
    load,
    load_n,
    moved_twice,
    scaled,
    singles,
    store_n,
)
from keepnorm.kernels.jit.compile import exact, variant

# Rows of the scratch arrays of one task: of float64 and of float32.
LANE_MEAN, LANE_SCALE, LANE_SHIFT, LANE_WEIGHT, LANE_BIAS = range(5)
FACTOR, SECOND, SHIFT, FITS = range(4)


@exact
def set_lanes(x, y, plan, cell, a, cells, state, weight, bias, largest, lanes, parts):
    """What the lanes of neighbouring cells need in both ways, and which of both each goes."""
    short = plan[LANE_REDUCED]
    for k in range(cells):
        mean = state[MEAN, cell + k]
        scale = state[SCALE, cell + k]
        factor, second, shift = float32_parts(x, mean, scale)
        fits = float32(1.0 if float32_is_enough(state, cell + k, largest) else 0.0)
        for i in range(k * short, (k + 1) * short):
            lanes[LANE_MEAN, i] = mean
            lanes[LANE_SCALE, i] = scale
            lanes[LANE_SHIFT, i] = -state[LOW, cell + k] * scale
            parts[FACTOR, i] = factor
            parts[SECOND, i] = second
            parts[SHIFT, i] = shift
            parts[FITS, i] = fits
    return False


@exact
def _set_row(plan, a, cells, weight, bias, lanes):
    """Bring the weights and biases of one row, from affine index `a` on, to the lanes that they belong to."""
    short = plan[LANE_REDUCED]
    for k in range(cells):
        for r in range(short):
            j = a + k * plan[KEPT_AFFINE] + r * plan[REDUCED_AFFINE]
            lanes[LANE_WEIGHT, k * short + r] = weight[j]
            lanes[LANE_BIAS, k * short + r] = bias[j]


def _chosen(values, double, lanes, parts, i):
    """Eight results in float64, or in float32 in the lanes where that is enough."""


@variant(_chosen)
def _chosen_of(values, double, lanes, parts, i):
    if values is FLOATS or not is_held(values.dtype):
        return lambda values, double, lanes, parts, i: double  # noqa: ARG005

    halves = isinstance(values.dtype, types.Record)

    def chosen(values, double, lanes, parts, i):
        w = singles(load(lanes[LANE_WEIGHT], 0, i))
        b = singles(load(lanes[LANE_BIAS], 0, i))
        factor, second, shift = load(parts[FACTOR], 0, i), load(parts[SECOND], 0, i), load(parts[SHIFT], 0, i)
        if halves:
            single = moved_twice(singles(values), second, factor, shift, w, b)
        else:
            single = affine_twice(singles(values), factor, second, shift, w, b)
        return either(load(parts[FITS], 0, i), single, singles(double))

    return chosen


@exact
def _row(x, xi, y, yi, n, lanes, parts):
    """Normalise a row whose values have their own weights and biases."""
    for i in range(0, n, WIDTH):
        k = least(WIDTH, n - i)
        values = load_n(x, xi, i, k)
        d = deviations(values, load(lanes[LANE_MEAN], 0, i))
        d = scaled(d, load(lanes[LANE_SCALE], 0, i), load(lanes[LANE_SHIFT], 0, i))
        double = scaled(d, load(lanes[LANE_WEIGHT], 0, i), load(lanes[LANE_BIAS], 0, i))
        store_n(y, yi, i, k, _chosen(values, double, lanes, parts, i))


@exact
def apply(
    x, y, plan, outer, x_start, y_start, a, cell, cells, b, state, weight, bias, narrow, lanes, parts, buffer, line, behind,
):  # fmt: skip
    """The affine step on block b of neighbouring cells, whose means and scales `set_lanes` has spread."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    n = cells * plan[LANE_REDUCED]
    for p in range(p0, p1):
        position = a + offset(outer, p, AFFINE)
        for i in range(i0, i1):
            xi = x_start + offset(outer, p, X) + i * plan[INNER_X]
            yi = y_start + offset(outer, p, Y) + i * plan[INNER_Y]
            _set_row(plan, position + i * plan[INNER_AFFINE], cells, weight, bias, lanes)
            if behind:
                prefetch_ahead(x, xi + n, 0, 1, n)
            source, here = gathered(x, xi, plan[LANE_X], n, buffer)
            target, there = (y, yi) if line.size == 0 else (line, 0)
            _row(source, here, target, there, n, lanes, parts)
            put(line, y, yi, plan[LANE_Y], n)


tasks = kernel(largest_mean, set_lanes, apply)
