"""CUDA kernels for plans whose innermost axes are kept, or short: each thread reads the same few lanes of many rows."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keepnorm.kernels.cuda.common import (
    OWN_WEIGHT,
    PLAIN,
    SECOND,
    Operands,
    Place,
    Registers,
    States,
    Task,
    ascend,
    block_bounds,
    cell_place,
    get,
    is_outlier,
    moments_of,
    normalizer,
    one_weight,
    outer_table,
    place_of,
    put,
    real,
    remainder,
    row_of,
    shares_of,
    state_of,
    sums_of,
    write_state,
)
from keepnorm.kernels.cuda.device import block, cuda, fence, float64, inlined, load, quotient, sync, thread
from keepnorm.kernels.cuda.formulas import Types, body
from keepnorm.kernels.cuda.numbers import anchor, settle
from keepnorm.kernels.cuda.partition import (
    ACROSS,
    BLOCKS,
    CHUNK,
    CHUNKS,
    FOLD,
    INNER_AFFINE,
    INNER_MASK,
    INNER_X,
    INNER_Y,
    INNER_Z,
    KEPT_AFFINE,
    LANE_KEPT,
    LANE_MASK,
    LANE_REDUCED,
    LANE_X,
    LANE_Y,
    LANE_Z,
    OUTER_AXES,
    REDUCED_AFFINE,
    Shape,
)


def _walk(kind: str, t: Types, shape: Shape):
    """A walk of one thread over its lanes of the rows of a block, with the body of `kind`.

    `k0` is the first cell of the chunk and `cells` how many it has; `task.own` is the thread.
    """
    does = body(kind, t)
    one, fetch, use, unroll = does.one, does.fetch, does.use, does.unroll
    rows, wide, threads, join = does.rows, t.wide, shape.threads, does.join
    vectors = wide > 1

    if rows:
        read = row_of(rows, t.w, wide)

        @inlined
        def set_lanes(plan, o, a, lane, width, c, r):
            short, by_cell, by_value = get(plan, LANE_REDUCED), get(plan, KEPT_AFFINE), get(plan, REDUCED_AFFINE)
            if by_cell == 0 and by_value == 0:
                for j in range(wide):
                    read(o, a, j, r)
            else:
                for j in range(wide):
                    at = remainder(lane + j, width)
                    k = quotient(at, short)
                    read(o, a + k * by_cell + (at - k * short) * by_value, j, r)
            for j in range(wide):
                join(c, r, j)

    else:

        @inlined
        def set_lanes(plan, o, a, lane, width, c, r):
            pass

    if fetch is None:

        @inlined
        def stride(o, s, end, step, at, sx, sy, sz, registers):
            return s

    else:
        stride = _stride(unroll, fetch, use)

    if vectors:

        @inlined
        def lanes_of(o, n, ix, iy, iz, im, dx, dy, dz, dm, registers):
            if n >= wide:
                values, dys = fetch(o, ix, iz)
                use(o, iy, values, dys, registers)
            else:
                for j in range(wide):
                    if j < n:
                        one(o, ix + j * dx, iy + j * dy, iz + j * dz, im + j * dm, j, registers)

    else:

        @inlined
        def lanes_of(o, n, ix, iy, iz, im, dx, dy, dz, dm, registers):
            if n > 0:
                one(o, ix, iy, iz, im, 0, registers)

    @inlined
    def walk(plan, o, task, k0, cells, registers):
        outer, axes = outer_table(plan), get(plan, OUTER_AXES)
        sx, sy, sz, sm = get(plan, INNER_X), get(plan, INNER_Y), get(plan, INNER_Z), get(plan, INNER_MASK)
        dx, dy, dz, dm = get(plan, LANE_X), get(plan, LANE_Y), get(plan, LANE_Z), get(plan, LANE_MASK)
        sa = get(plan, INNER_AFFINE)
        fold, short = get(plan, FOLD), get(plan, LANE_REDUCED)
        across = get(plan, ACROSS)
        down = quotient(threads, across)
        ty = quotient(task.own, across)
        lane = (task.own - ty * across) * wide
        width = cells * short
        first = k0 * short + lane
        start = Place(
            task.at.x + first * dx + task.i0 * sx,
            task.at.y + first * dy + task.i0 * sy,
            task.at.z + first * dz + task.i0 * sz,
            task.at.mask + first * dm + task.i0 * sm,
            task.at.affine + k0 * get(plan, KEPT_AFFINE) + task.i0 * sa,
            task.at.cell,
        )
        rows_of_one = quotient(task.i1 - task.i0 + fold - 1, fold)  # the last may be shorter
        full = quotient(task.i1 - task.i0, fold) if lane + wide <= fold * width else np.int64(0)
        # A thread takes every `down`-th row, counted through all positions.
        ahead = quotient(ty, rows_of_one)
        p = task.p0 + ahead
        s = ty - ahead * rows_of_one
        if ty >= down or lane >= fold * width:
            p = task.p1
        last = np.int64(-1)
        while p < task.p1:
            at = place_of(plan, outer, axes, p, start)
            if sa == 0:
                if at.affine != last:
                    set_lanes(plan, o, at.affine, lane, width, registers.c, registers.r)
                    last = at.affine
                s = stride(o, s, full, down, at, fold * sx, fold * sy, fold * sz, registers)
            while s < rows_of_one:
                i = s * fold
                if sa != 0:
                    set_lanes(plan, o, at.affine + i * sa, lane, width, registers.c, registers.r)
                n = min(fold, task.i1 - task.i0 - i) * width - lane
                lanes_of(
                    o, n, at.x + i * sx, at.y + i * sy, at.z + i * sz, at.mask + i * sm, dx, dy, dz, dm, registers
                )  # fmt: skip
                s += down
            ahead = quotient(s, rows_of_one)
            p += ahead
            s -= ahead * rows_of_one

    return walk


def _stride(unroll: int, fetch: Any, use: Any):
    """A loop over `unroll` rows a step apart at a time, as long as there are so many; gives the next row."""

    @inlined
    def two(o, s, end, step, at, sx, sy, sz, registers):
        while s + step < end:
            values0, dys0 = fetch(o, at.x + s * sx, at.z + s * sz)
            values1, dys1 = fetch(o, at.x + (s + step) * sx, at.z + (s + step) * sz)
            use(o, at.y + s * sy, values0, dys0, registers)
            use(o, at.y + (s + step) * sy, values1, dys1, registers)
            s += 2 * step
        return s

    @inlined
    def four(o, s, end, step, at, sx, sy, sz, registers):
        while s + 3 * step < end:
            values0, dys0 = fetch(o, at.x + s * sx, at.z + s * sz)
            values1, dys1 = fetch(o, at.x + (s + step) * sx, at.z + (s + step) * sz)
            values2, dys2 = fetch(o, at.x + (s + 2 * step) * sx, at.z + (s + 2 * step) * sz)
            values3, dys3 = fetch(o, at.x + (s + 3 * step) * sx, at.z + (s + 3 * step) * sz)
            use(o, at.y + s * sy, values0, dys0, registers)
            use(o, at.y + (s + step) * sy, values1, dys1, registers)
            use(o, at.y + (s + 2 * step) * sy, values2, dys2, registers)
            use(o, at.y + (s + 3 * step) * sy, values3, dys3, registers)
            s += 4 * step
        return s

    return four if unroll == 4 else two


def kernel(reduction: str, step: str, t: Types, shape: Shape) -> Callable[..., None]:
    """A kernel that reduces (moments, masked, grads, swapped or ''), then takes an elementwise step (forward, backward or '').

    With both, all data of a chunk of cells are read by one block, which goes on as soon as it has the sums.
    """
    wide, threads = t.wide, shape.threads
    gather = _walk(reduction, t._replace(w="") if t.bare else t, shape) if reduction else None
    apply = _walk(step, t, shape) if step else None
    sums = body(reduction, t).sums if reduction else 1
    measures, counted = reduction in ("moments", "masked"), reduction == "masked"
    backward, from_state = step == "backward", reduction in ("", "grads")
    backwards = not reduction
    sweeps = 2 if measures and (t.x == "float64" or counted) else 1
    climb = ascend(shape, sums)
    size_c, size_3, size_room = 5 * wide, 3 * wide, threads * max(wide, 5)
    first_of, anchor_of, settled, mask_of = load(t.x, 1), anchor(t.x), settle(t.x), load("bool", 1)
    weight_of = one_weight(t.w)

    @inlined
    def first_shift(plan, o, at, k):
        """K of a cell: its first value, unless that is masked."""
        step = k * get(plan, LANE_REDUCED)
        if counted and not mask_of(o.mask, at.mask + step * get(plan, LANE_MASK)):
            return 0.0
        return anchor_of(first_of(o.x, at.x + step * get(plan, LANE_X)))

    @inlined
    def spread_room(plan, own, cells, lines, registers):
        """Give every lane what thread k wrote for its cell k into each of `lines` lines of the room.

        One thread works out what belongs to a cell, not every lane: a loop over lanes stays short enough to be unrolled.
        """
        across, width, short = get(plan, ACROSS), cells * get(plan, LANE_REDUCED), get(plan, LANE_REDUCED)
        lane = remainder(own, across) * wide
        sync()
        for j in range(wide):
            k = quotient(remainder(lane + j, width), short)
            registers.c[j] = registers.room[k]
            if lines > 1:
                registers.c[wide + j] = registers.room[threads + k]
                registers.c[2 * wide + j] = registers.room[2 * threads + k]
            if lines > 3:
                registers.c[3 * wide + j] = registers.room[3 * threads + k]
                registers.c[4 * wide + j] = registers.room[4 * threads + k]
        sync()

    @inlined
    def own_weight(plan, o, at, k, mode):
        if mode & OWN_WEIGHT:
            return weight_of(o.weight, at.affine + k * get(plan, KEPT_AFFINE))
        return 1.0

    @inlined
    def fold_lanes(plan, s, t, cells, registers):
        """Sum `s` of the lanes of all threads, for the cell of each thread t < cells."""
        acc, room = registers.acc, registers.room
        across, fold, short = get(plan, ACROSS), get(plan, FOLD), get(plan, LANE_REDUCED)
        down = quotient(threads, across)
        line = across * wide
        lanes = fold * cells * short
        sync()
        if t < down * across:
            for j in range(wide):
                room[t * wide + j] = acc[s * wide + j]
        sync()
        lane = t
        while lane < lanes:
            value = 0.0
            for row in range(down):
                value += room[row * line + lane]
            room[lane] = value
            lane += threads
        sync()
        if t < cells:
            value = 0.0
            for f in range(fold):
                for v in range(short):
                    value += room[(f * cells + t) * short + v]
            registers.total[s] = value

    @inlined
    def sweep(plan, o, task, k0, cells, registers):
        """The sums of one block of a chunk of cells: thread t < cells has those of cell t in `total`."""
        for j in range(sums * wide):
            registers.acc[j] = 0.0
        gather(plan, o, task, k0, cells, registers)
        # Written out: an index that is no constant would put the sums into memory.
        fold_lanes(plan, 0, task.own, cells, registers)
        fold_lanes(plan, 1, task.own, cells, registers)
        if sums > 2:
            fold_lanes(plan, 2, task.own, cells, registers)
        sync()

    @inlined
    def merged(plan, part, counters, task, cells, registers):
        """Whether the sums in `total` are those of all blocks."""
        if get(plan, BLOCKS) == 1:
            return True
        return climb(plan, part, counters, task.group, task.b, cells, get(plan, CHUNK), registers.total, registers.room)

    @inlined
    def any_of(flag, cells, room):
        """Whether a flag is up in any of the first `cells` threads of the block."""
        t = thread()
        sync()
        if t < cells:
            room[t] = 1.0 if flag else 0.0
        sync()
        found = 0.0
        for k in range(cells):
            found += room[k]
        sync()
        return found > 0.0

    @inlined
    def measure(plan, o, states, part, counters, n, mode, task, k0, cells, registers):
        """Moments of a chunk of cells, written to the state, where every thread of the block finds them."""
        total, t = registers.total, task.own
        again = mode & SECOND != 0
        for _ in range(sweeps):
            stale = False
            if again and t < cells:
                before, shift, d, m = state_of(states, n, task.at.cell + t)
                stale = is_outlier(before, d, m)
            if again and not any_of(stale, cells, registers.room):
                return
            shift = 0.0
            if t < cells:
                if not again:
                    shift = first_shift(plan, o, task.at, k0 + t)
                elif stale:
                    shift = settled(real(states.shift, task.at.cell + t) + real(states.delta, task.at.cell + t))
                registers.room[t] = shift
            spread_room(plan, t, cells, 1, registers)
            sweep(plan, o, task, k0, cells, registers)
            if not merged(plan, part, counters, task, cells, registers):
                return
            if t < cells and (stale or not again):
                seen = total[2] if counted else n
                d, m = moments_of(seen, total[0], total[1])
                write_state(states, task.at.cell + t, seen, shift, d, m, counted)
            fence()
            sync()
            if get(plan, BLOCKS) > 1:
                return
            again = True

    @inlined
    def set_cells(plan, o, states, n, eps, mode, task, k0, cells, both, registers):
        """Spread what normalises the cells over the lanes of this thread; with `both`, the shares of the backward step too."""
        t, room = task.own, registers.room
        if t < cells:
            seen, shift, d, m = 1.0, 0.0, 0.0, 1.0
            if not mode & PLAIN:
                seen, shift, d, m = state_of(states, n, task.at.cell + t)
            mean, rstd, low = normalizer(seen, shift, d, m, eps, mode)
            room[t] = mean
            room[threads + t] = rstd
            room[2 * threads + t] = low
            if both:
                weight = own_weight(plan, o, task.at, k0 + t, mode)
                sum1, sum2 = sums_of(states, task.at.cell + t, mode)
                first, second = shares_of(sum1, sum2, seen, weight, rstd, low, mode)
                room[3 * threads + t] = first
                room[4 * threads + t] = second
        spread_room(plan, t, cells, 5 if both else 3, registers)

    @inlined
    def add_up(plan, o, states, part, counters, task, k0, cells, registers):
        """The sums of the backward step, written where every thread of the block finds them."""
        sweep(plan, o, task, k0, cells, registers)
        if merged(plan, part, counters, task, cells, registers):
            if task.own < cells:
                put(states.sum1, task.at.cell + task.own, registers.total[0])
                put(states.sum2, task.at.cell + task.own, registers.total[1])
            fence()
            sync()

    if measures:

        @inlined
        def work(plan, o, states, part, counters, n, eps, mode, task, k0, cells, registers):
            measure(plan, o, states, part, counters, n, mode, task, k0, cells, registers)
            if step:
                set_cells(plan, o, states, n, eps, mode, task, k0, cells, backward, registers)
                apply(plan, o, task, k0, cells, registers)

    elif reduction:

        @inlined
        def work(plan, o, states, part, counters, n, eps, mode, task, k0, cells, registers):
            if from_state:
                set_cells(plan, o, states, n, eps, mode, task, k0, cells, False, registers)
            add_up(plan, o, states, part, counters, task, k0, cells, registers)
            if step:
                set_cells(plan, o, states, n, eps, mode, task, k0, cells, backward, registers)
                apply(plan, o, task, k0, cells, registers)

    else:

        @inlined
        def work(plan, o, states, part, counters, n, eps, mode, task, k0, cells, registers):
            set_cells(plan, o, states, n, eps, mode, task, k0, cells, backward, registers)
            apply(plan, o, task, k0, cells, registers)

    def lanes(
        plan, x, y, z, mask, weight, bias, third, count, shift, delta, m2, sum1, sum2, part, counters,
        n, eps, groups, mode,
    ):  # fmt: skip
        operands = Operands(x, y, z, mask, weight, bias, third)
        states = States(count, shift, delta, m2, sum1, sum2)
        registers = Registers(
            cuda.local.array(size_c, float64),
            cuda.local.array(size_3, float64),
            cuda.local.array(size_3, float64),
            cuda.local.array(3, float64),
            cuda.shared.array(size_room, float64),
        )
        blocks, chunk, chunks = get(plan, BLOCKS), get(plan, CHUNK), get(plan, CHUNKS)
        i = block()
        if backwards:
            i = groups * blocks - 1 - i
        group = quotient(i, blocks)
        b = i - group * blocks
        cell = quotient(group, chunks)
        k0 = (group - cell * chunks) * chunk
        cells = min(chunk, get(plan, LANE_KEPT) - k0)
        at = cell_place(plan, cell)
        at = Place(at.x, at.y, at.z, at.mask, at.affine, at.cell + k0)
        p0, p1, i0, i1 = block_bounds(plan, b)
        task = Task(group, at, b, thread(), np.int64(threads), True, p0, p1, i0, i1)
        work(plan, operands, states, part, counters, n, eps, mode, task, k0, cells, registers)

    return lanes
