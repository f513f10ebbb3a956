"""Kernels for plans whose innermost axis is reduced: runs of one cell, summed in registers.

Neighbouring cells go together, position by position: their runs lie side by side, and a piece of memory of some pages is read
twice as fast as as many short runs a row apart. Where a cell is a single run, the division and the root of one cell
overlap with those of the others. A cell's sums do not depend on who goes with it.
"""

import numpy as np

from keepnorm.kernels.columns import (
    AFFINE,
    APPLY,
    BASE_X,
    BASE_Y,
    BEHIND,
    BLOCKS,
    CELL,
    CELLS_OUTSIDE,
    FORWARD,
    INNER,
    INNER_AFFINE,
    INNER_X,
    INNER_Y,
    LOW,
    M2,
    MEAN,
    MERGE,
    MOMENTS,
    NEIGHBOURS,
    PIECES,
    POSITIONS,
    ROWS,
    SCALE,
    SIZE,
    STATES,
    X,
    Y,
)
from keepnorm.kernels.cpu.affine import fold, scale_run
from keepnorm.kernels.cpu.affine_half import fits, narrow_run, narrow_steps
from keepnorm.kernels.cpu.integers import least, most
from keepnorm.kernels.cpu.prefetch import distance_of_sums, fence, gathered, prefetch, prefetch_ahead, put, streams
from keepnorm.kernels.cpu.scalars import block_bounds, copy_states, is_narrow, merge_blocks, offset, set_state
from keepnorm.kernels.cpu.scale import set_centers
from keepnorm.kernels.cpu.scratch import allocate, have, release
from keepnorm.kernels.cpu.shift import first_shift, is_outlier, next_shift
from keepnorm.kernels.cpu.simd import WIDTH, differences, fill, first, fma, load_both, load_n, total, unless
from keepnorm.kernels.jit.compile import exact
from keepnorm.tuning import LINE

# Rows of the scratch array of a group of cells.
SHIFT, SUM, SQUARES = range(3)


@exact
def run_sums(x, start, n, shift, ahead):
    """Sum x - K and (x - K)^2 over a run, and ask for x so many values `ahead`, if any."""
    k = fill(shift)
    plain = shift == 0.0
    s = s2 = q = q2 = fill(0.0)
    i = 0
    while i + 2 * WIDTH <= n:
        if ahead != 0:
            prefetch(x, start + ahead + i)
        one, other = load_both(x, start, i)
        d = unless(plain, one, k)
        e = unless(plain, other, k)
        s += d
        s2 += e
        q = fma(d, d, q)
        q2 = fma(e, e, q2)
        i += 2 * WIDTH
    while i < n:
        d = first(differences(load_n(x, start, i, n - i), k), n - i)
        s += d
        q = fma(d, d, q)
        i += WIDTH
    return total(s + s2), total(q + q2)


@exact
def sweep(x, plan, outer, start, step, b, count, part, at, sums, cells, buffer, again):
    """Sum block b of `count` of the cells that begin `step` apart, and write each state when its last run is read.

    The first time these are all cells, and the shift of each is chosen where its first run is read: a pass of its own over the
    beginnings of runs misleads the prefetcher. What is given back is how many of them had a K too far away. `cells` then tells
    which, the mean of each is its next K, and they are to be summed `again`.
    """
    p0, p1, i0, i1 = block_bounds(plan, b)
    n = i1 - i0
    values = np.float64((p1 - p0) * n)
    first_value = start + i0 * plan[INNER_X]
    ahead = distance_of_sums(x, n) if plan[INNER_X] == 1 else 0
    outliers = 0
    for p in range(p0, p1):
        x0 = first_value + offset(outer, p, X)
        for j in range(count):
            k = cells[j] if again else j
            source, here = gathered(x, x0 + k * step, plan[INNER_X], n, buffer)
            if not again and p == p0:
                sums[SHIFT, k] = first_shift(source, here, 1, n)
            shift = sums[SHIFT, k]
            s, q = run_sums(source, here, n, shift, ahead)
            if p > p0:
                s += sums[SUM, k]
                q += sums[SQUARES, k]
            if p < p1 - 1:
                sums[SHIFT, k] = shift
                sums[SUM, k] = s
                sums[SQUARES, k] = q
                continue
            set_state(x, part, at + k, values, shift, s, q)
            if is_outlier(x, q, part[M2, at + k]):
                sums[SHIFT, k] = next_shift(x, part, at + k, True)
                cells[outliers] = k
                outliers += 1
    return outliers


@exact
def block(x, plan, outer, start, step, b, count, part, at, sums, cells, buffer):
    """Write the states of block b of `count` cells to `part`, from `at` on; the cells begin `step` apart, from `start` on."""
    for again in range(2):
        count = sweep(x, plan, outer, start, step, b, count, part, at, sums, cells, buffer, again == 1)
        if count == 0:
            break


@exact
def scale_piece(x, xi, y, yi, n, plan, outer, state, k, weight, bias, a, narrow, nontemporal):
    """The affine step on a piece of a run of cell k, all of which has the weight and the bias of affine index `a`."""
    mean = state[MEAN, k]
    w = state[SCALE, k] * weight[a]
    shift = bias[a] - state[LOW, k] * w
    if narrow and fits(x, y, mean, w, shift):
        narrow_run(x, xi, y, yi, n, mean, w, shift, nontemporal)
    else:
        centre, shift = fold(x, y, mean, w, shift)
        scale_run(x, xi, y, yi, n, centre, w, shift, nontemporal)


