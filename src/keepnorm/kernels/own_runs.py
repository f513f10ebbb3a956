"""Kernels for runs whose values have their own weight and bias; the formulas are those of own.py."""

from numba import types

from keepnorm.kernels import sixteens
from keepnorm.kernels.compile import exact, variant
from keepnorm.kernels.integers import least
from keepnorm.kernels.own import float32_is_enough, float32_parts, is_held, largest_weight
from keepnorm.kernels.runs import kernel
from keepnorm.kernels.scalars import LOW, MEAN, SCALE
from keepnorm.kernels.sixteens import COUNT, affine_twice, moved_twice
from keepnorm.kernels.traffic import before_lines, whole_steps
from keepnorm.kernels.vector import (
    WIDTH,
    deviations,
    fill,
    floats,
    load,
    load_first,
    save_first,
    scaled,
    write,
)

# Values of a run from which on its first step brings the others to whole cache lines of the result.
LONG = 128


def _in_float32(x, xi, y, yi, n, mean, scale, weight, bias, a, past):
    """Normalise a run in float32; weights and biases begin at affine index `a`."""


@variant(_in_float32)
def _in_float32_of(x, xi, y, yi, n, mean, scale, weight, bias, a, past):
    if not is_held(x.dtype):
        return lambda x, xi, y, yi, n, mean, scale, weight, bias, a, past: None  # noqa: ARG005
    return lambda x, xi, y, yi, n, mean, scale, weight, bias, a, past: _by_sixteen(
        x, xi, y, yi, n, mean, scale, weight, bias, a, past
    )


def _step(x, values, factor, second, shift, weight, bias):
    """Sixteen results, with what `float32_parts` tells."""


@variant(_step)
def _step_of(x, values, factor, second, shift, weight, bias):
    if isinstance(x.dtype, types.Record):
        return lambda x, values, factor, second, shift, weight, bias: moved_twice(values, second, factor, shift, weight, bias)  # noqa: ARG005
    return lambda x, values, factor, second, shift, weight, bias: affine_twice(values, factor, second, shift, weight, bias)  # noqa: ARG005


@exact
def _by_sixteen(x, xi, y, yi, n, mean, scale, weight, bias, a, past):
    factor, second, shift = float32_parts(x, mean, scale)
    f = sixteens.fill(factor)
    r = sixteens.fill(second)
    s = sixteens.fill(shift)
    i = 0
    end = before_lines(y, yi, n, past or n >= LONG)
    while i < n:
        while i < end:
            k = least(COUNT, end - i)
            w = sixteens.load_first(weight, a, i, k)
            b = sixteens.load_first(bias, a, i, k)
            sixteens.save_first(y, yi, i, k, _step(x, sixteens.load_first(x, xi, i, k), f, r, s, w, b))
            i += k
        whole = whole_steps(y, n - i, COUNT, past)
        for j in range(i, i + whole, COUNT):
            w = sixteens.load(weight, a, j)
            b = sixteens.load(bias, a, j)
            sixteens.write(y, yi, j, _step(x, sixteens.load(x, xi, j), f, r, s, w, b), past)
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
