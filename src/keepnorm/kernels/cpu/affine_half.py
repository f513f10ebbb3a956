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

from keepnorm.kernels.columns import AFFINE, INNER_AFFINE, REDUCED_AFFINE
from keepnorm.kernels.cpu import simd
from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.prefetch import before_lines, distance, prefetch, prefetch_write, whole_steps, write_ahead
from keepnorm.kernels.cpu.scalars import bits_to_float, half_to_float, store
from keepnorm.kernels.cpu.simd import deviations, scaled
from keepnorm.kernels.cpu.simd_single import (
    BOTH,
    COUNT,
    fill,
    load,
    load_both,
    load_n,
    moved,
    moved_both,
    store_n,
    write,
    write_both,
)
from keepnorm.kernels.jit.compile import exact, variant

# Rows of the float32 parts of lanes.
HIGH, FACTOR, REST, FIT, PARTS = range(5)

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


def narrow_steps(x, y, plan, outer, weight, bias):
    """Whether the affine step goes through float32: for halves whose weights hold for whole cells.

    It depends on nothing that a memory layout or a batch size could change, so that the bits do not either.
    """


@variant(narrow_steps)
def _narrow_steps(x, y, plan, outer, weight, bias):
    if not _are_halves(x, y):
        return lambda x, y, plan, outer, weight, bias: False  # noqa: ARG005

    def of_whole_cells(x, y, plan, outer, weight, bias):
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
def _run(x, xi, y, yi, n, mean, w, shift, nontemporal):
    high = fill(float32(mean))
    factor = fill(float32(w))
    rest = fill(float32(_rest(mean, w, shift)))
    if n < BOTH:
        for i in range(0, n, COUNT):
            k = least(COUNT, n - i)
            store_n(y, yi, i, k, moved(load_n(x, xi, i, k), high, factor, rest))
        return
    # What is left at the end overlaps the rest, so it is read before anything is written: y may be x itself.
    end = moved_both(load_both(x, xi, n - BOTH), high, factor, rest)
    head = before_lines(y, yi, n, nontemporal)
    for i in range(0, head, COUNT):
        k = least(COUNT, head - i)
        store_n(y, yi, i, k, moved(load_n(x, xi, i, k), high, factor, rest))
    ahead = distance(x, n)
    free = write_ahead(y, nontemporal)
    stop = head + whole_steps(y, n - head, BOTH, nontemporal)
    for i in range(head, stop, BOTH):
        if ahead != 0:
            prefetch(x, xi + ahead + i)
        if free != 0:
            prefetch_write(y, yi + free + i)
        write_both(y, yi, i, moved_both(load_both(x, xi, i), high, factor, rest), nontemporal)
    if stop < n:
        write_both(y, yi, n - BOTH, end, False)


def narrow_run(x, xi, y, yi, n, mean, w, shift, nontemporal):
    """Normalise a contiguous run of halves with one factor and one shift."""


@variant(narrow_run)
def _narrow_run(x, xi, y, yi, n, mean, w, shift, nontemporal):
    if _are_halves(x, y):
        return lambda x, xi, y, yi, n, mean, w, shift, nontemporal: _run(x, xi, y, yi, n, mean, w, shift, nontemporal)
    return lambda x, xi, y, yi, n, mean, w, shift, nontemporal: None  # noqa: ARG005


def set_parts(x, mean, w, shift, parts):
    """Work out the float32 parts of cells from their means, factors and shifts, and 1.0 where they fit; say if all do."""


@variant(set_parts)
def _set_parts_of(x, mean, w, shift, parts):
    if isinstance(x.dtype, types.Record):
        return lambda x, mean, w, shift, parts: _set_parts(mean, w, shift, parts)  # noqa: ARG005
    return lambda x, mean, w, shift, parts: False  # noqa: ARG005


@exact
def _set_parts(mean, w, shift, parts):
    every = True
    for k in range(mean.size):
        parts[HIGH, k] = float32(mean[k])
        parts[FACTOR, k] = float32(w[k])
        parts[REST, k] = float32(_rest(mean[k], w[k], shift[k]))
        own = _fits(mean[k], w[k], shift[k])
        parts[FIT, k] = float32(1.0 if own else 0.0)
        every &= own
    return every


@exact
def _moved_lanes(values, parts, lane, j):
    return moved(values, load(parts[HIGH], lane, j), load(parts[FACTOR], lane, j), load(parts[REST], lane, j))


@exact
def _rows(x, xi, y, yi, n, full, parts, nontemporal):
    # Read before anything is written, as in `_run`.
    end = _moved_lanes(load(x, xi, n - COUNT), parts, (n - COUNT) % full, 0)
    ahead = distance(x, n)
    free = write_ahead(y, nontemporal)
    lane = i = 0
    head = before_lines(y, yi, n, nontemporal)
    while i < head:
        k = least(COUNT, head - i)
        lane -= full if lane >= full else 0
        store_n(y, yi, i, k, _moved_lanes(load_n(x, xi, i, k), parts, lane, 0))
        i += k
        lane += k
    stop = i + whole_steps(y, n - i, COUNT, nontemporal)
    while i < stop:
        lane -= full if lane >= full else 0
        whole = least((full - lane + COUNT - 1) // COUNT, (stop - i) // COUNT) * COUNT
        for j in range(0, whole, COUNT):
            if ahead != 0:
                prefetch(x, xi + i + ahead + j)
            if free != 0:
                prefetch_write(y, yi + i + free + j)
            write(y, yi + i, j, _moved_lanes(load(x, xi + i, j), parts, lane, j), nontemporal)
        i += whole
        lane += whole
    if i + COUNT < n:
        lane -= full if lane >= full else 0
        write(y, yi, i, _moved_lanes(load(x, xi, i), parts, lane, 0), False)
    if i < n:
        write(y, yi, n - COUNT, end, False)


def mixed_row(x, xi, y, yi, n, centre, w, shift, parts):
    """Normalise a row of halves of which some lanes fit: these with their parts, the others in float64."""


@variant(mixed_row)
def _mixed_row_of(x, xi, y, yi, n, centre, w, shift, parts):
    if not _are_halves(x, y):
        return lambda x, xi, y, yi, n, centre, w, shift, parts: None  # noqa: ARG005
    return lambda x, xi, y, yi, n, centre, w, shift, parts: _mixed_row(x, xi, y, yi, n, centre, w, shift, parts)


@exact
def _mixed_row(x, xi, y, yi, n, centre, w, shift, parts):
    for i in range(n):
        if parts[FIT, i] != 0.0:
            store(y, yi + i, _fma(_single(x[xi + i]) - parts[HIGH, i], parts[FACTOR, i], parts[REST, i]))
        else:
            d = deviations(simd.load_n(x, xi, i, 1), simd.load(centre, 0, i))
            simd.store_n(y, yi, i, 1, scaled(d, simd.load(w, 0, i), simd.load(shift, 0, i)))


def narrow_rows(x, xi, y, yi, n, full, parts, nontemporal):
    """Normalise n halves, rows of `full` lanes that follow each other, with parts that fit; one row if it has few lanes."""


@variant(narrow_rows)
def _narrow_rows(x, xi, y, yi, n, full, parts, nontemporal):
    if not _are_halves(x, y):
        return lambda x, xi, y, yi, n, full, parts, nontemporal: None  # noqa: ARG005

    def rows(x, xi, y, yi, n, full, parts, nontemporal):
        if n < COUNT:
            store_n(y, yi, 0, n, _moved_lanes(load_n(x, xi, 0, n), parts, 0, 0))
        else:
            _rows(x, xi, y, yi, n, full, parts, nontemporal)

    return rows
