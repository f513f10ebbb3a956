"""What the CUDA kernels of both families share: offsets, blocks, sums over threads and over blocks, states, parameters."""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from keepnorm.kernels.cuda.device import (
    NULL,
    add_one,
    exchange,
    fence,
    inlined,
    inverse_root,
    load,
    load_fresh,
    long_quotient,
    present,
    quotient,
    store,
    sync,
    thread,
)
from keepnorm.kernels.cuda.numbers import OUTLIER, widen
from keepnorm.kernels.cuda.partition import (
    AFFINE,
    BASE_MASK,
    BASE_X,
    BASE_Y,
    BASE_Z,
    BLOCKS,
    CELL,
    COLUMNS,
    COUNTERS,
    FOLD,
    INNER,
    INTEGERS,
    KEPT_AXES,
    MASK,
    PIECES,
    POSITIONS,
    ROWS,
    SIZE,
    SLOTS,
    TOGETHER,
    Shape,
    X,
    Y,
    Z,
)

# What a launch asks for, as bits of one integer.
CENTER = 1  # subtract the mean; else divide by the root mean square
SECOND = 2  # sweep again the cells whose K was an outlier
GIVEN = 4  # the moments do not depend on x: no sums in the backward step
OWN_WEIGHT = 8  # the sums of the backward step lack the weight of their cell
PLAIN = 16  # mean 0 and deviation 1: an affine step alone

get = load("int64", 1)
real = load("float64", 1)
put = store("float64", 1)
put_count = store("int32", 1)


class Arguments(NamedTuple):
    """What every kernel takes, in order; a pointer that a kernel does not use is null."""

    plan: Any = NULL
    x: Any = NULL
    y: Any = NULL
    z: Any = NULL
    mask: Any = NULL
    weight: Any = NULL  # mean, where the roles of cells and parameters are swapped
    bias: Any = NULL  # rstd
    third: Any = NULL  # low * rstd
    count: Any = NULL  # of each cell, float64; null: n for all
    shift: Any = NULL
    delta: Any = NULL
    m2: Any = NULL
    sum1: Any = NULL
    sum2: Any = NULL
    part: Any = NULL
    counters: Any = NULL
    n: float = 0.0
    eps: float = 0.0
    groups: int = 0  # how many there are
    mode: int = 0


class Operands(NamedTuple):
    """What a walk reads and writes; see `Arguments`."""

    x: Any
    y: Any
    z: Any
    mask: Any
    weight: Any
    bias: Any
    third: Any


class States(NamedTuple):
    """What is known of cells; see `Arguments`."""

    count: Any
    shift: Any
    delta: Any
    m2: Any
    sum1: Any
    sum2: Any


class Task(NamedTuple):
    """What one thread has to do: which cells, which block of them, and its place among the threads that share it."""

    group: Any
    at: Any  # where the cells of one position of the outer kept axes lie, and the state of the first
    b: Any
    own: Any  # the index of the thread in its team, and how many these are
    team: Any
    inside: Any  # whether there is anything to do
    p0: Any
    p1: Any
    i0: Any
    i1: Any


class Registers(NamedTuple):
    """Arrays of a thread (see cuda_bodies.py), and the room that its block shares."""

    c: Any
    r: Any
    acc: Any
    total: Any
    room: Any


class Place(NamedTuple):
    """Where a position lies in every operand, in the affine parameters and in the cells."""

    x: Any
    y: Any
    z: Any
    mask: Any
    affine: Any
    cell: Any


@inlined
def remainder(a, b):
    """What is left of a after `quotient`."""
    return a - quotient(a, b) * b


@inlined
def step_to(plan, row, index, at):
    """`at`, and `index` steps along the axis of one row of a table."""
    return Place(
        at.x + index * get(plan, row + X),
        at.y + index * get(plan, row + Y),
        at.z + index * get(plan, row + Z),
        at.mask + index * get(plan, row + MASK),
        at.affine + index * get(plan, row + AFFINE),
        at.cell + index * get(plan, row + CELL),
    )


