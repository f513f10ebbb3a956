"""CUDA kernels for plans whose innermost axis is reduced: a team of threads reads the runs of one cell."""

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
    row_of,
    rows_of,
    shares_of,
    state_of,
    sums_of,
    team_sum,
    write_state,
)
from keepnorm.kernels.cuda.device import block, cuda, float64, inlined, load, quotient, thread
from keepnorm.kernels.cuda.formulas import Types, body
from keepnorm.kernels.cuda.numbers import anchor, settle
from keepnorm.kernels.cuda.partition import (
    ACROSS,
    ACROSS_BITS,
    BLOCKS,
    INNER_AFFINE,
    INNER_MASK,
    INNER_X,
    INNER_Y,
    INNER_Z,
    OUTER_AXES,
    TEAM_BITS,
    Shape,
)


def _walk(kind: str, t: Types):
    """A walk of one thread over its part of a block of a cell, with the body of `kind`."""
    does = body(kind, t)
    one, fetch, use, unroll = does.one, does.fetch, does.use, does.unroll
    rows, wide, join = does.rows, t.wide, does.join
    vectors = wide > 1
    read = row_of(rows, t.w, wide) if rows else None
    read_all = rows_of(rows, t.w, wide) if rows and vectors else None
    in_vectors = read_all is not None

    if rows:

        @inlined
        def set_run(o, a, c, r):
            for j in range(wide):
                read(o, a, j, r)
                join(c, r, j)

        @inlined
        def set_one(o, a, c, r):
            read(o, a, 0, r)
            join(c, r, 0)

        if in_vectors:

            @inlined
            def set_rows(o, a, da, c, r):
                if da == 1 and a % wide == 0:
                    read_all(o, a, r)
                else:
                    for j in range(wide):
                        read(o, a + j * da, j, r)
                for j in range(wide):
                    join(c, r, j)

        else:

            @inlined
            def set_rows(o, a, da, c, r):
                for j in range(wide):
                    read(o, a + j * da, j, r)
                    join(c, r, j)

    else:

        @inlined
        def set_run(o, a, c, r):
            pass

        set_one = set_run

        @inlined
        def set_rows(o, a, da, c, r):
            pass

    if fetch is None:

        @inlined
        def step_body(o, ix, iy, iz, im, registers):
            one(o, ix, iy, iz, im, 0, registers)

        @inlined
        def stride(o, i, end, step, at, da, dx, dy, dz, registers):
            return i

        stride_of_rows = stride

    else:

        @inlined
        def step_body(o, ix, iy, iz, im, registers):
            values, dys = fetch(o, ix, iz)
            use(o, iy, values, dys, registers)

        @inlined
        def same(o, i, at, da, dy, values, dys, registers):
            use(o, at.y + i * dy, values, dys, registers)

        @inlined
        def each(o, i, at, da, dy, values, dys, registers):
            set_rows(o, at.affine + i * da, da, registers.c, registers.r)
            use(o, at.y + i * dy, values, dys, registers)

        # Where a run has one weight, it stays in a register of its own for all lanes.
        stride, stride_of_rows = _stride(unroll, fetch, same), _stride(unroll, fetch, each)

    @inlined
    def walk(plan, o, task, registers):
        outer, axes = outer_table(plan), get(plan, OUTER_AXES)
        dx, dy, dz, dm = get(plan, INNER_X), get(plan, INNER_Y), get(plan, INNER_Z), get(plan, INNER_MASK)
        da = get(plan, INNER_AFFINE)
        across, bits = get(plan, ACROSS), get(plan, ACROSS_BITS)
        down = task.team >> bits
        ty = task.own >> bits
        tx = task.own & (across - 1)
        start = Place(
            task.at.x + task.i0 * dx,
            task.at.y + task.i0 * dy,
            task.at.z + task.i0 * dz,
            task.at.mask + task.i0 * dm,
            task.at.affine + task.i0 * da,
            task.at.cell,
        )
        n = task.i1 - task.i0
        p = task.p0 + ty
        while p < task.p1:
            at = place_of(plan, outer, axes, p, start)
            a = at.affine
            set_run(o, a, registers.c, registers.r)
            head = np.int64(0)
            end = n
            if vectors:
                # Whole vectors lie between the first and the last index that the width divides.
                head = min((-at.x) & (wide - 1), n)
                end = head + ((n - head) & -wide)
                edges = n - (end - head)
                e = tx
                while e < edges:
                    i = e if e < head else end + (e - head)
                    if da != 0:
                        set_one(o, a + i * da, registers.c, registers.r)
                    one(o, at.x + i, at.y + i, at.z + i, at.mask + i * dm, 0, registers)
                    e += across
                if da == 0:
                    set_one(o, a, registers.c, registers.r)
            step = across * wide
            i = head + tx * wide
            if da == 0:
                i = stride(o, i, end, step, at, da, dx, dy, dz, registers)
            else:
                i = stride_of_rows(o, i, end, step, at, da, dx, dy, dz, registers)
            while i < end:
                if da != 0:
                    set_rows(o, a + i * da, da, registers.c, registers.r)
                step_body(o, at.x + i * dx, at.y + i * dy, at.z + i * dz, at.mask + i * dm, registers)
                i += step
            p += down

    return walk


