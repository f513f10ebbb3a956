"""Kernels for plans whose innermost axis is reduced: runs of one cell, summed in registers.

Neighbouring cells go together, position by position: their runs lie side by side, and a piece of memory of some pages is read
twice as fast as as many short runs a row apart. Where a cell is a single run, the division and the root of one cell
overlap with those of the others. A cell's sums do not depend on who goes with it.
"""

import numpy as np

from keepnorm.kernels.affine import fold, scale_run
from keepnorm.kernels.centres import set_centers
from keepnorm.kernels.compile import exact
from keepnorm.kernels.halves import fits, narrow_run, narrow_steps
from keepnorm.kernels.integers import least, most
from keepnorm.kernels.scalars import (
    AFFINE,
    BASE_X,
    BASE_Y,
    BEHIND,
    BLOCKS,
    CELL,
    CELLS_OUTSIDE,
    INNER,
    INNER_AFFINE,
    INNER_X,
    INNER_Y,
    LOW,
    M2,
    MEAN,
    NEIGHBOURS,
    PIECES,
    POSITIONS,
    ROWS,
    SCALE,
    SIZE,
    X,
    Y,
    block_bounds,
    copy_states,
    is_narrow,
    merge_blocks,
    offset,
    set_state,
)
from keepnorm.kernels.scratch import allocate, have, release
from keepnorm.kernels.shifts import first_shift, is_outlier, next_shift
from keepnorm.kernels.traffic import (
    LINE,
    ask,
    ask_ahead,
    distance_of_sums,
    finish,
    gathered,
    put,
    streams,
)
from keepnorm.kernels.vector import (
    WIDTH,
    differences,
    fill,
    first,
    fused,
    load_both,
    load_first,
    total,
    unless,
)

# Rows of the scratch array of a group of cells.
SHIFT, SUM, SQUARES = range(3)


@exact
def run_sums(x, start, n, shift):
    """Sum x - K and (x - K)^2 over a run."""
    k = fill(shift)
    plain = shift == 0.0
    s = s2 = q = q2 = fill(0.0)
    ahead = distance_of_sums(x, n)
    i = 0
    while i + 2 * WIDTH <= n:
        if ahead != 0:
            ask(x, start + ahead + i)
        one, other = load_both(x, start, i)
        d = unless(plain, one, k)
        e = unless(plain, other, k)
        s += d
        s2 += e
        q = fused(d, d, q)
        q2 = fused(e, e, q2)
        i += 2 * WIDTH
    while i < n:
        d = first(differences(load_first(x, start, i, n - i), k), n - i)
        s += d
        q = fused(d, d, q)
        i += WIDTH
    return total(s + s2), total(q + q2)


@exact
def add_runs(x, plan, outer, start, step, b, cells, count, sums, buffer, sweep):
    """Add the runs of block b to the sums of `count` of the cells that begin `step` apart; `cells` tells which.

    The first sweep chooses their shifts, each where its first run is read: a pass of its own over the beginnings of runs
    misleads the prefetcher.
    """
    p0, p1, i0, i1 = block_bounds(plan, b)
    n = i1 - i0
    shift = sums[SHIFT]
    s = sums[SUM]
    q = sums[SQUARES]
    first_value = start + i0 * plan[INNER_X]
    for p in range(p0, p1):
        x0 = first_value + offset(outer, p, X)
        for j in range(count):
            k = cells[j]
            if sweep == 0 and p == p0:
                shift[k] = first_shift(x, x0 + k * step, plan[INNER_X], n)
            source, here = gathered(x, x0 + k * step, plan[INNER_X], n, buffer)
            ds, dq = run_sums(source, here, n, shift[k])
            s[k] += ds
            q[k] += dq


@exact
def pick_outliers(x, part, sums, cells, count):
    """Count the cells whose K was too far away, name them in `cells`, and let their mean be the next K."""
    outliers = 0
    for j in range(count):
        k = cells[j]
        if is_outlier(x, sums[SQUARES, k], part[M2, k]):
            cells[outliers] = k
            sums[SHIFT, k] = next_shift(part, k)
            outliers += 1
    return outliers


