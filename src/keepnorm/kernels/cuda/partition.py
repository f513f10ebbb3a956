"""How a plan is cut into CUDA blocks, and how it travels to the device: pure integers.

The families are those of plan.py. What differs from a CPU is the cut: a multiprocessor wants many small blocks, and has
no cache that a block could count on. Like a plan's, the cut of a cell depends on the reduced axes alone, never on the
number of cells nor on the device, so that the answer has the same bits for any batch size and on every card.
"""

from dataclasses import replace
from math import gcd
from typing import NamedTuple

from keepnorm.plan import UNIT, Axis, Plan

# Columns of a table of axes, as in plan.Axis.
SIZE, CELL, AFFINE, X, Y, Z, MASK = range(7)
COLUMNS = 7

# What a plan says in single integers; the tables of outer kept and outer reduced axes follow.
(
    BASE_X,
    BASE_Y,
    BASE_Z,
    BASE_MASK,
    KEPT_AXES,
    OUTER_AXES,
    POSITIONS,
    INNER,
    INNER_AFFINE,
    INNER_X,
    INNER_Y,
    INNER_Z,
    INNER_MASK,
    ROWS,
    PIECES,
    TOGETHER,
    BLOCKS,
    FOLD,
    LANE_KEPT,
    LANE_REDUCED,
    KEPT_AFFINE,
    REDUCED_AFFINE,
    LANE_X,
    LANE_Y,
    LANE_Z,
    LANE_MASK,
    CHUNK,
    CHUNKS,
    TEAM_BITS,
    ACROSS,
    ACROSS_BITS,
    SLOTS,
    COUNTERS,
) = range(33)
INTEGERS = 33


class Shape(NamedTuple):
    """The sizes that a launch is made of; the simulator's are small, so that small arrays meet every branch.

    Attributes
    ----------
    threads : int
        Threads of a block.
    warp : int
        Threads that exchange values without a barrier.
    block : int
        The values of a cell (runs) or of a tile of rows (lanes) that one block reads.
    most : int
        The most blocks for one cell: beyond it blocks grow, so that the merge stays small.
    fan : int
        How many partial sums the last of a group of blocks merges.
    """

    threads: int = 256
    warp: int = 32
    block: int = 16384
    most: int = 256
    fan: int = 32


class Cut(NamedTuple):
    """A plan cut for a device.

    Attributes
    ----------
    plan : Plan
        The plan with its rows, pieces, blocks and chunks as a device walks them.
    wide : int
        How many neighbouring values a thread reads at once: 1, or as many as 16 bytes hold.
    team : int
        Threads for one cell; a block holds ``threads / team`` cells. All threads of a block, in the family of lanes.
    across : int
        Threads side by side along a run or along a row of lanes; the others take the next positions or rows.
    slots, counters : int
        Partial sums and counters of one cell (or chunk of cells): the tree that merges the blocks.
    """

    plan: Plan
    wide: int
    team: int
    across: int
    slots: int
    counters: int

    @property
    def groups(self) -> int:
        """How many cells, or chunks of cells, there are: each is reduced on its own."""
        return self.plan.cells_outside * self.plan.chunks

    @property
    def tile(self) -> int:
        """The most cells that one group has."""
        return self.plan.chunk if self.plan.lanes else 1

    @property
    def resident(self) -> bool:
        """Whether one team reads all data of its cells, so that it can go on with the affine step."""
        return self.plan.blocks == 1


def cut(plan: Plan, wide: int, shape: Shape) -> Cut:
    """Cut a plan for blocks of `shape`; `wide` values fill 16 bytes of the widest operand."""
    if plan.lanes and plan.lane_reduced.size > shape.threads // 2:
        plan = _as_runs(plan)
    if plan.lanes:
        return _cut_lanes(plan, wide, shape)
    return _cut_runs(plan, wide, shape)


def _as_runs(plan: Plan) -> Plan:
    """Lanes whose reduced axis is too long for one block, as runs of that axis."""
    kept = (*plan.kept, plan.lane_kept) if plan.lane_kept.size > 1 else plan.kept
    outer = (*plan.outer, plan.inner) if plan.inner.size > 1 else plan.outer
    return replace(
        plan, lanes=False, kept=kept, outer=outer, inner=plan.lane_reduced, lane_kept=UNIT, lane_reduced=UNIT, fold=1, chunk=1
    )