@inlined
def place_of(plan, table, axes, position, at):
    """`at`, and the offsets of one position of the axes of a table, the last axis counting fastest."""
    rest = position
    a = axes - 1
    while a > 0:
        row = table + a * COLUMNS
        size = get(plan, row + SIZE)
        outer = long_quotient(rest, size)
        at = step_to(plan, row, rest - outer * size, at)
        rest = outer
        a -= 1
    if axes > 0:
        at = step_to(plan, table, rest, at)
    return at


@inlined
def cell_place(plan, cell):
    """Where the first value of a position of the outer kept axes lies."""
    zero = np.int64(0)
    start = Place(get(plan, BASE_X), get(plan, BASE_Y), get(plan, BASE_Z), get(plan, BASE_MASK), zero, zero)
    return place_of(plan, np.int64(INTEGERS), get(plan, KEPT_AXES), cell, start)


@inlined
def outer_table(plan):
    """Where the table of outer reduced axes starts."""
    return INTEGERS + get(plan, KEPT_AXES) * COLUMNS


@inlined
def block_bounds(plan, b):
    """The outer positions and the steps of the inner axis that block b covers; plan.Plan.block is its twin."""
    pieces = get(plan, PIECES)
    inner = get(plan, INNER)
    if pieces == 1:
        together = get(plan, TOGETHER)
        first = b * together
        return first, min(first + together, get(plan, POSITIONS)), np.int64(0), inner
    position = quotient(b, pieces)
    step = get(plan, ROWS) * get(plan, FOLD)
    start = (b - position * pieces) * step
    return position, position + 1, start, min(start + step, inner)


@cache
def team_sum(shape: Shape, sums: int):
    """Sums over the threads of a team: by pairs inside a warp, then over the warps in order; every thread has the results."""
    warp, warps = shape.warp, shape.threads // shape.warp

    @inlined
    def add(total, team, room):
        mask = 1
        while mask < min(team, warp):
            for s in range(sums):
                total[s] += exchange(total[s], mask, room)
            mask *= 2
        if team > warp:
            t = thread()
            sync()
            if t & (warp - 1) == 0:
                for s in range(sums):
                    room[s * warps + quotient(t, warp)] = total[s]
            sync()
            for s in range(sums):
                value = 0.0
                for w in range(warps):
                    value += room[s * warps + w]
                total[s] = value
            sync()

    return add


@cache
def ascend(shape: Shape, sums: int):
    """The merge of blocks in one launch: the last block of every `fan` merges their sums in order, level by level.

    On entry thread t < cells has the sums of cell t of its block in `total`; where the result is true, those of all blocks.
    """
    threads, fan = shape.threads, shape.fan

    @inlined
    def climb(plan, part, counters, group, b, cells, tile, total, room):
        t = thread()
        base = group * get(plan, SLOTS)
        gate = group * get(plan, COUNTERS)
        level = get(plan, BLOCKS)
        index = b
        done = True
        while level > 1 and done:
            if t < cells:
                for s in range(sums):
                    put(part, ((base + index) * sums + s) * tile + t, total[s])
            fence()
            sync()
            team = quotient(index, fan)
            members = min(np.int64(fan), level - team * fan)
            if t == 0:
                room[0] = 1.0 if np.int64(add_one(counters, gate + team)) == members - 1 else 0.0
            sync()
            done = room[0] == 1.0
            sync()
            if done:
                if t == 0:
                    put_count(counters, gate + team, np.int32(0))
                fence()
                lines = max(np.int64(1), min(quotient(threads, cells), members))
                line = quotient(t, cells)
                k = t - line * cells
                for s in range(sums):
                    value = 0.0
                    if line < lines:
                        m = line
                        while m < members:
                            value += load_fresh(part, ((base + team * fan + m) * sums + s) * tile + k)
                            m += lines
                        room[t] = value
                    sync()
                    if t < cells:
                        value = 0.0
                        for m in range(lines):
                            value += room[m * cells + t]
                        total[s] = value
                    sync()
                base += level
                level = quotient(level + fan - 1, fan)
                gate += level
                index = team
        return done

    return climb


@inlined
def is_outlier(n, delta, m2):
    """Whether the shift of a state lay so far from its mean that digits of M2 were lost."""
    excess = n * delta * delta
    return excess > (OUTLIER - 1.0) * m2 and excess - excess == 0.0


