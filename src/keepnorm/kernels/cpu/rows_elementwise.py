"""Kernels for rows whose values have weights of their own; the formulas are those of affine_elementwise.py."""

from numba import types

from keepnorm.kernels.columns import LOW, MEAN, OWN, SCALE
from keepnorm.kernels.cpu import simd_single
from keepnorm.kernels.cpu.affine_elementwise import float32_is_enough, float32_parts, is_held, largest_mean
from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.prefetch import before_lines, before_steps, prefetch_write, whole_steps, write_ahead
from keepnorm.kernels.cpu.rows import kernel
from keepnorm.kernels.cpu.simd import WIDTH, deviations, fill, floats, fold_values, load, load_n, scaled, store_n, write
from keepnorm.kernels.cpu.simd_single import COUNT, affine_twice, moved_twice
from keepnorm.kernels.jit.compile import exact, variant
from keepnorm.tuning import ALIGNED_RUN


def _in_float32(x, xi, y, yi, n, mean, scale, weight, bias, a, nontemporal):
    """Normalise a run in float32; weights and biases begin at affine index `a`."""


@variant(_in_float32)
def _in_float32_of(x, xi, y, yi, n, mean, scale, weight, bias, a, nontemporal):
    if not is_held(x.dtype):
        return lambda x, xi, y, yi, n, mean, scale, weight, bias, a, nontemporal: None  # noqa: ARG005
    return lambda x, xi, y, yi, n, mean, scale, weight, bias, a, nontemporal: _by_sixteen(
        x, xi, y, yi, n, mean, scale, weight, bias, a, nontemporal
    )


def _step(x, values, factor, second, shift, weight, bias):
    """Sixteen results, with what `float32_parts` tells."""


@variant(_step)
def _step_of(x, values, factor, second, shift, weight, bias):
    if isinstance(x.dtype, types.Record):
        return lambda x, values, factor, second, shift, weight, bias: moved_twice(values, second, factor, shift, weight, bias)  # noqa: ARG005
    return lambda x, values, factor, second, shift, weight, bias: affine_twice(values, factor, second, shift, weight, bias)  # noqa: ARG005


@exact
def _sixteen(x, xi, i, f, r, s, weight, bias, a):
    """The results of sixteen values."""
    return _step(x, simd_single.load(x, xi, i), f, r, s, simd_single.load(weight, a, i), simd_single.load(bias, a, i))


@exact
def _part(x, xi, y, yi, i, k, f, r, s, weight, bias, a):
    """Normalise k values, sixteen at most."""
    w = simd_single.load_n(weight, a, i, k)
    b = simd_single.load_n(bias, a, i, k)
    simd_single.store_n(y, yi, i, k, _step(x, simd_single.load_n(x, xi, i, k), f, r, s, w, b))


@exact
def _by_sixteen(x, xi, y, yi, n, mean, scale, weight, bias, a, nontemporal):
    factor, second, shift = float32_parts(x, mean, scale)
    f = simd_single.fill(factor)
    r = simd_single.fill(second)
    s = simd_single.fill(shift)
    if nontemporal or n < ALIGNED_RUN:
        i = before_lines(y, yi, n, nontemporal)
        for j in range(0, i, COUNT):
            _part(x, xi, y, yi, j, least(COUNT, i - j), f, r, s, weight, bias, a)
        stop = i + whole_steps(y, n - i, COUNT, nontemporal)
        for j in range(i, stop, COUNT):
            simd_single.write(y, yi, j, _sixteen(x, xi, j, f, r, s, weight, bias, a), nontemporal)
        for j in range(stop, n, COUNT):
            _part(x, xi, y, yi, j, least(COUNT, n - j), f, r, s, weight, bias, a)
        return
    # The ends overlap what lies between them. They are read before that is written: y may be x itself.
    i = before_steps(y, yi, COUNT)
    start = _sixteen(x, xi, 0, f, r, s, weight, bias, a)
    end = _sixteen(x, xi, n - COUNT, f, r, s, weight, bias, a)
    if i > 0:
        behind = _sixteen(x, xi, i, f, r, s, weight, bias, a)
        simd_single.write(y, yi, 0, start, False)
        simd_single.write(y, yi, i, behind, False)
        i += COUNT
    stop = i + whole_steps(y, n - i, COUNT, False)
    free = write_ahead(y, False)
    if free == 0:
        for j in range(i, stop, COUNT):
            simd_single.write(y, yi, j, _sixteen(x, xi, j, f, r, s, weight, bias, a), False)
    else:
        for j in range(i, stop, COUNT):
            prefetch_write(y, yi + free + j)
            simd_single.write(y, yi, j, _sixteen(x, xi, j, f, r, s, weight, bias, a), False)
    if stop < n:
        simd_single.write(y, yi, n - COUNT, end, False)


