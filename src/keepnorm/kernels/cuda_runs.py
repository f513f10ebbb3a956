"""CUDA kernels for plans whose innermost axis is reduced: a team of threads reads the runs of one cell."""

from collections.abc import Callable

import numpy as np

from keepnorm.kernels.cuda_bodies import Types, body
from keepnorm.kernels.cuda_common import (
    OWN_WEIGHT,
    PLAIN,
    SECOND,
    Operands,
    Registers,
    States,
    Task,
    ascend,
    block_bounds,
    get,
    is_outlier,
    kept_table,
    moments_of,
    normalizer,
    offset,
    one_weight,
    outer_table,
    put,
    row_of,
    rows_of,
    shares_of,
    state_of,
    sums_of,
    team_sum,
    write_state,
)
from keepnorm.kernels.cuda_device import block, cuda, float64, inlined, load, thread
from keepnorm.kernels.cuda_layout import (
    ACROSS,
    AFFINE,
    BASE_MASK,
    BASE_X,
    BASE_Y,
    BASE_Z,
    BLOCKS,
    CELL,
    INNER_AFFINE,
    INNER_MASK,
    INNER_X,
    INNER_Y,
    INNER_Z,
    KEPT_AXES,
    MASK,
    OUTER_AXES,
    TEAM,
    Shape,
    X,
    Y,
    Z,
)
from keepnorm.kernels.cuda_numbers import anchor, settle