def _cut_runs(plan: Plan, wide: int, shape: Shape) -> Cut:
    positions, inner = plan.positions, plan.inner.size
    wide = wide if wide > 1 and plan.inner.x == 1 and inner >= 2 * wide and _congruent(plan, wide) else 1
    size = max(shape.block, _up(positions * inner, shape.most))
    pieces = _up(inner, size)
    together = min(positions, max(1, size // inner)) if pieces == 1 else 1
    # Four vectors for each thread of a small cell: several cells then share a block, without a barrier.
    team = min(shape.warp, _power(_up(positions * inner, 4 * wide)))
    if together < positions or pieces > 1 or positions * inner > 32 * wide * shape.warp:
        team = shape.threads
    across = team
    if pieces == 1 and positions > 1:
        # Eight vectors of a run for each thread, so that several are on their way at once; but whole lines of the cache.
        vectors = _up(inner, wide)
        across = min(team, _power(vectors), max(shape.warp // 4, _power(vectors // 8 + 1) // 2))
        down = team // across
        if down < together < positions:
            together -= together % down  # as many runs for each row of threads
    plan = replace(
        plan,
        rows=_up(inner, pieces),
        pieces=pieces,
        together=together,
        blocks=_up(positions, together) if pieces == 1 else positions * pieces,
        chunk=1,
        fused=False,
    )
    return _cut(plan, wide, team, across, shape)


def _cut_lanes(plan: Plan, wide: int, shape: Shape) -> Cut:
    short, kept = plan.lane_reduced.size, plan.lane_kept.size
    width = short * kept
    fold = max(1, min(plan.fold, shape.threads // width)) if plan.fold > 1 else 1
    plan = replace(plan, fold=fold, chunk=kept)
    wide = wide if wide > 1 and _aligned(plan, wide) else 1
    if fold > 1:
        chunk, across = kept, _up(fold * width, wide)
    else:
        chunk, across = _tile(short, kept, wide, shape)
        if not chunk:
            wide = 1
            chunk, across = _tile(short, kept, wide, shape)
    tile = min(fold * width, across * wide)
    steps = _up(plan.inner.size, fold)
    rows = max(1, shape.block // tile)
    rows = max(rows, _up(plan.positions * steps, shape.most))
    pieces = _up(steps, rows)
    together = max(1, rows // steps) if pieces == 1 else 1
    plan = replace(
        plan,
        rows=_up(steps, pieces),
        pieces=pieces,
        together=together,
        blocks=_up(plan.positions, together) if pieces == 1 else plan.positions * pieces,
        chunk=chunk,
        fused=False,
    )
    return _cut(plan, wide, shape.threads, across, shape)


def _tile(short: int, kept: int, wide: int, shape: Shape) -> tuple[int, int]:
    """How many cells lie side by side in one tile, in whole vectors, and on how many threads; 0 if no tile can have them."""
    across = min(shape.warp, _power(_up(short * kept, wide)))
    while across <= shape.threads:
        chunk = min(across * wide // short, shape.threads)  # a thread finishes each cell
        if chunk >= kept:
            return kept, across
        chunk -= chunk % (wide // gcd(short, wide))
        if chunk:
            return chunk, across
        across *= 2
    return 0, 0


def _cut(plan: Plan, wide: int, team: int, across: int, shape: Shape) -> Cut:
    slots, counters, level = 0, 0, plan.blocks
    while level > 1:
        slots += level
        level = _up(level, shape.fan)
        counters += level
    return Cut(plan, wide, team, across, slots, counters)


def _congruent(plan: Plan, wide: int) -> bool:
    """Whether the runs of all operands are out of step with 16 bytes by the same number of values."""
    present = _present(plan)
    if any(getattr(plan.inner, name) != 1 for name in present):
        return False
    axes = (*plan.kept, *plan.outer)
    bases = dict(zip("xyz", plan.base, strict=False))
    return all(
        (bases[name] - bases["x"]) % wide == 0 and all((getattr(a, name) - a.x) % wide == 0 for a in axes) for name in present
    )


def _aligned(plan: Plan, wide: int) -> bool:
    """Whether every row of lanes of every operand starts on 16 bytes."""
    lane = _lane(plan)
    bases = dict(zip("xyz", plan.base, strict=False))
    axes = (*plan.kept, *plan.outer)
    return all(
        getattr(lane, name) == 1
        and bases[name] % wide == 0
        and (plan.inner.size == 1 or plan.fold * getattr(plan.inner, name) % wide == 0)
        and all(getattr(a, name) % wide == 0 for a in axes)
        for name in _present(plan)
    )


def _present(plan: Plan) -> tuple[str, ...]:
    """The operands that a plan walks beside x: those that have a step anywhere."""
    axes = (*plan.kept, *plan.outer, plan.inner, plan.lane_kept, plan.lane_reduced)
    return tuple(name for name in "xyz" if name == "x" or any(getattr(a, name) for a in axes))


def _lane(plan: Plan) -> Axis:
    return plan.lane_reduced if plan.lane_reduced.size > 1 else plan.lane_kept


def pack(cut: Cut) -> list[int]:
    """The integers that a kernel reads: those of the plan, then the tables of outer kept and outer reduced axes."""
    plan = cut.plan
    lane = _lane(plan)
    single = [
        *plan.base,
        len(plan.kept),
        len(plan.outer),
        plan.positions,
        plan.inner.size,
        plan.inner.affine,
        plan.inner.x,
        plan.inner.y,
        plan.inner.z,
        plan.inner.mask,
        plan.rows,
        plan.pieces,
        plan.together,
        plan.blocks,
        plan.fold,
        plan.lane_kept.size,
        plan.lane_reduced.size,
        plan.lane_kept.affine,
        plan.lane_reduced.affine,
        lane.x,
        lane.y,
        lane.z,
        lane.mask,
        plan.chunk,
        plan.chunks,
        cut.team.bit_length() - 1,
        cut.across,
        cut.across.bit_length() - 1,
        cut.slots,
        cut.counters,
    ]
    return single + [number for axis in (*plan.kept, *plan.outer) for number in axis]


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