@exact
def block(x, plan, outer, start, step, b, count, part, sums, cells, buffer):
    """The states of block b of `count` cells that begin `step` apart, the first at offset `start`."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    n = np.float64((p1 - p0) * (i1 - i0))
    for k in range(count):
        cells[k] = k
    for sweep in range(2):
        for j in range(count):
            sums[SUM, cells[j]] = 0.0
            sums[SQUARES, cells[j]] = 0.0
        add_runs(x, plan, outer, start, step, b, cells, count, sums, buffer, sweep)
        for j in range(count):
            k = cells[j]
            set_state(part, k, n, sums[SHIFT, k], sums[SUM, k], sums[SQUARES, k])
        count = pick_outliers(x, part, sums, cells, count)
        if count == 0:
            break


@exact
def whole_runs(x, start, step, n, count, state, home):
    """The states of `count` cells of one run each, whose runs of n values begin `step` apart; from `home` on.

    As `block` for a single position, in one go: beside a short run that takes half the time.
    """
    for k in range(home, home + count):
        shift = first_shift(x, start, 1, n)
        for _ in range(2):
            s, q = run_sums(x, start, n, shift)
            set_state(state, k, np.float64(n), shift, s, q)
            if not is_outlier(x, q, state[M2, k]):
                break
            shift = next_shift(state, k)
        start += step


@exact
def scale_piece(x, xi, y, yi, n, plan, outer, state, k, weight, bias, a, narrow, past):
    """The affine step on a piece of a run of cell k, all of which has the weight and the bias of affine index `a`."""
    mean = state[MEAN, k]
    w = state[SCALE, k] * weight[a]
    shift = bias[a] - state[LOW, k] * w
    if narrow and fits(x, y, mean, w, shift):
        narrow_run(x, xi, y, yi, n, mean, w, shift, past)
    else:
        centre, shift = fold(x, y, mean, w, shift)
        scale_run(x, xi, y, yi, n, centre, w, shift, past)


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
        past = line.size == 0 and streams(y, plan[INNER])
        for p in range(p0, p1):
            x0 = x_start + offset(outer, p, X)
            y0 = y_start + offset(outer, p, Y)
            a = affine_start + offset(outer, p, AFFINE)
            for k in range(home, home + cells):
                if behind:
                    ask_ahead(x, x0 + cells * n, 0, 1, n)
                if dense:
                    scale(x, x0, y, y0, n, plan, outer, state, k, weight, bias, a, known, past)
                for i in range(0, 0 if dense else n, LINE):
                    m = least(LINE, n - i)
                    source, xi = gathered(x, x0 + i * x_step, x_step, m, buffer)
                    target, yi = (y, y0 + i) if line.size == 0 else (line, 0)
                    first = a + i * affine_step
                    scale(source, xi, target, yi, m, plan, outer, state, k, weight, bias, first, known, past)
                    put(line, y, y0 + i * y_step, y_step, m)
                x0 += kept[last, X]
                y0 += kept[last, Y]
                a += kept[last, AFFINE]

    @exact
    def tasks(stage, t0, t1, x, y, plan, kept, outer, part, state, weight, bias, eps, center):
        """Run the tasks [t0, t1) of a stage.

        Stage 0 (states of blocks) has a task for each block, stage 1 (merge) for each cell, stage 2 (affine step) for each
        piece of a run, 0 and 2 in the order of the memory; stages 3 (moments) and 4 (moments and affine step) do all that a
        cell needs while its data are in the cache. Stage 5 takes the states as given, and only works out mean and scale.
        """
        blocks = plan[BLOCKS]
        pieces = plan[PIECES] if stage == 0 or stage == 2 else 1
        outside = plan[CELLS_OUTSIDE]
        last = kept.shape[0] - 1
        neighbours = kept[last, SIZE]
        step = kept[last, X]
        together = plan[NEIGHBOURS] if pieces == 1 and stage != 1 else 1
        whole = (stage == 3 or stage == 4) and blocks == 1 and plan[POSITIONS] == 1 and plan[INNER_X] == 1
        behind = stage == 4 and plan[BEHIND] != 0
        buffer = allocate((0 if plan[INNER_X] == 1 else most(LINE, plan[ROWS]),), x.dtype)
        group = 0 if whole else together
        group_sums = allocate((3, group), np.float64)
        group_cells = allocate((group,), np.int64)
        own = allocate((blocks if stage >= 3 else 1, 4, group), np.float64)
        line = allocate((0 if plan[INNER_Y] == 1 else LINE,), y.dtype)
        known = learn(x, y, plan, outer, weight, bias)
        ready = have((buffer, group_sums, group_cells, own, line))
        t = t0 if ready else t1
        while t < t1:
            run = t // pieces
            position = run // outside if stage == 0 or stage == 2 else 0
            cell = run - position * outside
            cells = least(together, least(t1 - t, neighbours - cell % neighbours))
            home = offset(kept, cell, CELL)
            start = plan[BASE_X] + offset(kept, cell, X)
            if whole:
                whole_runs(x, start, step, plan[INNER], cells, state, home)
            elif stage == 0 or stage == 3 or stage == 4:
                b0 = position * pieces + t - run * pieces
                for b in range(b0, b0 + 1 if stage == 0 else blocks):
                    block(x, plan, outer, start, step, b, cells, own[b - b0], group_sums, group_cells, buffer)
                if stage == 0:
                    for k in range(cells):
                        for row in range(4):
                            part[(cell + k) * blocks + b0, row, 0] = own[0, row, k]
            if stage == 1 or ((stage == 3 or stage == 4) and not whole):
                states = part if stage == 1 else own
                merged = t * blocks if stage == 1 else 0
                merge_blocks(states, merged, blocks, cells)
                copy_states(states[merged], state, home, cells)
            if stage != 0 and stage != 2:
                set_centers(state, home, cells, eps, center, is_narrow(y), state[MEAN], state[LOW], state[SCALE], home)
            if stage == 2 or stage == 4:
                p0 = position
                p1 = position + 1 if stage == 2 else plan[POSITIONS]
                i0 = (t - run * pieces) * plan[ROWS]
                i1 = least(i0 + plan[ROWS], plan[INNER]) if stage == 2 else plan[INNER]
                apply(x, y, plan, kept, outer, cell, cells, p0, p1, i0, i1, state, weight, bias, known, buffer, line, behind)
            t += cells
        finish()
        release((buffer, group_sums, group_cells, own, line))
        return 0 if ready else 1

    return tasks


tasks = kernel(narrow_steps, scale_piece)