def _walk(kind: str, t: Types):
    """A walk of one thread over its part of a block of a cell, with the body of `kind`."""
    does = body(kind, t)
    one, whole, several, unroll = does.one, does.whole, does.several, does.unroll
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

    if vectors:
        step_body = whole
    else:

        @inlined
        def step_body(o, ix, iy, iz, im, registers):
            one(o, ix, iy, iz, im, 0, registers)

    if several is None:

        @inlined
        def stride(o, i, end, step, ix, iy, iz, dx, dy, dz, registers):
            return i

    else:

        @inlined
        def stride(o, i, end, step, ix, iy, iz, dx, dy, dz, registers):
            while i + (unroll - 1) * step < end:
                several(o, ix + i * dx, iy + i * dy, iz + i * dz, step * dx, step * dy, step * dz, registers)
                i += unroll * step
            return i

    @inlined
    def walk(plan, o, task, registers):
        kept, kept_axes = kept_table(), get(plan, KEPT_AXES)
        outer, axes = outer_table(plan), get(plan, OUTER_AXES)
        dx, dy, dz, dm = get(plan, INNER_X), get(plan, INNER_Y), get(plan, INNER_Z), get(plan, INNER_MASK)
        da = get(plan, INNER_AFFINE)
        across = get(plan, ACROSS)
        down = task.team // across
        ty = task.own // across
        tx = task.own - ty * across
        start_x = get(plan, BASE_X) + offset(plan, kept, kept_axes, task.cell, X) + task.i0 * dx
        start_y = get(plan, BASE_Y) + offset(plan, kept, kept_axes, task.cell, Y) + task.i0 * dy
        start_z = get(plan, BASE_Z) + offset(plan, kept, kept_axes, task.cell, Z) + task.i0 * dz
        start_m = get(plan, BASE_MASK) + offset(plan, kept, kept_axes, task.cell, MASK) + task.i0 * dm
        start_a = offset(plan, kept, kept_axes, task.cell, AFFINE) + task.i0 * da
        n = task.i1 - task.i0
        p = task.p0 + ty
        while p < task.p1:
            ix = start_x + offset(plan, outer, axes, p, X)
            iy = start_y + offset(plan, outer, axes, p, Y)
            iz = start_z + offset(plan, outer, axes, p, Z)
            im = start_m + offset(plan, outer, axes, p, MASK)
            a = start_a + offset(plan, outer, axes, p, AFFINE)
            set_run(o, a, registers.c, registers.r)
            head = np.int64(0)
            end = n
            if vectors:
                # Whole vectors lie between the first and the last index that the width divides.
                head = min((-ix) & (wide - 1), n)
                end = head + (n - head) // wide * wide
                edges = n - (end - head)
                e = tx
                while e < edges:
                    i = e if e < head else end + (e - head)
                    if da != 0:
                        set_one(o, a + i * da, registers.c, registers.r)
                    one(o, ix + i, iy + i, iz + i, im + i * dm, 0, registers)
                    e += across
                if da == 0:
                    set_one(o, a, registers.c, registers.r)
            step = across * wide
            i = head + tx * wide
            if da == 0:
                i = stride(o, i, end, step, ix, iy, iz, dx, dy, dz, registers)
            while i < end:
                if da != 0:
                    set_rows(o, a + i * da, da, registers.c, registers.r)
                step_body(o, ix + i * dx, iy + i * dy, iz + i * dz, im + i * dm, registers)
                i += step
            p += down

    return walk


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
    climb, total_of = ascend(shape, sums), team_sum(shape)
    size_c, size_3, size_room = 5 * wide, 3 * wide, threads * wide
    first_of, anchor_of, settled, mask_of = load(t.x, 1), anchor(t.x), settle(t.x), load("bool", 1)
    weight_of = one_weight(t.w)

    @inlined
    def first_shift(plan, o, cell):
        """K of a cell: its first value, unless that is masked."""
        kept, axes = kept_table(), get(plan, KEPT_AXES)
        if counted and not mask_of(o.mask, get(plan, BASE_MASK) + offset(plan, kept, axes, cell, MASK)):
            return 0.0
        return anchor_of(first_of(o.x, get(plan, BASE_X) + offset(plan, kept, axes, cell, X)))

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
    def own_weight(plan, o, cell, mode):
        if mode & OWN_WEIGHT:
            return weight_of(o.weight, offset(plan, kept_table(), get(plan, KEPT_AXES), cell, AFFINE))
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
            registers.total[s] = total_of(value, task.team, registers.room)

    @inlined
    def merged(plan, part, counters, task, registers):
        """Whether the sums in `total` are those of all blocks."""
        if get(plan, BLOCKS) == 1:
            return True
        return climb(plan, part, counters, task.local, task.b, np.int64(1), np.int64(1), registers.total, registers.room)

    @inlined
    def measure(plan, o, states, part, counters, n, mode, task, registers):
        """Moments of a cell; gives n, K, delta and M2 to every thread if the cell has one block."""
        total = registers.total
        k, active = 0.0, task.inside
        if mode & SECOND:
            before, shift, d, m = state_of(states, n, task.place)
            active = is_outlier(before, d, m)
            if not active:
                return n, 0.0, 0.0, 0.0  # one cell for the whole block: all its threads leave
            k = settled(shift + d)
        elif active:
            k = first_shift(plan, o, task.cell)
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
            write_state(states, task.place, seen, k_seen, d_seen, m_seen, counted)
        return seen, k_seen, d_seen, m_seen

    @inlined
    def add_up(plan, o, states, part, counters, task, registers):
        """The sums of the backward step; gives them to every thread if the cell has one block."""
        total = registers.total
        sweep(plan, o, task, registers, task.inside)
        if merged(plan, part, counters, task, registers) and task.inside and task.own == 0:
            put(states.sum1, task.place, total[0])
            put(states.sum2, task.place, total[1])
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
                seen, k, d, m = state_of(states, n, task.place)
                normalize_lanes(seen, k, d, m, eps, mode, registers.c)
            sum1, sum2 = add_up(plan, o, states, part, counters, task, registers)
            if step and task.inside:
                share_lanes(sum1, sum2, seen, own_weight(plan, o, task.cell, mode), mode, registers.c)
                apply(plan, o, task, registers)

    else:

        @inlined
        def work(plan, o, states, part, counters, n, eps, mode, task, registers):
            if not task.inside:
                return
            seen, k, d, m = 1.0, 0.0, 0.0, 1.0
            if not mode & PLAIN:
                seen, k, d, m = state_of(states, n, task.place)
            normalize_lanes(seen, k, d, m, eps, mode, registers.c)
            if backward:
                sum1, sum2 = sums_of(states, task.place, mode)
                share_lanes(sum1, sum2, seen, own_weight(plan, o, task.cell, mode), mode, registers.c)
            apply(plan, o, task, registers)

    def runs(
        plan, x, y, z, mask, weight, bias, third, count, shift, delta, m2, sum1, sum2, part, counters,
        n, eps, first, groups, mode,
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
        team, blocks = get(plan, TEAM), get(plan, BLOCKS)
        t = thread()
        which = t // team
        i = block() * (threads // team) + which
        if backwards:
            i = groups * blocks - 1 - i
        inside = 0 <= i < groups * blocks
        local = i // blocks
        b = i - local * blocks
        cell = first + local
        place = offset(plan, kept_table(), get(plan, KEPT_AXES), cell, CELL) if inside else np.int64(0)
        p0, p1, i0, i1 = block_bounds(plan, b)
        task = Task(local, cell, place, b, t - which * team, team, inside, p0, p1, i0, i1)
        work(plan, operands, states, part, counters, n, eps, mode, task, registers)

    return runs
