"""Kernels for plans whose innermost axes are kept, or short: rows of lanes, each lane with accumulators of its own."""

import numpy as np

from keepnorm.kernels.columns import (
    AFFINE,
    APPLY,
    BASE_X,
    BASE_Y,
    BEHIND,
    BLOCKS,
    CELL,
    CHUNK,
    CHUNKS,
    FOLD,
    FORWARD,
    INNER_AFFINE,
    INNER_X,
    INNER_Y,
    KEPT_AFFINE,
    LANE_KEPT,
    LANE_REDUCED,
    LANE_X,
    LANE_Y,
    LOW,
    M2,
    MEAN,
    MERGE,
    MOMENTS,
    REDUCED_AFFINE,
    SCALE,
    STATES,
    K,
    X,
    Y,
)
from keepnorm.kernels.cpu.affine import fold_lanes, scale_rows
from keepnorm.kernels.cpu.affine_half import PARTS, mixed_row, narrow_rows, narrow_steps, set_parts
from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.prefetch import fence, gathered, is_large, prefetch_ahead, prefetch_in_order, put, streams, tile_of
from keepnorm.kernels.cpu.scalars import (
    block_bounds,
    chunk_and_block,
    copy_states,
    is_narrow,
    merge_blocks,
    offset,
    set_states,
)
from keepnorm.kernels.cpu.scale import set_centers
from keepnorm.kernels.cpu.scratch import allocate, have, lines, release
from keepnorm.kernels.cpu.shift import first_shift, is_outlier, next_shift
from keepnorm.kernels.cpu.simd import WIDTH, differences, first, fma, load, load_n, save, unless
from keepnorm.kernels.cpu.simd_single import COUNT
from keepnorm.kernels.jit.compile import exact, helper

# Rows of the scratch arrays of one task, each as long as a row of lanes.
SHIFT, SUM, SQUARES = range(3)
LANE_MEAN, LANE_SCALE, LANE_SHIFT, LANE_CENTRE = range(4)
LANE_ROWS = 5  # those of the kernels of columns_elementwise.py

# How many lanes come again behind the last: before the first cache line of a row there may be as many.
ROUND = 32


@exact
def add_row(x, start, n, shift, s, q, c):
    """Add n values of one row to the sums of their lanes, from lane c on; what is left of eight sums nobody reads."""
    for i in range(0, n, WIDTH):
        k = load(shift, c, i)
        m = n - i
        d = differences(load(x, start, i), k) if m >= WIDTH else first(differences(load_n(x, start, i, m), k), m)
        save(s, c, i, load(s, c, i) + d)
        save(q, c, i, fma(d, d, load(q, c, i)))


@exact
def add_rows(x, start, step, n, shift, s, q, c, plain):
    """Add four rows at once: the sums of a lane are loaded and stored once for all four.

    Lanes left over take the same formula: which lanes these are is a matter of how many cells go together.
    """
    whole = n // WIDTH * WIDTH
    second = start + step
    third = second + step
    fourth = third + step
    for i in range(0, whole, WIDTH):
        k = load(shift, c, i)
        d0 = unless(plain, load(x, start, i), k)
        d1 = unless(plain, load(x, second, i), k)
        d2 = unless(plain, load(x, third, i), k)
        d3 = unless(plain, load(x, fourth, i), k)
        save(s, c, i, load(s, c, i) + ((d0 + d1) + (d2 + d3)))
        save(q, c, i, fma(d0, d0, fma(d1, d1, load(q, c, i))) + fma(d2, d2, d3 * d3))
    if whole < n:
        m = n - whole
        k = load(shift, c, whole)
        d0 = first(unless(plain, load_n(x, start, whole, m), k), m)
        d1 = first(unless(plain, load_n(x, second, whole, m), k), m)
        d2 = first(unless(plain, load_n(x, third, whole, m), k), m)
        d3 = first(unless(plain, load_n(x, fourth, whole, m), k), m)
        save(s, c, whole, load(s, c, whole) + ((d0 + d1) + (d2 + d3)))
        save(q, c, whole, fma(d0, d0, fma(d1, d1, load(q, c, whole))) + fma(d2, d2, d3 * d3))


