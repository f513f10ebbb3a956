"""Kernels for runs whose values have their own weight and bias; the formulas are those of own.py."""

from numba import types

from keepnorm.kernels import half_vectors
from keepnorm.kernels.compile import exact, variant
from keepnorm.kernels.half_vectors import COUNT, moved_twice
from keepnorm.kernels.integers import least
from keepnorm.kernels.own import float32_is_enough, float32_parts, is_held, largest_weight
from keepnorm.kernels.runs import kernel
from keepnorm.kernels.scalars import LOW, MEAN, SCALE
from keepnorm.kernels.traffic import before_lines, whole_steps
from keepnorm.kernels.vector import (
    WIDTH,
    affine_twice,
    affine_twice_on_both,
    deviations,
    fill,
    floats,
    load,
    load_first,
    save_first,
    scaled,
    singles,
    write,
)


def _in_float32(x, xi, y, yi, n, mean, scale, weight, bias, a, past):
    """Normalise a run in float32; weights and biases begin at affine index `a`."""


@variant(_in_float32)
def _in_float32_of(x, xi, y, yi, n, mean, scale, weight, bias, a, past):
    if not is_held(x.dtype):
        return lambda x, xi, y, yi, n, mean, scale, weight, bias, a, past: None  # noqa: ARG005
    if isinstance(x.dtype, types.Record):
        return lambda x, xi, y, yi, n, mean, scale, weight, bias, a, past: _halves(
            x, xi, y, yi, n, mean, scale, weight, bias, a, past
        )
    return lambda x, xi, y, yi, n, mean, scale, weight, bias, a, past: _singly(
        x, xi, y, yi, n, mean, scale, weight, bias, a, past
    )


@exact
def _singly(x, xi, y, yi, n, mean, scale, weight, bias, a, past):
    factor, rest, shift = float32_parts(x, mean, scale)
    f = singles(fill(factor))
    r = singles(fill(rest))
    c = singles(fill(shift))
    i = 0
    end = before_lines(y, yi, n, past)
    while i < n:
        while i < end:
            k = least(WIDTH, end - i)
            w = singles(load_first(weight, a, i, k))
            b = singles(load_first(bias, a, i, k))
            save_first(y, yi, i, k, affine_twice(singles(load_first(x, xi, i, k)), f, r, c, w, b))
            i += k
        whole = whole_steps(y, n - i, 2 * WIDTH, past)
        for j in range(i, i + whole, 2 * WIDTH):
            values = singles(load(x, xi, j)), singles(load(x, xi + WIDTH, j))
            w = singles(load(weight, a, j)), singles(load(weight, a + WIDTH, j))
            b = singles(load(bias, a, j)), singles(load(bias, a + WIDTH, j))
            one, other = affine_twice_on_both(values, f, r, c, w, b)
            write(y, yi, j, one, past)
            write(y, yi + WIDTH, j, other, past)
        i += whole
        end = n


@exact
def _halves(x, xi, y, yi, n, mean, scale, weight, bias, a, past):
    factor, mean, rest = float32_parts(x, mean, scale)
    f = half_vectors.fill(factor)
    m = half_vectors.fill(mean)
    r = half_vectors.fill(rest)
    i = 0
    end = before_lines(y, yi, n, past)
    while i < n:
        while i < end:
            k = least(COUNT, end - i)
            w = half_vectors.load_first(weight, a, i, k)
            b = half_vectors.load_first(bias, a, i, k)
            half_vectors.save_first(y, yi, i, k, moved_twice(half_vectors.load_first(x, xi, i, k), m, f, r, w, b))
            i += k
        whole = whole_steps(y, n - i, COUNT, past)
        for j in range(i, i + whole, COUNT):
            w = half_vectors.load(weight, a, j)
            b = half_vectors.load(bias, a, j)
            half_vectors.write(y, yi, j, moved_twice(half_vectors.load(x, xi, j), m, f, r, w, b), past)
        i += whole
        end = n


@exact
def _in_float64(x, xi, y, yi, n, mean, scale, shift, weight, bias, a, past):
    """The same in float64, with what the mean has lost as a shift."""
    m = fill(mean)
    f = fill(scale)
    s = fill(shift)
    i = 0
    end = before_lines(y, yi, n, past)
    while i < n:
        while i < end:
            k = least(WIDTH, end - i)
            d = scaled(deviations(load_first(x, xi, i, k), m), f, s)
            save_first(y, yi, i, k, scaled(d, floats(load_first(weight, a, i, k)), floats(load_first(bias, a, i, k))))
            i += k
        whole = whole_steps(y, n - i, WIDTH, past)
        for j in range(i, i + whole, WIDTH):
            d = scaled(deviations(load(x, xi, j), m), f, s)
            write(y, yi, j, scaled(d, floats(load(weight, a, j)), floats(load(bias, a, j))), past)
        i += whole
        end = n


@exact
def scale_piece(x, xi, y, yi, n, plan, outer, state, k, weight, bias, a, largest, past):
    """The affine step on a piece of a run of cell k, with the weights and biases from affine index `a` on."""
    mean = state[MEAN, k]
    scale = state[SCALE, k]
    if float32_is_enough(y, state, k, largest):
        _in_float32(x, xi, y, yi, n, mean, scale, weight, bias, a, past)
    else:
        _in_float64(x, xi, y, yi, n, mean, scale, -state[LOW, k] * scale, weight, bias, a, past)


tasks = kernel(largest_weight, scale_piece)