def _stride(unroll: int, fetch: Any, use: Any):
    """A loop over `unroll` vectors a step apart at a time, as long as there are so many; gives the index of the next."""

    @inlined
    def two(o, i, end, step, at, da, dx, dy, dz, registers):
        while i + step < end:
            values0, dys0 = fetch(o, at.x + i * dx, at.z + i * dz)
            values1, dys1 = fetch(o, at.x + (i + step) * dx, at.z + (i + step) * dz)
            use(o, i, at, da, dy, values0, dys0, registers)
            use(o, i + step, at, da, dy, values1, dys1, registers)
            i += 2 * step
        return i

    @inlined
    def four(o, i, end, step, at, da, dx, dy, dz, registers):
        while i + 3 * step < end:
            values0, dys0 = fetch(o, at.x + i * dx, at.z + i * dz)
            values1, dys1 = fetch(o, at.x + (i + step) * dx, at.z + (i + step) * dz)
            values2, dys2 = fetch(o, at.x + (i + 2 * step) * dx, at.z + (i + 2 * step) * dz)
            values3, dys3 = fetch(o, at.x + (i + 3 * step) * dx, at.z + (i + 3 * step) * dz)
            use(o, i, at, da, dy, values0, dys0, registers)
            use(o, i + step, at, da, dy, values1, dys1, registers)
            use(o, i + 2 * step, at, da, dy, values2, dys2, registers)
            use(o, i + 3 * step, at, da, dy, values3, dys3, registers)
            i += 4 * step
        return i

    return four if unroll == 4 else two