def kernel(learn, scale):
    """The function `tasks` of kernels for runs, whose affine step on a piece of a run is `scale`, with what `learn` tells."""

    @exact
    def apply(x, y, plan, kept, outer, cell, cells, p0, p1, i0, i1, state, weight, bias, known, buffer, line, behind):
        """The affine step on the steps [i0, i1) of the runs at the outer positions [p0, p1) of neighbouring cells."""
        home = offset(kept, cell, CELL)
        x_step = plan[INNER_X]
        y_step = plan[INNER_Y]
        affine_step = plan[INNER_AFFINE]
        x_start = plan[BASE_X] + offset(kept, cell, X) + i0 * x_step
        y_start = plan[BASE_Y] + offset(kept, cell, Y) + i0 * y_step
        affine_start = offset(kept, cell, AFFINE) + i0 * affine_step
        last = kept.shape[0] - 1
        n = i1 - i0
        dense = line.size == 0 and x_step == 1
        nontemporal = line.size == 0 and streams(y, plan[INNER])
        for p in range(p0, p1):
            x0 = x_start + offset(outer, p, X)
            y0 = y_start + offset(outer, p, Y)
            a = affine_start + offset(outer, p, AFFINE)
            for k in range(home, home + cells):
                if behind:
                    prefetch_ahead(x, x0 + cells * n, 0, 1, n)
                if dense:
                    scale(x, x0, y, y0, n, plan, outer, state, k, weight, bias, a, known, nontemporal)
                for i in range(0, 0 if dense else n, LINE):
                    m = least(LINE, n - i)
                    source, xi = gathered(x, x0 + i * x_step, x_step, m, buffer)
                    target, yi = (y, y0 + i) if line.size == 0 else (line, 0)
                    first = a + i * affine_step
                    scale(source, xi, target, yi, m, plan, outer, state, k, weight, bias, first, known, nontemporal)
                    put(line, y, y0 + i * y_step, y_step, m)
                x0 += kept[last, X]
                y0 += kept[last, Y]
                a += kept[last, AFFINE]

    @exact
    def tasks(stage, t0, t1, x, y, plan, kept, outer, part, state, weight, bias, eps, center):
        """Run the tasks [t0, t1) of a stage.

        STATES has a task for each block, MERGE for each cell, APPLY for each piece of a run; those of STATES and APPLY are in
        the order of the memory. MOMENTS and FORWARD do all that a cell needs while its data are in the cache. CENTERS takes
        the states as given, and only works out mean and scale.
        """
        blocks = plan[BLOCKS]
        pieces = plan[PIECES] if stage == STATES or stage == APPLY else 1
        outside = plan[CELLS_OUTSIDE]
        last = kept.shape[0] - 1
        neighbours = kept[last, SIZE]
        step = kept[last, X]
        together = plan[NEIGHBOURS] if pieces == 1 and stage != MERGE else 1
        # Nothing to merge: the states are written where they stay.
        in_place = (stage == MOMENTS or stage == FORWARD) and blocks == 1
        behind = stage == FORWARD and plan[BEHIND] != 0
        buffer = allocate((0 if plan[INNER_X] == 1 else most(LINE, plan[ROWS]),), x.dtype)
        group_sums = allocate((3, together), np.float64)
        group_cells = allocate((together,), np.int64)
        own = allocate((blocks if stage >= MOMENTS else 1, 4, 0 if in_place else together), np.float64)
        line = allocate((0 if plan[INNER_Y] == 1 else LINE,), y.dtype)
        known = learn(x, y, plan, outer, weight, bias)
        ready = have((buffer, group_sums, group_cells, own, line))
        t = t0 if ready else t1
        while t < t1:
            run = t // pieces
            position = run // outside if stage == STATES or stage == APPLY else 0
            cell = run - position * outside
            cells = least(together, least(t1 - t, neighbours - cell % neighbours))
            home = offset(kept, cell, CELL)
            if stage == STATES or stage == MOMENTS or stage == FORWARD:
                start = plan[BASE_X] + offset(kept, cell, X)
                b0 = position * pieces + t - run * pieces
                for b in range(b0, b0 + 1 if stage == STATES else blocks):
                    target, at = (state, home) if in_place else (own[b - b0], 0)
                    block(x, plan, outer, start, step, b, cells, target, at, group_sums, group_cells, buffer)
                if stage == STATES:
                    for k in range(cells):
                        for row in range(4):
                            part[(cell + k) * blocks + b0, row, 0] = own[0, row, k]
            if stage == MERGE or ((stage == MOMENTS or stage == FORWARD) and not in_place):
                states = part if stage == MERGE else own
                merged = t * blocks if stage == MERGE else 0
                merge_blocks(states, merged, blocks, cells)
                copy_states(states[merged], state, home, cells)
            if stage != STATES and stage != APPLY:
                set_centers(state, home, cells, eps, center, is_narrow(y), state[MEAN], state[LOW], state[SCALE], home)
            if stage == APPLY or stage == FORWARD:
                p0 = position
                p1 = position + 1 if stage == APPLY else plan[POSITIONS]
                i0 = (t - run * pieces) * plan[ROWS]
                i1 = least(i0 + plan[ROWS], plan[INNER]) if stage == APPLY else plan[INNER]
                apply(x, y, plan, kept, outer, cell, cells, p0, p1, i0, i1, state, weight, bias, known, buffer, line, behind)
            t += cells
        fence()
        release((buffer, group_sums, group_cells, own, line))
        return 0 if ready else 1

    return tasks


tasks = kernel(narrow_steps, scale_piece)