@helper
def add_block(x, plan, outer, start, b, width, sums, buffer, plain):
    """Sum the rows of block b into the lanes; `width` lanes are one step of the inner axis; `plain` if every K is 0."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    fold = plan[FOLD]
    step = plan[INNER_X]
    lane = plan[LANE_X]
    full = fold * width
    shift = sums[SHIFT]
    s = sums[SUM]
    q = sums[SQUARES]
    tile = tile_of(x, full, fold * step)
    for p in range(p0, p1):
        origin = start + offset(outer, p, X)
        i = i0
        if lane == 1:
            while i + 4 * fold <= i1:
                for c in range(0, full, tile):
                    here = origin + i * step + c
                    n = least(tile, full - c)
                    if tile < full:
                        prefetch_in_order(x, here + 3 * c, 4 * n, 4 * full)
                    add_rows(x, here, fold * step, n, shift, s, q, c, plain)
                i += 4 * fold
        while i < i1:
            n = least(fold, i1 - i) * width
            source, here = gathered(x, origin + i * step, lane, n, buffer)
            add_row(source, here, n, shift, s, q, np.int64(0))
            i += fold


@helper
def spread(row, cells, short, fold):
    """Repeat the first `cells` values of a row for all lanes of each cell, in place."""
    width = cells * short
    if short > 1:
        for k in range(cells - 1, -1, -1):
            value = row[k]
            lanes = row[k * short : (k + 1) * short]
            for i in range(lanes.size):
                lanes[i] = value
    first = row[:width]
    for f in range(1, fold):
        again = row[f * width : (f + 1) * width]
        for i in range(width):
            again[i] = first[i]


@helper
def spread_round(row, cells, short, fold, count):
    """The same, and the first `count` lanes once more behind the last, for as many values that end in the next row."""
    spread(row, cells, short, fold)
    full = fold * cells * short
    for i in range(count):
        row[full + i] = row[i]


@helper
def gather(row, cells, short, fold):
    """Add the lanes of each cell up into the first `cells` values of a row, in place: the inverse of `spread`."""
    width = cells * short
    first = row[:width]
    for f in range(1, fold):
        again = row[f * width : (f + 1) * width]
        for i in range(width):
            first[i] += again[i]
    if short > 1:
        for k in range(cells):
            total = 0.0
            lanes = row[k * short : (k + 1) * short]
            for i in range(lanes.size):
                total += lanes[i]
            row[k] = total


@helper
def block(x, plan, outer, start, b, cells, part, sums, buffer):
    """The states of block b for `cells` neighbouring cells, the first value of the first at offset `start`."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    fold = plan[FOLD]
    short = plan[LANE_REDUCED]
    full = fold * cells * short
    step = short * plan[LANE_X]
    first = start + offset(outer, p0, X) + i0 * plan[INNER_X]
    n = np.float64((p1 - p0) * (i1 - i0) * short)
    shift = sums[SHIFT, :full]
    s = sums[SUM, :full]
    q = sums[SQUARES, :full]
    for k in range(cells):
        shift[k] = first_shift(x, first + k * step, plan[INNER_X], i1 - i0)
    for _ in range(2):
        plain = True
        for k in range(cells):
            part[K, k] = shift[k]
            plain &= shift[k] == 0.0
        spread(shift, cells, short, fold)
        s[:] = 0.0
        q[:] = 0.0
        add_block(x, plan, outer, start, b, cells * short, sums, buffer, plain)
        gather(s, cells, short, fold)
        gather(q, cells, short, fold)
        set_states(x, part, cells, n, s, q)
        again = False
        for k in range(cells):
            far = is_outlier(x, q[k], part[M2, k])
            shift[k] = next_shift(x, part, k, far)
            again |= far
        if not again:
            break


