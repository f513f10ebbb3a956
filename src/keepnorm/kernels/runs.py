"""Kernels for plans whose innermost axis is reduced: long runs of one cell, summed in registers."""

import numpy as np

from keepnorm.kernels.cache import entry, exact, helper
from keepnorm.kernels.scalars import (
    AFFINE,
    BASE_X,
    BASE_Y,
    BLOCKS,
    CELL,
    DELTA,
    INNER_AFFINE,
    INNER_X,
    INNER_Y,
    K,
    X,
    Y,
    anchor,
    block_bounds,
    borrow,
    center_and_scale,
    copy_states,
    difference,
    is_narrow,
    is_wide,
    merge_blocks,
    offset,
    set_state,
    store,
)


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
        store(y, i, (difference(x[i], 0.0) - mean) * scale + shift)


@exact
def scale_strided(x, x0, x_step, y, y0, y_step, n, mean, scale, shift):
    """The same for a run with steps."""
    for i in range(n):
        store(y, y0 + i * y_step, (difference(x[x0 + i * x_step], 0.0) - mean) * scale + shift)


@exact
def scale_run_affine(x, y, mean, low, scale, weight, bias):
    """Normalise a contiguous run whose values each have their own weight and bias."""
    for i in range(x.size):
        store(y, i, ((difference(x[i], 0.0) - mean) - low) * scale * weight[i] + bias[i])


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
def apply(x, y, plan, kept, outer, cell, b, state, weight, bias, eps, center):
    """The affine step on block b of a cell."""
    mean, low, scale = center_and_scale(state, offset(kept, cell, CELL), eps, center, is_narrow(y))
    p0, p1, i0, i1 = block_bounds(plan, b)
    n = i1 - i0
    x_start = plan[BASE_X] + offset(kept, cell, X)
    y_start = plan[BASE_Y] + offset(kept, cell, Y)
    affine_start = offset(kept, cell, AFFINE)
    x_step = plan[INNER_X]
    y_step = plan[INNER_Y]
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X) + i0 * x_step
        y0 = y_start + offset(outer, p, Y) + i0 * y_step
        a = affine_start + offset(outer, p, AFFINE)
        w = scale * weight[a]
        contiguous = x_step == 1 and y_step == 1
        if plan[INNER_AFFINE] == 0 and contiguous:
            scale_run(x[x0 : x0 + n], y[y0 : y0 + n], mean, w, bias[a] - low * w)
        elif plan[INNER_AFFINE] == 0:
            scale_strided(x, x0, x_step, y, y0, y_step, n, mean, w, bias[a] - low * w)
        elif contiguous:
            scale_run_affine(x[x0 : x0 + n], y[y0 : y0 + n], mean, low, scale, weight[a + i0 : a + i1], bias[a + i0 : a + i1])
        else:
            for i in range(n):
                j = a + i0 + i
                store(y, y0 + i * y_step, ((difference(x[x0 + i * x_step], 0.0) - mean) - low) * scale * weight[j] + bias[j])


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

    Stages 0 (states of blocks) and 2 (affine step) have a task for each block, stage 1 (merge) for each cell; stage 3
    (moments) and 4 (moments and affine step) do all that a cell needs while its data are in the cache.
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
    buffer = np.empty(1 if plan[INNER_X] == 1 else block_bounds(plan, 0)[3], x.dtype)
    if stage == 0:
        for t in range(t0, t1):
            cell = t // blocks
            start = plan[BASE_X] + offset(kept, cell, X)
            block(x, plan, outer, start, t - cell * blocks, part[t], buffer)
    elif stage == 1:
        for t in range(t0, t1):
            merge_blocks(part, t * blocks, blocks, 1)
            copy_states(part[t * blocks], state, offset(kept, t, CELL), 1)
    elif stage == 2:
        # Backwards: what the moments read last is still in the cache.
        for t in range(t1 - 1, t0 - 1, -1):
            cell = t // blocks
            apply(x, y, plan, kept, outer, cell, t - cell * blocks, state, weight, bias, eps, center)
    else:
        own = np.empty((blocks, 4, 1))
        for t in range(t0, t1):
            start = plan[BASE_X] + offset(kept, t, X)
            for b in range(blocks):
                block(x, plan, outer, start, b, own[b], buffer)
            merge_blocks(own, 0, blocks, 1)
            copy_states(own[0], state, offset(kept, t, CELL), 1)
            if stage == 4:
                for b in range(blocks):
                    apply(x, y, plan, kept, outer, t, b, state, weight, bias, eps, center)