@exact
def _in_float64(x, xi, y, yi, n, mean, scale, shift, weight, bias, a, nontemporal):
    """The same in float64, with what the mean has lost as a shift."""
    m = fill(mean)
    f = fill(scale)
    s = fill(shift)
    i = 0
    end = before_lines(y, yi, n, nontemporal)
    while i < n:
        while i < end:
            k = least(WIDTH, end - i)
            d = scaled(deviations(load_n(x, xi, i, k), m), f, s)
            store_n(y, yi, i, k, scaled(d, floats(load_n(weight, a, i, k)), floats(load_n(bias, a, i, k))))
            i += k
        whole = whole_steps(y, n - i, WIDTH, nontemporal)
        for j in range(i, i + whole, WIDTH):
            d = scaled(deviations(load(x, xi, j), m), f, s)
            write(y, yi, j, scaled(d, floats(load(weight, a, j)), floats(load(bias, a, j))), nontemporal)
        i += whole
        end = n


@exact
def _folded(values, mean, scale, low, weight, bias, y):
    """Eight results by the formula of affine.py, which other layouts take: there a run or a lane has one weight."""
    w = scale * weight
    centre, shift = fold_values(values, mean, w, bias - low * w, y)
    return scaled(deviations(values, centre), w, shift)


@exact
def _in_float64_folded(x, xi, y, yi, n, mean, scale, low, weight, bias, a, nontemporal):
    """The same for weights that differ between cells."""
    m = fill(mean)
    f = fill(scale)
    e = fill(low)
    i = 0
    end = before_lines(y, yi, n, nontemporal)
    while i < n:
        while i < end:
            k = least(WIDTH, end - i)
            w = floats(load_n(weight, a, i, k))
            b = floats(load_n(bias, a, i, k))
            store_n(y, yi, i, k, _folded(load_n(x, xi, i, k), m, f, e, w, b, y))
            i += k
        whole = whole_steps(y, n - i, WIDTH, nontemporal)
        for j in range(i, i + whole, WIDTH):
            w = floats(load(weight, a, j))
            b = floats(load(bias, a, j))
            write(y, yi, j, _folded(load(x, xi, j), m, f, e, w, b, y), nontemporal)
        i += whole
        end = n


@exact
def scale_piece(x, xi, y, yi, n, plan, outer, state, k, weight, bias, a, largest, nontemporal):
    """The affine step on a piece of a run of cell k, with the weights and biases from affine index `a` on."""
    mean = state[MEAN, k]
    scale = state[SCALE, k]
    if float32_is_enough(state, k, largest):
        _in_float32(x, xi, y, yi, n, mean, scale, weight, bias, a, nontemporal)
    elif plan[OWN] != 0:
        _in_float64(x, xi, y, yi, n, mean, scale, -state[LOW, k] * scale, weight, bias, a, nontemporal)
    else:
        _in_float64_folded(x, xi, y, yi, n, mean, scale, state[LOW, k], weight, bias, a, nontemporal)


tasks = kernel(largest_mean, scale_piece)
