"""The affine step of float16 and bfloat16 in float32: no conversion to float64, and twice the values in a vector.

With the mean as ``high + low``, `high` a float32::

    (x - mean) * w + bias = fma(x - high, w, bias - low * w)

The difference is exact where the mean is large beside it (Sterbenz), so that the offset of the data costs no digit. The
error is about 2^-23 of max(|y|, |bias|), a thousandth of the last place of a half; for results of float32 it would be a whole
place, so that those stay with float64. So does a cell whose bias is so large that y may lose its digits where terms cancel.
"""

from numba import types
from numba.extending import intrinsic
from numpy import float32, uint32

from keepnorm.kernels.compile import exact, variant
from keepnorm.kernels.scalars import (
    AFFINE,
    INNER_AFFINE,
    REDUCED_AFFINE,
    bits_to_float,
    half_to_float,
    store,
)
from keepnorm.kernels.vector import deviations, load, load_first, save_first, scaled

# x - high must not overflow, nor w lose its digits, and 2^-23 of the bias must be far below the last place of a result near 1.
MOST_MEAN = 2.0**103
LEAST_FACTOR = 2.0**-60
MOST_FACTOR = 2.0**100
MOST_BIAS = 2.0**8


@intrinsic
def _fma(typing, a, b, c):
    """a * b + c, rounded once."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def _single(value):
    """A float16 or a bfloat16 as float32."""


@variant(_single)
def _to_single(value):
    if "float16" in value.fields:
        return lambda value: half_to_float(value.float16)
    return lambda value: bits_to_float(uint32(value.bfloat16) << uint32(16))


def _are_halves(x, y):
    return isinstance(x.dtype, types.Record) and isinstance(y.dtype, types.Record)


def narrow_steps(x, y, plan, outer):
    """Whether the affine step goes through float32: for halves whose weights hold for whole cells.

    It depends on nothing that a memory layout or a batch size could change, so that the bits do not either.
    """


@variant(narrow_steps)
def _narrow_steps(x, y, plan, outer):
    if not _are_halves(x, y):
        return lambda x, y, plan, outer: False  # noqa: ARG005

    def of_whole_cells(x, y, plan, outer):
        whole = plan[INNER_AFFINE] == 0 and plan[REDUCED_AFFINE] == 0
        for a in range(outer.shape[0]):
            whole &= outer[a, AFFINE] == 0
        return whole

    return of_whole_cells


@exact
def _rest(mean, w, shift):
    """What is left of the shift once x has lost the mean as a float32."""
    return shift - (mean - float32(mean)) * w


def fits(x, y, mean, w, shift):
    """Whether float32 is enough for the affine step of a cell from x to y: of halves, by the cell's own values."""


@variant(fits)
def _fits_values(x, y, mean, w, shift):
    if _are_halves(x, y):
        return lambda x, y, mean, w, shift: _fits(mean, w, shift)  # noqa: ARG005
    return lambda x, y, mean, w, shift: False  # noqa: ARG005


@exact
def _fits(mean, w, shift):
    """Whether float32 is enough for a cell: a matter of its own values, never of the cells beside it."""
    size = abs(w)
    usual = size == 0.0 or LEAST_FACTOR <= size <= MOST_FACTOR
    return abs(mean) < MOST_MEAN and usual and abs(_rest(mean, w, shift)) <= MOST_BIAS


@exact
def _run(x, xi, y, yi, n, mean, w, shift):
    high = float32(mean)
    factor = float32(w)
    rest = float32(_rest(mean, w, shift))
    source = x[xi : xi + n]
    target = y[yi : yi + n]
    for i in range(n):
        store(target, i, _fma(_single(source[i]) - high, factor, rest))


def narrow_run(x, xi, y, yi, n, mean, w, shift):
    """Normalise a contiguous run of halves with one factor and one shift."""


@variant(narrow_run)
def _narrow_run(x, xi, y, yi, n, mean, w, shift):
    if _are_halves(x, y):
        return lambda x, xi, y, yi, n, mean, w, shift: _run(x, xi, y, yi, n, mean, w, shift)
    return lambda x, xi, y, yi, n, mean, w, shift: None  # noqa: ARG005


def set_parts(x, mean, w, shift, high, factor, rest, fit):
    """Work out the float32 parts of every lane from its mean, factor and shift, and 1.0 where they fit; say if all do."""


@variant(set_parts)
def _set_parts_of(x, mean, w, shift, high, factor, rest, fit):
    if isinstance(x.dtype, types.Record):
        return lambda x, mean, w, shift, high, factor, rest, fit: _set_parts(mean, w, shift, high, factor, rest, fit)  # noqa: ARG005
    return lambda x, mean, w, shift, high, factor, rest, fit: False  # noqa: ARG005


@exact
def _set_parts(mean, w, shift, high, factor, rest, fit):
    every = True
    for i in range(high.size):
        high[i] = float32(mean[i])
        factor[i] = float32(w[i])
        rest[i] = float32(_rest(mean[i], w[i], shift[i]))
        own = _fits(mean[i], w[i], shift[i])
        fit[i] = float32(1.0 if own else 0.0)
        every &= own
    return every


@exact
def _row(x, xi, y, yi, n, high, factor, rest):
    source = x[xi : xi + n]
    target = y[yi : yi + n]
    for i in range(n):
        store(target, i, _fma(_single(source[i]) - high[i], factor[i], rest[i]))


@exact
def _mixed_row(x, xi, y, yi, n, centre, w, shift, high, factor, rest, fit):
    for i in range(n):
        if fit[i] != 0.0:
            store(y, yi + i, _fma(_single(x[xi + i]) - high[i], factor[i], rest[i]))
        else:
            d = deviations(load_first(x, xi, i, 1), load(centre, 0, i))
            save_first(y, yi, i, 1, scaled(d, load(w, 0, i), load(shift, 0, i)))


def narrow_row(x, xi, y, yi, n, centre, w, shift, high, factor, rest, fit, every):
    """Normalise one row of halves, each lane with the parts that `set_parts` has written, if they fit."""


@variant(narrow_row)
def _narrow_row(x, xi, y, yi, n, centre, w, shift, high, factor, rest, fit, every):
    if not _are_halves(x, y):
        return lambda x, xi, y, yi, n, centre, w, shift, high, factor, rest, fit, every: None  # noqa: ARG005

    def row(x, xi, y, yi, n, centre, w, shift, high, factor, rest, fit, every):
        if every:
            _row(x, xi, y, yi, n, high, factor, rest)
        else:
            _mixed_row(x, xi, y, yi, n, centre, w, shift, high, factor, rest, fit)

    return row
