"""Moments of the values where a mask is true, or of weighted values; mask or weights take the place of y in the plan.

Both families are here, since masked values are counted one by one: each lane has its own count and its own shift,
the first value that the mask lets through. A weight counts its value as often as it says; one of 0 is a mask.
"""

import numpy as np
from numba import types

from keepnorm.kernels.columns import (
    BASE_X,
    BASE_Y,
    BLOCKS,
    CELL,
    CHUNK,
    CHUNKS,
    DELTA,
    FOLD,
    INNER_X,
    INNER_Y,
    LANE_KEPT,
    LANE_REDUCED,
    LANE_X,
    LANE_Y,
    M2,
    STATES,
    K,
    N,
    X,
    Y,
)
from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.scalars import (
    block_bounds,
    chunk_and_block,
    copy_states,
    difference,
    merge_blocks,
    merge_state,
    offset,
    set_state,
)
from keepnorm.kernels.cpu.scratch import allocate, have, release
from keepnorm.kernels.cpu.shift import anchor, is_outlier, next_shift
from keepnorm.kernels.jit.compile import exact, helper, variant


def often(mark, value):
    """A value as often as its mark says: once, or as its weight says."""


@variant(often)
def _often(mark, value):
    if mark is types.float64:
        return lambda mark, value: mark * value if mark != 0.0 else 0.0
    return lambda mark, value: value if mark else 0.0


@helper
def masked_sums(x, mask, shift):
    """Count the values that the mask lets through, and sum x - K and (x - K)^2, each as often as its weight says."""
    n = 0.0
    s = 0.0
    q = 0.0
    for i in range(x.size):
        d = difference(x[i], shift) if mask[i] else 0.0
        n += often(mask[i], 1.0)
        s += often(mask[i], d)
        q += often(mask[i], d * d)
    return n, s, q


@helper
def add_strided(x, x0, x_step, mask, m0, m_step, lanes, state, first):
    """Add `lanes` values, each to its own lane of (n, K, s, q); on the second sweep K is known."""
    for i in range(lanes):
        mark = mask[m0 + i * m_step]
        if mark:
            if first and state[N, i] == 0.0:
                state[K, i] = anchor(x[x0 + i * x_step])
            d = difference(x[x0 + i * x_step], state[K, i])
            state[N, i] += often(mark, 1.0)
            state[DELTA, i] += often(mark, d)
            state[M2, i] += often(mark, d * d)


@helper
def block(x, mask, plan, outer, x_start, m_start, b, cells, part, lanes):
    """The states of block b for `cells` neighbouring cells."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    fold = plan[FOLD]
    short = plan[LANE_REDUCED]
    width = fold * cells * short
    for row in range(4):
        for lane in range(width):
            lanes[row, lane] = 0.0
    again = False
    for sweep in range(2):
        for p in range(p0, p1):
            x0 = x_start + offset(outer, p, X)
            m0 = m_start + offset(outer, p, Y)
            i = i0
            while i < i1:
                n = least(fold, i1 - i) * cells * short
                add_strided(
                    x, x0 + i * plan[INNER_X], plan[LANE_X], mask, m0 + i * plan[INNER_Y], plan[LANE_Y], n, lanes, sweep == 0
                )
                i += fold
        again = False
        for lane in range(width):
            q = lanes[M2, lane]
            set_state(x, lanes, lane, lanes[N, lane], lanes[K, lane], lanes[DELTA, lane], q)
            far = is_outlier(x, q, lanes[M2, lane]) and sweep == 0
            lanes[K, lane] = next_shift(x, lanes, lane, far)
            again |= far
        if not again:
            break
        for lane in range(width):
            lanes[N, lane] = lanes[DELTA, lane] = lanes[M2, lane] = 0.0
    for k in range(cells):
        home = k * short
        for f in range(fold):
            for r in range(short):
                lane = (f * cells + k) * short + r
                if lane != home:
                    merge_lane(lanes, home, lane)
        for row in range(4):
            part[row, k] = lanes[row, home]


@helper
def merge_lane(lanes, home, lane):
    """Merge the state of one lane into that of another."""
    merge_state(lanes[:, home : home + 1], lanes[:, lane : lane + 1], 0)


@helper
def run_block(x, mask, plan, outer, x_start, m_start, b, part):
    """The state of block b of a cell whose x is contiguous, with a mask that is contiguous or one value for a run."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    shift = 0.0
    found = False
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X)
        m0 = m_start + offset(outer, p, Y)
        for i in range(i0, i1):
            if mask[m0 + i * plan[INNER_Y]]:
                shift = anchor(x[x0 + i])
                found = True
                break
        if found:
            break
    for _ in range(2):
        n = 0.0
        s = 0.0
        q = 0.0
        for p in range(p0, p1):
            x0 = x_start + offset(outer, p, X) + i0
            m0 = m_start + offset(outer, p, Y) + i0 * plan[INNER_Y]
            dn, ds, dq = masked_sums(x[x0 : x0 + i1 - i0], mask[m0 : m0 + i1 - i0], shift)
            n += dn
            s += ds
            q += dq
        set_state(x, part, 0, n, shift, s, q)
        if not is_outlier(x, q, part[M2, 0]):
            break
        shift = next_shift(x, part, 0, True)


@exact
def tasks(stage, t0, t1, x, mask, plan, kept, outer, part, state):
    """Run the tasks [t0, t1): blocks in STATES, the merge of cells in MERGE."""
    blocks = plan[BLOCKS]
    chunks = plan[CHUNKS]
    short = plan[LANE_REDUCED]
    lanes = allocate((4, plan[FOLD] * plan[CHUNK] * short), np.float64)
    ready = have((lanes,))
    plain = plan[LANE_KEPT] * short * plan[FOLD] == 1 and plan[INNER_X] == 1 and plan[INNER_Y] == 1
    for t in range(t0, t1 if ready else t0):
        group, b = chunk_and_block(t, plan) if stage == STATES else (t, 0)
        position = group // chunks
        k0 = (group - position * chunks) * plan[CHUNK]
        cells = least(plan[CHUNK], plan[LANE_KEPT] - k0)
        if stage == STATES:
            x_start = plan[BASE_X] + offset(kept, position, X) + k0 * short * plan[LANE_X]
            m_start = plan[BASE_Y] + offset(kept, position, Y) + k0 * short * plan[LANE_Y]
            own = part[group * blocks + b]
            if plain:
                run_block(x, mask, plan, outer, x_start, m_start, b, own)
            else:
                block(x, mask, plan, outer, x_start, m_start, b, cells, own, lanes)
        else:
            merge_blocks(part, t * blocks, blocks, cells)
            copy_states(part[t * blocks], state, offset(kept, position, CELL) + k0, cells)
    release((lanes,))
    return 0 if ready else 1