@exact
def join(plan, cell, a, cells, own, state, weight, bias, lanes):
    """Join the scale of every cell with its weight and bias, from affine index `a` on; `own` of its lanes have their own."""
    mean = lanes[LANE_MEAN]
    scale = lanes[LANE_SCALE]
    shift = lanes[LANE_SHIFT]
    for k in range(cells):
        j = a + k * plan[KEPT_AFFINE]
        for r in range(own):
            lane = k * own + r
            mean[lane] = state[MEAN, cell + k]
            scale[lane] = state[SCALE, cell + k] * weight[j + r * plan[REDUCED_AFFINE]]
            shift[lane] = bias[j + r * plan[REDUCED_AFFINE]] - state[LOW, cell + k] * scale[lane]


@exact
def set_lanes(x, y, plan, cell, a, cells, state, weight, bias, narrow, lanes, parts):
    """Spread over the lanes of some cells what their steps in float32 need, if these are `narrow`; say if that is enough."""
    if narrow:
        join(plan, cell, a, cells, 1, state, weight, bias, lanes)
        narrow = set_parts(x, lanes[LANE_MEAN, :cells], lanes[LANE_SCALE, :cells], lanes[LANE_SHIFT, :cells], parts)
        for row in range(PARTS):
            spread_round(parts[row], cells, plan[LANE_REDUCED], plan[FOLD], COUNT)
    return narrow


