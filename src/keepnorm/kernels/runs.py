"""Kernels for plans whose innermost axis is reduced: long runs of one cell, summed in registers."""

import numpy as np

from keepnorm.kernels.compile import exact, helper
from keepnorm.kernels.halves import fits, narrow_run, narrow_steps
from keepnorm.kernels.integers import least, most
from keepnorm.kernels.scalars import (
    AFFINE,
    BASE_X,
    BASE_Y,
    BLOCKS,
    CELL,
    CELLS_OUTSIDE,
    DELTA,
    INNER,
    INNER_AFFINE,
    INNER_X,
    INNER_Y,
    LOW,
    MEAN,
    PIECES,
    POSITIONS,
    ROWS,
    SCALE,
    K,
    X,
    Y,
    anchor,
    block_bounds,
    centred,
    copy_states,
    deviation,
    difference,
    is_narrow,
    is_wide,
    merge_blocks,
    offset,
    room_for,
    set_centers,
    set_state,
    store,
    widened,
)
from keepnorm.kernels.scratch import allocate, have, release
from keepnorm.kernels.traffic import LINE, ask_ahead, finish, gathered, is_group, place, put, streams


@helper
def sums(x, shift):
    """Sum x - K and (x - K)^2 over a contiguous run."""
    s = 0.0
    q = 0.0
    for i in range(x.size):
        d = difference(x[i], shift)
        s += d
        q += d * d
    return s, q


@helper
def sums_of_four(x, a, b, c, d, n, shift):
    """The same over four runs at once, each from its own first value on: short runs end in fewer additions across a vector."""
    s = 0.0
    q = 0.0
    xa = x[a : a + n]
    xb = x[b : b + n]
    xc = x[c : c + n]
    xd = x[d : d + n]
    for i in range(n):
        da = difference(xa[i], shift)
        db = difference(xb[i], shift)
        dc = difference(xc[i], shift)
        dd = difference(xd[i], shift)
        s += (da + db) + (dc + dd)
        q += (da * da + db * db) + (dc * dc + dd * dd)
    return s, q


@exact
def scale_run(x, y, mean, scale, shift):
    """Normalise a contiguous run with one scale and one shift; subtracting first keeps the digits of x - mean."""
    for i in range(x.size):
        store(y, i, deviation(x[i], mean) * scale + shift)


@exact
def scale_run_affine(x, y, mean, low, scale, weight, bias):
    """Normalise a contiguous run whose values each have their own weight and bias."""
    for i in range(x.size):
        store(y, i, centred(x[i], mean, low) * scale * weight[i] + bias[i])