def kernel(reduction: str, step: str, t: Types, shape: Shape) -> Callable[..., None]:
    """A kernel that reduces (moments, masked, grads, swapped or ''), then takes an elementwise step (forward, backward or '').

    With both, all data of a cell are read by one team, which goes on as soon as it has the sums.
    """
    wide, threads = t.wide, shape.threads
    gather = _walk(reduction, t._replace(w="") if t.bare else t) if reduction else None
    apply = _walk(step, t) if step else None
    sums = body(reduction, t).sums if reduction else 1
    measures, counted = reduction in ("moments", "masked"), reduction == "masked"
    backward, from_state = step == "backward", reduction in ("", "grads")
    # What the moments read last is still in the L2 cache: an elementwise step alone starts there.
    backwards = not reduction
    sweeps = 2 if measures and (t.x == "float64" or counted) else 1
    climb, add_team = ascend(shape, sums), team_sum(shape, sums)
    size_c, size_3, size_room = 5 * wide, 3 * wide, threads * wide
    first_of, anchor_of, settled, mask_of = load(t.x, 1), anchor(t.x), settle(t.x), load("bool", 1)
    weight_of = one_weight(t.w)

    @inlined
    def first_shift(o, at):
        """K of a cell: its first value, unless that is masked."""
        if counted and not mask_of(o.mask, at.mask):
            return 0.0
        return anchor_of(first_of(o.x, at.x))

    @inlined
    def normalize_lanes(n, k, d, m, eps, mode, c):
        mean, rstd, low = normalizer(n, k, d, m, eps, mode)
        for j in range(wide):
            c[j] = mean
            c[wide + j] = rstd
            c[2 * wide + j] = low

    @inlined
    def share_lanes(sum1, sum2, n, weight, mode, c):
        first, second = shares_of(sum1, sum2, n, weight, c[wide], c[2 * wide], mode)
        for j in range(wide):
            c[3 * wide + j] = first
            c[4 * wide + j] = second

    @inlined
    def own_weight(o, at, mode):
        if mode & OWN_WEIGHT:
            return weight_of(o.weight, at.affine)
        return 1.0

    @inlined
    def sweep(plan, o, task, registers, active):
        """The sums of one block of a cell, in every thread of the team."""
        for j in range(sums * wide):
            registers.acc[j] = 0.0
        if active:
            gather(plan, o, task, registers)
        for s in range(sums):
            value = 0.0
            for j in range(wide):
                value += registers.acc[s * wide + j]
            registers.total[s] = value
        add_team(registers.total, task.team, registers.room)

    @inlined
    def merged(plan, part, counters, task, registers):
        """Whether the sums in `total` are those of all blocks."""
        if get(plan, BLOCKS) == 1:
            return True
        return climb(plan, part, counters, task.group, task.b, np.int64(1), np.int64(1), registers.total, registers.room)

    @inlined
    def measure(plan, o, states, part, counters, n, mode, task, registers):
        """Moments of a cell; gives n, K, delta and M2 to every thread if the cell has one block."""
        total = registers.total
        k, active = 0.0, task.inside
        if mode & SECOND:
            before, shift, d, m = state_of(states, n, task.at.cell)
            active = is_outlier(before, d, m)
            if not active:
                return n, 0.0, 0.0, 0.0  # one cell for the whole block: all its threads leave
            k = settled(shift + d)
        elif active:
            k = first_shift(o, task.at)
        seen, k_seen, d_seen, m_seen = n, 0.0, 0.0, 0.0
        final = True
        for _ in range(sweeps):
            for j in range(wide):
                registers.c[j] = k
            sweep(plan, o, task, registers, active)
            if active:
                final = merged(plan, part, counters, task, registers)
                seen, k_seen = (total[2] if counted else n), k
                d_seen, m_seen = moments_of(seen, total[0], total[1])
                active = get(plan, BLOCKS) == 1 and is_outlier(seen, d_seen, m_seen)
                if active:
                    k = settled(k_seen + d_seen)
        if final and task.inside and task.own == 0:
            write_state(states, task.at.cell, seen, k_seen, d_seen, m_seen, counted)
        return seen, k_seen, d_seen, m_seen

    @inlined
    def add_up(plan, o, states, part, counters, task, registers):
        """The sums of the backward step; gives them to every thread if the cell has one block."""
        total = registers.total
        sweep(plan, o, task, registers, task.inside)
        if merged(plan, part, counters, task, registers) and task.inside and task.own == 0:
            put(states.sum1, task.at.cell, total[0])
            put(states.sum2, task.at.cell, total[1])
        return total[0], total[1]

    if measures:

        @inlined
        def work(plan, o, states, part, counters, n, eps, mode, task, registers):
            seen, k, d, m = measure(plan, o, states, part, counters, n, mode, task, registers)
            if step and task.inside:
                normalize_lanes(seen, k, d, m, eps, mode, registers.c)
                apply(plan, o, task, registers)

    elif reduction:

        @inlined
        def work(plan, o, states, part, counters, n, eps, mode, task, registers):
            seen = n
            if from_state and task.inside:
                seen, k, d, m = state_of(states, n, task.at.cell)
                normalize_lanes(seen, k, d, m, eps, mode, registers.c)
            sum1, sum2 = add_up(plan, o, states, part, counters, task, registers)
            if step and task.inside:
                share_lanes(sum1, sum2, seen, own_weight(o, task.at, mode), mode, registers.c)
                apply(plan, o, task, registers)

    else:

        @inlined
        def work(plan, o, states, part, counters, n, eps, mode, task, registers):
            if not task.inside:
                return
            seen, k, d, m = 1.0, 0.0, 0.0, 1.0
            if not mode & PLAIN:
                seen, k, d, m = state_of(states, n, task.at.cell)
            normalize_lanes(seen, k, d, m, eps, mode, registers.c)
            if backward:
                sum1, sum2 = sums_of(states, task.at.cell, mode)
                share_lanes(sum1, sum2, seen, own_weight(o, task.at, mode), mode, registers.c)
            apply(plan, o, task, registers)

    def runs(
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
        bits, blocks = get(plan, TEAM_BITS), get(plan, BLOCKS)
        team = np.int64(1) << bits
        t = thread()
        i = block() * (threads >> bits) + (t >> bits)
        if backwards:
            i = groups * blocks - 1 - i
        inside = 0 <= i < groups * blocks
        group = i
        if blocks > 1:
            group = quotient(i, blocks)
        b = i - group * blocks
        at = cell_place(plan, group if inside else np.int64(0))
        p0, p1, i0, i1 = block_bounds(plan, b)
        task = Task(group, at, b, t & (team - 1), team, inside, p0, p1, i0, i1)
        work(plan, operands, states, part, counters, n, eps, mode, task, registers)

    return runs
