"""The affine step in float64, eight values at once.

For a cell with a mean, a factor w and a shift::

    (x - mean) * w + shift = x * w + (shift - mean * w)

The right side has no subtraction and no mean to load. In float64 it costs a narrow result no digit while ``|mean * w|`` is
below 2^20: 2^-33, a thousandth of a place. Where it is larger, and for values and results of 64 bits, the mean is subtracted
first. Which of both is a matter of the cell's own values, and with a mean of 0 the left side has the bits of the right one.
What is called `centre` here is 0 for a cell whose mean has gone into its shift, else its mean.
"""

from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.prefetch import (
    before_lines,
    distance,
    prefetch,
    prefetch_ahead,
    prefetch_write,
    prefetch_write_ahead,
    whole_steps,
    write_ahead,
)
from keepnorm.kernels.cpu.simd import (
    FOLDED,
    WIDTH,
    deviations,
    fill,
    fold_into,
    load,
    load_n,
    scaled,
    store_n,
    uncentred,
    write,
)
from keepnorm.kernels.jit.compile import exact, variant

# Lanes whose factors and shifts stay in registers where rows are a part of as many.
SPAN = 8 * WIDTH


def folds(x, y):
    """Whether a mean may go into the shift on the way from x to y."""


@variant(folds)
def _folds(x, y):
    answer = fold_into(x.dtype, y.dtype)
    return lambda x, y: answer  # noqa: ARG005


@exact
def fold(x, y, mean, w, shift):
    """The centre and the shift of a cell."""
    product = mean * w
    if folds(x, y) and -FOLDED < product < FOLDED:
        return 0.0, shift - product
    return mean, shift


@exact
def fold_lanes(x, y, n, mean, w, shift, centre):
    """The same for n lanes, the shifts in place; say whether every mean has gone."""
    every = folds(x, y)
    for i in range(n):
        centre[i], shift[i] = fold(x, y, mean[i], w[i], shift[i])
        every &= centre[i] == 0.0
    return every


@exact
def scale_run(x, xi, y, yi, n, centre, w, shift, nontemporal):
    """Normalise a run with one factor and one shift."""
    m = fill(centre)
    f = fill(w)
    b = fill(shift)
    ahead = distance(x, n)
    free = write_ahead(y, nontemporal)
    i = 0
    end = before_lines(y, yi, n, nontemporal)
    while i < n:
        while i < end:
            k = least(WIDTH, end - i)
            store_n(y, yi, i, k, scaled(deviations(load_n(x, xi, i, k), m), f, b))
            i += k
        whole = whole_steps(y, n - i, WIDTH, nontemporal)
        for j in range(i, i + whole, WIDTH):
            if ahead != 0:
                prefetch(x, xi + ahead + j)
            if free != 0:
                prefetch_write(y, yi + free + j)
            write(y, yi, j, scaled(deviations(load(x, xi, j), m), f, b), nontemporal)
        i += whole
        end = n


@exact
def scale_spans(x, xi, y, yi, spans, w, shift, lane, nontemporal):
    """Normalise spans of SPAN values with the factors and shifts of as many lanes, from `lane` on."""
    zero = fill(0.0)
    w0 = load(w, lane, 0)
    b0 = load(shift, lane, 0)
    w1 = load(w, lane, WIDTH)
    b1 = load(shift, lane, WIDTH)
    w2 = load(w, lane, 2 * WIDTH)
    b2 = load(shift, lane, 2 * WIDTH)
    w3 = load(w, lane, 3 * WIDTH)
    b3 = load(shift, lane, 3 * WIDTH)
    w4 = load(w, lane, 4 * WIDTH)
    b4 = load(shift, lane, 4 * WIDTH)
    w5 = load(w, lane, 5 * WIDTH)
    b5 = load(shift, lane, 5 * WIDTH)
    w6 = load(w, lane, 6 * WIDTH)
    b6 = load(shift, lane, 6 * WIDTH)
    w7 = load(w, lane, 7 * WIDTH)
    b7 = load(shift, lane, 7 * WIDTH)
    ahead = distance(x, spans * SPAN)
    free = write_ahead(y, nontemporal)
    for _ in range(spans):
        if ahead != 0:
            prefetch_ahead(x, xi + ahead, 0, 1, SPAN)
        if free != 0:
            prefetch_write_ahead(y, yi + free, SPAN)
        write(y, yi, 0, scaled(uncentred(load(x, xi, 0), zero, y), w0, b0), nontemporal)
        write(y, yi, WIDTH, scaled(uncentred(load(x, xi, WIDTH), zero, y), w1, b1), nontemporal)
        write(y, yi, 2 * WIDTH, scaled(uncentred(load(x, xi, 2 * WIDTH), zero, y), w2, b2), nontemporal)
        write(y, yi, 3 * WIDTH, scaled(uncentred(load(x, xi, 3 * WIDTH), zero, y), w3, b3), nontemporal)
        write(y, yi, 4 * WIDTH, scaled(uncentred(load(x, xi, 4 * WIDTH), zero, y), w4, b4), nontemporal)
        write(y, yi, 5 * WIDTH, scaled(uncentred(load(x, xi, 5 * WIDTH), zero, y), w5, b5), nontemporal)
        write(y, yi, 6 * WIDTH, scaled(uncentred(load(x, xi, 6 * WIDTH), zero, y), w6, b6), nontemporal)
        write(y, yi, 7 * WIDTH, scaled(uncentred(load(x, xi, 7 * WIDTH), zero, y), w7, b7), nontemporal)
        xi += SPAN
        yi += SPAN


@exact
def scale_rows(x, xi, y, yi, n, width, full, centre, w, shift, folded, nontemporal):
    """Normalise n values, rows of `full` lanes that follow each other, each lane with its own centre, factor and shift.

    These come again every `width` lanes.
    """
    i = 0
    lane = 0
    if folds(x, y) and not folded:
        while i < n:
            k = least(WIDTH, n - i)
            d = deviations(load_n(x, xi, i, k), load(centre, lane, 0))
            store_n(y, yi, i, k, scaled(d, load(w, lane, 0), load(shift, lane, 0)))
            i += WIDTH
            lane += WIDTH
            lane -= full if lane >= full else 0
        return
    end = before_lines(y, yi, n, nontemporal)
    ahead = distance(x, n)
    free = write_ahead(y, nontemporal)
    while i < n:
        while i < end:
            k = least(WIDTH, end - i)
            lane -= full if lane >= full else 0
            d = uncentred(load_n(x, xi, i, k), load(centre, lane, 0), y)
            store_n(y, yi, i, k, scaled(d, load(w, lane, 0), load(shift, lane, 0)))
            i += k
            lane += k
        stop = i + whole_steps(y, n - i, WIDTH, nontemporal)
        if folded and full >= SPAN and SPAN % width == 0:
            spans = (stop - i) // SPAN
            scale_spans(x, xi + i, y, yi + i, spans, w, shift, lane, nontemporal)
            i += spans * SPAN
        while i < stop:
            lane -= full if lane >= full else 0
            whole = least((full - lane + WIDTH - 1) // WIDTH, (stop - i) // WIDTH) * WIDTH
            for j in range(0, whole, WIDTH):
                if ahead != 0:
                    prefetch(x, xi + i + ahead + j)
                if free != 0:
                    prefetch_write(y, yi + i + free + j)
                d = uncentred(load(x, xi + i, j), load(centre, lane, j), y)
                write(y, yi + i, j, scaled(d, load(w, lane, j), load(shift, lane, j)), nontemporal)
            i += whole
            lane += whole
        end = n