@exact
def set_affine(x, y, plan, cell, a, cells, state, weight, bias, mixed, lanes):
    """Spread the factors, shifts and centres of cells over their lanes, and say whether every mean has gone into its shift."""
    short = plan[LANE_REDUCED]
    own = short if plan[REDUCED_AFFINE] != 0 else 1
    join(plan, cell, a, cells, own, state, weight, bias, lanes)
    n = cells * own
    folded = fold_lanes(x, y, n, lanes[LANE_MEAN], lanes[LANE_SCALE], lanes[LANE_SHIFT], lanes[LANE_CENTRE])
    spread_round(lanes[LANE_SCALE], n, short // own, plan[FOLD], ROUND)
    spread_round(lanes[LANE_SHIFT], n, short // own, plan[FOLD], ROUND)
    if mixed or not folded:
        spread_round(lanes[LANE_CENTRE], n, short // own, plan[FOLD], ROUND)
    return folded


@helper
def apply(
    x, y, plan, outer, x_start, y_start, a, cell, cells, b, state, weight, bias, narrow, lanes, parts, buffer, line, behind,
):  # fmt: skip
    """The affine step on block b of neighbouring cells, for which `set_lanes` has been called and said `narrow`."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    fold = plan[FOLD]
    width = cells * plan[LANE_REDUCED]
    full = fold * width
    x_step = plan[INNER_X]
    y_step = plan[INNER_Y]
    scale = lanes[LANE_SCALE]
    shift = lanes[LANE_SHIFT]
    centre = lanes[LANE_CENTRE]
    mixed = not narrow and narrow_steps(x, y, plan, outer, weight, bias)
    folded = False
    last = -1
    side_by_side = plan[LANE_X] == 1 and plan[LANE_Y] == 1 and x_step == width and y_step == width
    together = side_by_side and plan[INNER_AFFINE] == 0 and full >= (COUNT if narrow else WIDTH) and not mixed
    nontemporal = line.size == 0 and (is_large(y) if together else streams(y, full))
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X)
        y0 = y_start + offset(outer, p, Y)
        position = a + offset(outer, p, AFFINE)
        i = i0
        while i < i1:
            j = position + i * plan[INNER_AFFINE]
            if j != last and not narrow:
                folded = set_affine(x, y, plan, cell, j, cells, state, weight, bias, mixed, lanes)
                last = j
            steps = i1 - i if together else least(fold, i1 - i)
            n = steps * width
            xi = x0 + i * x_step
            yi = y0 + i * y_step
            if behind:
                prefetch_ahead(x, xi + n, 0, 1, n)
            source, here = gathered(x, xi, plan[LANE_X], n, buffer)
            target, there = (y, yi) if line.size == 0 else (line, 0)
            if narrow:
                narrow_rows(source, here, target, there, n, full, parts, nontemporal)
            elif mixed:
                mixed_row(source, here, target, there, n, centre, scale, shift, parts)
            else:
                scale_rows(source, here, target, there, n, width, full, centre, scale, shift, folded, nontemporal)
            put(line, y, yi, plan[LANE_Y], n)
            i += steps


def kernel(learn, set_lanes, apply):
    """The function `tasks` of kernels for lanes, with what `learn` tells and these two for their affine step."""

    @exact
    def tasks(stage, t0, t1, x, y, plan, kept, outer, part, state, weight, bias, eps, center):
        """Run the tasks [t0, t1) of a stage: as in rows.py, with a chunk of cells for a cell and blocks for runs."""
        blocks = plan[BLOCKS]
        chunks = plan[CHUNKS]
        short = plan[LANE_REDUCED]
        full = plan[FOLD] * plan[CHUNK] * short
        pitch = lines(full + ROUND)
        sums = allocate((3, pitch), np.float64)
        lanes = allocate((LANE_ROWS, pitch), np.float64)
        parts = allocate((PARTS, 2 * lines(full // 2 + COUNT)), np.float32)
        buffer = allocate((0 if plan[LANE_X] == 1 else full,), x.dtype)
        line = allocate((0 if plan[LANE_Y] == 1 else full,), y.dtype)
        own = allocate((blocks if stage >= MOMENTS else 0, 4, plan[CHUNK]), np.float64)
        ready = have((sums, lanes, parts, buffer, line, own))
        states = part if stage < APPLY else own
        known = learn(x, y, plan, outer, weight, bias)
        behind = stage == FORWARD and plan[BEHIND] != 0
        of_blocks = stage == STATES or stage == APPLY
        before = -1
        narrow = False
        for t in range(t0, t1 if ready else t0):
            group, b0 = chunk_and_block(t, plan) if of_blocks else (t, 0)
            b1 = b0 + 1 if of_blocks else blocks
            first = 0 if stage >= MOMENTS else group * blocks + b0
            position = group // chunks
            k0 = (group - position * chunks) * plan[CHUNK]
            cells = least(plan[CHUNK], plan[LANE_KEPT] - k0)
            cell = offset(kept, position, CELL) + k0
            x_start = plan[BASE_X] + offset(kept, position, X) + k0 * short * plan[LANE_X]
            if stage == STATES or stage == MOMENTS or stage == FORWARD:
                for b in range(b0, b1):
                    block(x, plan, outer, x_start, b, cells, states[first + b - b0], sums, buffer)
            if stage == MERGE or stage == MOMENTS or stage == FORWARD:
                merge_blocks(states, first, blocks, cells)
                copy_states(states[first], state, cell, cells)
            if stage != STATES and stage != APPLY:
                set_centers(state, cell, cells, eps, center, is_narrow(y), state[MEAN], state[LOW], state[SCALE], cell)
            if stage == APPLY or stage == FORWARD:
                y_start = plan[BASE_Y] + offset(kept, position, Y) + k0 * short * plan[LANE_Y]
                a = offset(kept, position, AFFINE) + k0 * plan[KEPT_AFFINE]
                if group != before:
                    narrow = set_lanes(x, y, plan, cell, a, cells, state, weight, bias, known, lanes, parts)
                    before = group
                for b in range(b0, b1):
                    apply(
                        x, y, plan, outer, x_start, y_start, a, cell, cells, b, state, weight, bias, narrow, lanes, parts,
                        buffer, line, behind,
                    )  # fmt: skip
        fence()
        release((sums, lanes, parts, buffer, line, own))
        return 0 if ready else 1

    return tasks


tasks = kernel(narrow_steps, set_lanes, apply)