@helper
def block(x, plan, outer, start, b, part, buffer):
    """The state of block b of the cell at offset `start`."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    step = plan[INNER_X]
    shift = anchor(x[start + offset(outer, p0, X) + i0 * step])
    again = True
    for _ in range(2):
        s = 0.0
        q = 0.0
        first = start + i0 * step
        fours = (p1 - p0) // 4 * 4 if step == 1 else 0
        for p in range(p0, p0 + fours, 4):
            ds, dq = sums_of_four(
                x, first + offset(outer, p, X), first + offset(outer, p + 1, X), first + offset(outer, p + 2, X),
                first + offset(outer, p + 3, X), i1 - i0, shift,
            )  # fmt: skip
            s += ds
            q += dq
        for p in range(p0 + fours, p1):
            ds, dq = sums(gathered(x, first + offset(outer, p, X), step, i1 - i0, buffer), shift)
            s += ds
            q += dq
        again = set_state(part, 0, np.float64((p1 - p0) * (i1 - i0)), shift, s, q)
        if not (again and is_wide(x)):
            break
        shift = part[K, 0] + part[DELTA, 0]


@helper
def apply(x, y, plan, kept, outer, cell, p0, p1, i0, i1, state, weight, bias, buffer, line, behind):
    """The affine step on the steps [i0, i1) of the runs at the outer positions [p0, p1) of a cell."""
    home = offset(kept, cell, CELL)
    mean = state[MEAN, home]
    low = state[LOW, home]
    scale = state[SCALE, home]
    x_start = plan[BASE_X] + offset(kept, cell, X) + i0 * plan[INNER_X]
    y_start = plan[BASE_Y] + offset(kept, cell, Y) + i0 * plan[INNER_Y]
    affine_start = offset(kept, cell, AFFINE) + i0 * plan[INNER_AFFINE]
    n = i1 - i0
    piece = n if line.size == 0 and plan[INNER_X] == 1 else LINE
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X)
        y0 = y_start + offset(outer, p, Y)
        a = affine_start + offset(outer, p, AFFINE)
        w = scale * weight[a]
        shift = bias[a] - low * w
        narrow = narrow_steps(x, y, plan, outer) and fits(x, y, mean, w, shift)
        if behind:
            ask_ahead(x, x0 + n, 0, 1, n)
        for i in range(0, n, piece):
            m = least(piece, n - i)
            source = gathered(x, x0 + i * plan[INNER_X], plan[INNER_X], m, buffer)
            target = place(line, y, y0 + i, m)
            if narrow:
                narrow_run(source, target, mean, w, shift)
            elif plan[INNER_AFFINE] == 0:
                scale_run(source, target, mean, w, shift)
            else:
                scale_run_affine(source, target, mean, low, scale, weight[a + i : a + i + m], bias[a + i : a + i + m])
            put(line, y, y0 + i * plan[INNER_Y], plan[INNER_Y], m)


@exact
def tasks(
    stage,
    t0,
    t1,
    x,
    y,
    plan,
    kept,
    outer,
    part,
    state,
    weight,
    bias,
    eps,
    center,
):
    """Run the tasks [t0, t1) of a stage.

    Stage 0 (states of blocks) has a task for each block, stage 1 (merge) for each cell, stage 2 (affine step) for each
    piece of a run, in the order of the memory; stages 3 (moments) and 4 (moments and affine step) do all that a cell
    needs while its data are in the cache. Stage 5 takes the states as given, and only works out mean and scale.
    """
    blocks = plan[BLOCKS]
    behind = stage == 4 and is_group(x, plan[POSITIONS] * plan[INNER])
    buffer = allocate((0 if plan[INNER_X] == 1 else most(LINE, plan[ROWS]),), x.dtype)
    own = allocate((blocks if stage >= 3 else 0, 4, 1), np.float64)
    line = allocate((LINE if plan[INNER_Y] != 1 or streams(y, plan[INNER]) else 0,), y.dtype)
    weight_room = allocate((room_for(weight),), np.float64)
    bias_room = allocate((room_for(bias),), np.float64)
    ready = have(buffer) and have(own) and have(line) and have(weight_room) and have(bias_room)
    weight = widened(weight, weight_room)
    bias = widened(bias, bias_room)
    states = part if stage < 2 else own
    for t in range(t0, t1 if ready else t0):
        cell = t // blocks if stage == 0 else t
        b0 = t - cell * blocks if stage == 0 else 0
        b1 = b0 + 1 if stage == 0 else blocks
        first = 0 if stage >= 3 else t if stage == 0 else t * blocks
        p0 = 0
        p1 = plan[POSITIONS]
        i0 = 0
        i1 = plan[INNER]
        if stage == 2:
            run = t // plan[PIECES]
            p0 = run // plan[CELLS_OUTSIDE]
            p1 = p0 + 1
            cell = run - p0 * plan[CELLS_OUTSIDE]
            i0 = (t - run * plan[PIECES]) * plan[ROWS]
            i1 = least(i0 + plan[ROWS], i1)
        if stage == 0 or stage == 3 or stage == 4:
            start = plan[BASE_X] + offset(kept, cell, X)
            for b in range(b0, b1):
                block(x, plan, outer, start, b, states[first + b - b0], buffer)
        if stage == 1 or stage == 3 or stage == 4:
            merge_blocks(states, first, blocks, 1)
            copy_states(states[first], state, offset(kept, cell, CELL), 1)
        if stage != 0 and stage != 2:
            set_centers(state, offset(kept, cell, CELL), 1, eps, center, is_narrow(y))
        if stage == 2 or stage == 4:
            apply(x, y, plan, kept, outer, cell, p0, p1, i0, i1, state, weight, bias, buffer, line, behind)
    finish()
    release(buffer)
    release(own)
    release(line)
    release(weight_room)
    release(bias_room)
    return 0 if ready else 1
