"""Kernels for plans whose innermost axis is reduced: long runs of one cell, summed in registers."""

import numpy as np

from keepnorm.kernels.cache import entry, exact, helper
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
    borrow,
    centred,
    copy_states,
    deviation,
    difference,
    is_narrow,
    is_wide,
    keep_alive,
    merge_blocks,
    offset,
    set_centers,
    set_state,
    store,
)
from keepnorm.kernels.traffic import BEHIND, LINE, STREAM, ask_ahead, finish, is_group, is_large, write


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


@exact
def scale_run(x, y, mean, scale, shift):
    """Normalise a contiguous run with one scale and one shift; subtracting first keeps the digits of x - mean."""
    for i in range(x.size):
        store(y, i, deviation(x[i], mean) * scale + shift)


@exact
def scale_strided(x, x0, x_step, y, y0, y_step, n, mean, scale, shift):
    """The same for a run with steps."""
    for i in range(n):
        store(y, y0 + i * y_step, deviation(x[x0 + i * x_step], mean) * scale + shift)


@exact
def scale_run_affine(x, y, mean, low, scale, weight, bias):
    """Normalise a contiguous run whose values each have their own weight and bias."""
    for i in range(x.size):
        store(y, i, centred(x[i], mean, low) * scale * weight[i] + bias[i])


@exact
def scale_strided_affine(x, x0, x_step, y, y0, y_step, n, mean, low, scale, weight, bias, a):
    """The same for a run with steps, whose affine parameters begin at index `a`."""
    for i in range(n):
        store(y, y0 + i * y_step, centred(x[x0 + i * x_step], mean, low) * scale * weight[a + i] + bias[a + i])


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
        for p in range(p0, p1):
            first = start + offset(outer, p, X) + i0 * step
            if step == 1:
                ds, dq = sums(x[first : first + i1 - i0], shift)
            else:
                for i in range(i1 - i0):
                    buffer[i] = x[first + i * step]
                ds, dq = sums(buffer[: i1 - i0], shift)
            s += ds
            q += dq
        again = set_state(part, 0, np.float64((p1 - p0) * (i1 - i0)), shift, s, q)
        if not (again and is_wide(x)):
            break
        shift = part[K, 0] + part[DELTA, 0]


@helper
def apply(x, y, plan, kept, outer, cell, p0, p1, i0, i1, state, weight, bias, line, behind):
    """The affine step on the steps [i0, i1) of the runs at the outer positions [p0, p1) of a cell."""
    home = offset(kept, cell, CELL)
    mean, low, scale = state[MEAN, home], state[LOW, home], state[SCALE, home]
    n = i1 - i0
    x_start = plan[BASE_X] + offset(kept, cell, X)
    y_start = plan[BASE_Y] + offset(kept, cell, Y)
    affine_start = offset(kept, cell, AFFINE)
    x_step = plan[INNER_X]
    y_step = plan[INNER_Y]
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X) + i0 * x_step
        y0 = y_start + offset(outer, p, Y) + i0 * y_step
        if behind:
            ask_ahead(x, x0 + n, 0, 1, n)
        a = affine_start + offset(outer, p, AFFINE)
        w = scale * weight[a]
        contiguous = x_step == 1 and y_step == 1
        if plan[INNER_AFFINE] == 0 and contiguous and line.size:
            for i in range(0, n, LINE):
                m = min(LINE, n - i)
                scale_run(x[x0 + i : x0 + i + m], line[:m], mean, w, bias[a] - low * w)
                write(line, y, y0 + i, m)
        elif plan[INNER_AFFINE] == 0 and contiguous:
            scale_run(x[x0 : x0 + n], y[y0 : y0 + n], mean, w, bias[a] - low * w)
        elif plan[INNER_AFFINE] == 0:
            scale_strided(x, x0, x_step, y, y0, y_step, n, mean, w, bias[a] - low * w)
        elif contiguous:
            scale_run_affine(x[x0 : x0 + n], y[y0 : y0 + n], mean, low, scale, weight[a + i0 : a + i1], bias[a + i0 : a + i1])
        else:
            scale_strided_affine(x, x0, x_step, y, y0, y_step, n, mean, low, scale, weight, bias, a + i0)


@entry()
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
    x = borrow(x)
    y = borrow(y)
    plan = borrow(plan)
    kept = borrow(kept)
    outer = borrow(outer)
    part = borrow(part)
    state = borrow(state)
    weight = borrow(weight)
    bias = borrow(bias)
    blocks = plan[BLOCKS]
    behind = stage == 4 and is_group(x, plan[POSITIONS] * plan[INNER], BEHIND)
    buffer_memory = np.empty(1 if plan[INNER_X] == 1 else block_bounds(plan, 0)[3], x.dtype)
    own_memory = np.empty((blocks if stage >= 3 else 1, 4, 1))
    line_memory = np.empty(LINE if is_large(y, STREAM) else 0, y.dtype)
    buffer = borrow(buffer_memory)
    line = borrow(line_memory)
    states = part if stage < 2 else borrow(own_memory)
    for t in range(t0, t1):
        cell = t // blocks if stage == 0 else t
        b0 = t - cell * blocks if stage == 0 else 0
        b1 = b0 + 1 if stage == 0 else blocks
        first = 0 if stage >= 3 else t if stage == 0 else t * blocks
        p0, p1, i0, i1 = 0, plan[POSITIONS], 0, plan[INNER]
        if stage == 2:
            run = t // plan[PIECES]
            p0 = run // plan[CELLS_OUTSIDE]
            p1 = p0 + 1
            cell = run - p0 * plan[CELLS_OUTSIDE]
            i0 = (t - run * plan[PIECES]) * plan[ROWS]
            i1 = min(i0 + plan[ROWS], i1)
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
            apply(x, y, plan, kept, outer, cell, p0, p1, i0, i1, state, weight, bias, line, behind)
    finish()
    keep_alive(buffer_memory)
    keep_alive(line_memory)
    keep_alive(own_memory)
