"""Moments of the values where a mask is true, or of weighted values; mask or weights take the place of y in the plan.

Both families are here, since masked values are counted one by one: each lane has its own count and its own shift,
the first value that the mask lets through. A weight counts its value as often as it says; one of 0 is a mask. Where x itself
says what counts, as all that is no NaN, the mask is x under the dtype of its bits.
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
from keepnorm.kernels.cpu.scratch import allocate, have, lines, release
from keepnorm.kernels.cpu.shift import anchor, is_outlier, next_shift
from keepnorm.kernels.cpu.simd import (
    INFINITE,
    WIDTH,
    chosen,
    counts,
    differences,
    fill,
    first,
    fma,
    load,
    load_n,
    load_same,
    save,
    total,
)
from keepnorm.kernels.jit.compile import exact, helper, variant

# Steps of rows in which the first value of each lane is looked for; a lane that has none there starts from 0.
LOOKED = 8

# Rows that are added while the sums of their lanes are in registers. (Each value is added on its own: no bit depends on it.)
ROWS = 8


def is_in(mark):
    """Whether a mark lets its value in: a mask's byte, a weight, or the bits of the value, which must be no NaN."""


@variant(is_in)
def _is_in(mark):
    if mark not in INFINITE:
        return lambda mark: mark != 0
    most = INFINITE[mark]
    bits = mark.bitwidth
    plain = (1 << (bits - 1)) - 1
    whole = np.dtype(f"u{bits // 8}").type
    return lambda mark: whole(mark) & whole(plain) <= whole(most)


def often(mark, value):
    """A value as often as its mark says: once, or as its weight says; 0 where it is not let in."""


@variant(often)
def _often(mark, value):
    if mark is types.float64:
        return lambda mark, value: mark * value if mark != 0.0 else 0.0
    return lambda mark, value: value if is_in(mark) else 0.0


@exact
def masked_sums(x, x0, mask, m0, m_step, n, shift):
    """Count the values of a run that the mask lets through, and sum x - K and (x - K)^2, as often as their weights say."""
    k = fill(shift)
    c0 = c1 = s0 = s1 = q0 = q1 = fill(0.0)
    whole = n - n % (2 * WIDTH)
    for i in range(0, whole, 2 * WIDTH):
        f0 = load(mask, m0, i) if m_step == 1 else load_same(mask, m0)
        f1 = load(mask, m0, i + WIDTH) if m_step == 1 else load_same(mask, m0)
        d0 = chosen(f0, differences(load(x, x0, i), k))
        d1 = chosen(f1, differences(load(x, x0, i + WIDTH), k))
        w0 = counts(f0) * d0
        w1 = counts(f1) * d1
        c0 = c0 + counts(f0)
        c1 = c1 + counts(f1)
        s0 = s0 + w0
        s1 = s1 + w1
        q0 = fma(w0, d0, q0)
        q1 = fma(w1, d1, q1)
    for i in range(whole, n, WIDTH):
        m = least(WIDTH, n - i)
        f0 = load_n(mask, m0, i, m) if m_step == 1 else load_same(mask, m0)
        d0 = first(chosen(f0, differences(load_n(x, x0, i, m), k)), m)
        w0 = counts(f0) * d0
        c0 = c0 + first(counts(f0), m)
        s0 = s0 + w0
        q0 = fma(w0, d0, q0)
    return total(c0 + c1), total(s0 + s1), total(q0 + q1)


@exact
def add_rows(x, x0, x_step, mask, m0, m_step, m_lane, n, rows, count, shift, s, q):
    """Add n values of some rows, each to its own lane."""
    for i in range(0, n, WIDTH):
        m = n - i
        k = load(shift, 0, i)
        c = load(count, 0, i)
        a = load(s, 0, i)
        b = load(q, 0, i)
        for r in range(rows):
            here = x0 + r * x_step
            there = m0 + r * m_step
            if m >= WIDTH:
                marks = load(mask, there, i) if m_lane == 1 else load_same(mask, there)
                d = chosen(marks, differences(load(x, here, i), k))
                e = counts(marks)
            else:
                marks = load_n(mask, there, i, m) if m_lane == 1 else load_same(mask, there)
                d = first(chosen(marks, differences(load_n(x, here, i, m), k)), m)
                e = first(counts(marks), m)
            w = e * d
            c = c + e
            a = a + w
            b = fma(w, d, b)
        save(count, 0, i, c)
        save(s, 0, i, a)
        save(q, 0, i, b)