@inlined
def moments_of(n, s, q):
    """delta and M2 of n values with s = sum (x - K) and q = sum (x - K)^2."""
    if n == 0.0:
        return 0.0, 0.0
    delta = s / n
    m2 = np.inf if q == np.inf else q - s * delta
    return delta, (0.0 if m2 < 0.0 else m2)  # a NaN passes


@inlined
def _reciprocal(spread):
    """One over the root of a variance; 0 without one, so that the result is the bias and the gradient is 0."""
    return 0.0 if spread == 0.0 else inverse_root(spread)


@inlined
def normalizer(n, shift, delta, m2, eps, mode):
    """mean, rstd and low * rstd of a cell; without centring the root mean square stands for the deviation."""
    if mode & PLAIN:
        return 0.0, 1.0, 0.0
    var = m2 / n if n > 0.0 else np.nan
    mean = shift + delta
    if mode & CENTER:
        rstd = _reciprocal(var + eps)
        return mean, rstd, ((shift - mean) + delta) * rstd
    # Infinite values make the mean square infinite; those of both signs leave no mean.
    endless = var == np.inf or mean == np.inf or mean == -np.inf
    return 0.0, 0.0 if endless else _reciprocal(var + mean * mean + eps), 0.0


@inlined
def state_of(states, n, cell):
    """n, K, delta and M2 of a cell."""
    count = real(states.count, cell) if present(states.count) else n
    return count, real(states.shift, cell), real(states.delta, cell), real(states.m2, cell)


@inlined
def write_state(states, cell, n, k, d, m, counted):
    """Write the state of a cell; its count too, where a mask makes it differ."""
    put(states.shift, cell, k)
    put(states.delta, cell, d)
    put(states.m2, cell, m)
    if counted:
        put(states.count, cell, n)


@inlined
def sums_of(states, cell, mode):
    """The sums of the backward step of a cell."""
    if mode & GIVEN:
        return 0.0, 0.0
    return real(states.sum1, cell), real(states.sum2, cell)


@inlined
def shares_of(sum1, sum2, n, weight, rstd, low, mode):
    """The two shares of the backward step (see cuda_bodies.py) from the sums of a cell; `weight` is what these lack."""
    if mode & GIVEN or (rstd == 0.0 and not mode & CENTER):
        return 0.0, 0.0
    mean = sum1 / n * weight if mode & CENTER else 0.0
    product = sum2 / n * weight
    return rstd * rstd * product, rstd * (mean - low * product)


@cache
def row_of(rows: str, name: str, wide: int):
    """A reader of the parameters of one affine index into lane j of `r`."""
    if rows == "affine" and not name:

        def read(o, a, j, r):
            r[j] = 1.0
            r[wide + j] = 0.0

    elif rows == "affine":
        one, from_w = load(name, 1), widen(name)

        def read(o, a, j, r):
            r[j] = from_w(one(o.weight, a)) if present(o.weight) else 1.0
            r[wide + j] = from_w(one(o.bias, a)) if present(o.bias) else 0.0

    else:

        def read(o, a, j, r):
            r[j] = real(o.weight, a)
            r[wide + j] = real(o.bias, a)
            r[2 * wide + j] = real(o.third, a)

    return inlined(read)


@cache
def rows_of(rows: str, name: str, wide: int):
    """A reader of the parameters of `wide` neighbouring affine indices, from one that `wide` divides."""
    if rows == "affine" and not name:
        return None
    if rows == "affine":
        all_w, from_w = load(name, wide), widen(name)

        def read(o, a, r):
            for j in range(wide):
                r[j] = 1.0
                r[wide + j] = 0.0
            if present(o.weight):
                values = all_w(o.weight, a)
                for j in range(wide):
                    r[j] = from_w(values[j])
            if present(o.bias):
                values = all_w(o.bias, a)
                for j in range(wide):
                    r[wide + j] = from_w(values[j])

        return inlined(read)
    return None


@cache
def one_weight(name: str):
    """A reader of one weight as float64; 1 where there is none."""
    if not name:
        return inlined(lambda _weight, _a: 1.0)
    one, from_w = load(name, 1), widen(name)

    def read(weight, a):
        return from_w(one(weight, a)) if present(weight) else 1.0

    return inlined(read)