@helper
def add_strided(x, x0, x_step, mask, m0, m_step, n, count, shift, s, q):
    """Add n values of one row, which do not lie side by side, each to its own lane."""
    for i in range(n):
        mark = mask[m0 + i * m_step]
        if is_in(mark):
            d = difference(x[x0 + i * x_step], shift[i])
            w = often(mark, d)
            count[i] += often(mark, 1.0)
            s[i] += w
            q[i] += w * d


@helper
def look(x, x0, x_step, mask, m0, m_step, n, found, shift):
    """The shifts of lanes that have none yet, from n values of one row."""
    for i in range(n):
        if found[i] == 0.0 and is_in(mask[m0 + i * m_step]):
            shift[i] = anchor(x[x0 + i * x_step])
            found[i] = 1.0


@helper
def set_shifts(x, mask, plan, outer, x_start, m_start, b, width, found, shift):
    """The shift of each lane: its first value that the mask lets in, if that is in one of the first rows."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    fold = plan[FOLD]
    looked = 0
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X)
        m0 = m_start + offset(outer, p, Y)
        for i in range(i0, i1, fold):
            if looked == LOOKED:
                return
            n = least(fold, i1 - i) * width
            here = x0 + i * plan[INNER_X]
            look(x, here, plan[LANE_X], mask, m0 + i * plan[INNER_Y], plan[LANE_Y], n, found, shift)
            looked += 1


@helper
def add_block(x, mask, plan, outer, x_start, m_start, b, width, count, shift, s, q):
    """Add the rows of block b to their lanes; `width` lanes are one step of the inner axis."""
    p0, p1, i0, i1 = block_bounds(plan, b)
    fold = plan[FOLD]
    lane = plan[LANE_Y]
    beside = plan[LANE_X] == 1 and (lane == 1 or (lane == 0 and (fold == 1 or plan[INNER_Y] == 0)))
    for p in range(p0, p1):
        x0 = x_start + offset(outer, p, X)
        m0 = m_start + offset(outer, p, Y)
        i = i0
        while i < i1:
            here = x0 + i * plan[INNER_X]
            there = m0 + i * plan[INNER_Y]
            rows = least(ROWS, (i1 - i) // fold)
            if beside and rows > 0:
                x_step = fold * plan[INNER_X]
                m_step = fold * plan[INNER_Y]
                add_rows(x, here, x_step, mask, there, m_step, lane, fold * width, rows, count, shift, s, q)
                i += rows * fold
            else:
                n = least(fold, i1 - i) * width
                if beside:
                    add_rows(x, here, 0, mask, there, 0, lane, n, 1, count, shift, s, q)
                else:
                    add_strided(x, here, plan[LANE_X], mask, there, lane, n, count, shift, s, q)
                i += fold


@helper
def block(x, mask, plan, outer, x_start, m_start, b, cells, part, lanes):
    """The states of block b for `cells` neighbouring cells."""
    fold = plan[FOLD]
    short = plan[LANE_REDUCED]
    width = fold * cells * short
    count = lanes[N]
    shift = lanes[K]
    s = lanes[DELTA]
    q = lanes[M2]
    for row in range(4):
        for lane in range(width):
            lanes[row, lane] = 0.0
    set_shifts(x, mask, plan, outer, x_start, m_start, b, cells * short, count, shift)
    for sweep in range(2):
        for lane in range(width):
            lanes[N, lane] = lanes[DELTA, lane] = lanes[M2, lane] = 0.0
        add_block(x, mask, plan, outer, x_start, m_start, b, cells * short, count, shift, s, q)
        again = False
        for lane in range(width):
            sums = lanes[M2, lane]
            set_state(x, lanes, lane, lanes[N, lane], lanes[K, lane], lanes[DELTA, lane], sums)
            far = is_outlier(x, sums, lanes[M2, lane]) and sweep == 0
            lanes[K, lane] = next_shift(x, lanes, lane, far)
            again |= far
        if not again:
            break
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
            if is_in(mask[m0 + i * plan[INNER_Y]]):
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
            dn, ds, dq = masked_sums(x, x0, mask, m0, plan[INNER_Y], i1 - i0, shift)
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
    lanes = allocate((4, lines(plan[FOLD] * plan[CHUNK] * short + WIDTH)), np.float64)
    ready = have((lanes,))
    beside = plan[INNER_X] == 1 and (plan[INNER_Y] == 1 or plan[INNER_Y] == 0)
    plain = plan[LANE_KEPT] * short * plan[FOLD] == 1 and beside
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
