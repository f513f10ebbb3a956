"""The canonical form of (shape, strides, keep, affine): pure integers, computed once, cached.

Size-1 axes drop out, axes are sorted by the stride of x, axes that run backwards are turned round, and neighbours with
the same role merge. What is left is one of two families:

runs
    The innermost axis is reduced: for each kept cell, for each outer reduced position, one run of values.
lanes
    The innermost axes are kept (or short): rows of values side by side, each value in a lane of its own; lanes of the
    same cell are summed at the end. A lane row is ``fold`` x ``lane_kept`` x ``lane_reduced`` values long.

The reduction of a cell is cut into blocks. Their bounds depend on the reduced axes alone, never on the number of
threads nor on how many cells there are, so that the answer has the same bits for both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

from keepnorm.machine import cores, is_serial, own_is_large
from keepnorm.tuning import (
    CACHED,
    FEW_LANES,
    FOLDED,
    GROUP_BYTES,
    LANE_BLOCK,
    LANE_ROWS,
    LANES,
    LINE_VALUES,
    NEIGHBOUR_BYTES_LARGE_L2,
    NEIGHBOUR_BYTES_SMALL_L2,
    NEIGHBOURS,
    PARTED_ROWS,
    PIECE_BYTES,
    RUN_BLOCK,
    SHORT_RUN,
    SINGLE_BYTES,
    SINGLE_BYTES_OF_CACHED,
)

# Tasks that rows are shared out into, at least.
CORES = cores()

NEIGHBOUR_BYTES = NEIGHBOUR_BYTES_LARGE_L2 if own_is_large() else NEIGHBOUR_BYTES_SMALL_L2

OPERANDS = 4  # x, y, dy, mask


class Axis(NamedTuple):
    """One merged axis: its size, its step in the cells and in the affine parameters, and its step in every operand."""

    size: int
    cell: int
    affine: int
    x: int
    y: int = 0
    z: int = 0
    mask: int = 0


UNIT = Axis(1, 0, 0, 0)


@dataclass(frozen=True)
class Plan:
    """How the kernels walk one array (and others of the same shape beside it).

    Attributes
    ----------
    lanes : bool
        The family: rows of lanes, or runs.
    base : tuple of int
        For every operand, the offset of its first value: of the corner from which all steps of x go forward.
    kept, outer : tuple of Axis
        Outer kept axes, and outer reduced axes, outermost first.
    inner : Axis
        The axis walked inside a block: the run itself, or the rows.
    lane_kept, lane_reduced : Axis
        The axes side by side in a row of lanes; size 1 in the family of runs.
    fold : int
        How many consecutive steps of `inner` lie side by side in one row of lanes.
    rows : int
        Steps of `inner` in one block (in rows of `fold` steps each, for lanes).
    pieces, together : int
        Blocks for each outer position, or outer positions for each block; one of them is 1.
    blocks : int
        Blocks for each cell.
    chunk : int
        How many steps of `lane_kept` one task takes.
    neighbours : int
        How many cells beside each other along the innermost outer kept axis go together, at most, in the family of runs.
    fused : bool
        Whether all the data of one task's cells fit the cache, so that moments and affine step run one after the other.
    cell_order, affine_order : tuple of (int, bool)
        The kept and the affine axes in the order of the cell and affine indices, and whether each is turned round.
    """

    lanes: bool
    base: tuple[int, ...]
    kept: tuple[Axis, ...]
    outer: tuple[Axis, ...]
    inner: Axis
    lane_kept: Axis
    lane_reduced: Axis
    fold: int
    rows: int
    pieces: int
    together: int
    blocks: int
    chunk: int
    neighbours: int
    fused: bool
    cell_order: tuple[tuple[int, bool], ...]
    affine_order: tuple[tuple[int, bool], ...]

    @cached_property
    def cells_outside(self) -> int:
        """The number of positions of the outer kept axes."""
        return prod(a.size for a in self.kept)

    @cached_property
    def positions(self) -> int:
        """The number of positions of the outer reduced axes."""
        return prod(a.size for a in self.outer)

    @cached_property
    def chunks(self) -> int:
        """The number of chunks of `lane_kept`."""
        return -(-self.lane_kept.size // self.chunk)

    @cached_property
    def cells(self) -> int:
        """The number of kept cells."""
        return self.cells_outside * self.lane_kept.size

    @cached_property
    def count(self) -> int:
        """The number of values of each cell."""
        return self.positions * self.inner.size * self.lane_reduced.size

    @cached_property
    def own(self) -> bool:
        """Whether every value of a cell has a weight and a bias of its own, which all cells share."""
        reduced = [a for a in (*self.outer, self.inner, self.lane_reduced) if a.size > 1 and not a.cell]
        shared = {a for a, _ in self.cell_order}.isdisjoint(a for a, _ in self.affine_order)
        return shared and bool(reduced) and all(a.affine for a in reduced)

    def block(self, b: int) -> tuple[int, int, int, int]:
        """The outer positions [p0, p1) and the steps of `inner` [i0, i1) of block `b`; the kernels compute the same."""
        if self.pieces == 1:
            return b * self.together, min((b + 1) * self.together, self.positions), 0, self.inner.size
        position, piece = divmod(b, self.pieces)
        step = self.rows * self.fold
        return position, position + 1, piece * step, min((piece + 1) * step, self.inner.size)

    def elements(self) -> Iterator[tuple[int, int, int, int, int, int]]:
        """Every element as (block, cell index, affine index, x offset, y offset, mask offset): what the kernels visit."""
        for kept in product(*(range(a.size) for a in self.kept)):
            for b in range(self.blocks):
                p0, p1, i0, i1 = self.block(b)
                positions = list(product(*(range(a.size) for a in self.outer)))[p0:p1]
                for outer, i, k, r in product(
                    positions, range(i0, i1), range(self.lane_kept.size), range(self.lane_reduced.size)
                ):
                    axes = (*self.kept, *self.outer, self.inner, self.lane_kept, self.lane_reduced)
                    steps = (*kept, *outer, i, k, r)
                    totals = [sum(n * axis[column] for n, axis in zip(steps, axes, strict=True)) for column in range(1, 7)]
                    yield b, totals[0], totals[1], self.base[0] + totals[2], self.base[1] + totals[3], self.base[3] + totals[5]


@lru_cache(maxsize=4096)
def make_plan(
    shape: tuple[int, ...],
    keep: tuple[int, ...],
    affine: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    itemsize: int,
) -> Plan:
    """Plan the walk over an array without zero sizes.

    Parameters
    ----------
    shape : tuple of int
        The shape of x, each size at least 1.
    keep, affine : tuple of int
        The kept and the affine axes.
    strides : tuple of tuple of int
        Strides of x, and of up to three operands beside it (y, dy, mask), counted in elements; any sign, zero included.
    itemsize : int
        Bytes of one value of x.
    """
    strides = (*strides, *(((0,) * len(shape),) * (OPERANDS - len(strides))))
    axes = [a for a in range(len(shape)) if shape[a] > 1]
    # Broadcast axes (stride 0) go outermost: the innermost axis should be one that moves through memory.
    axes.sort(key=lambda a: -abs(strides[0][a]) if strides[0][a] else -(2**63))
    turned = {a: strides[0][a] < 0 for a in axes}
    base = tuple(sum(s[a] * (shape[a] - 1) for a in axes if turned[a]) for s in strides)
    cell_order = tuple((a, turned[a]) for a in axes if a in keep)
    affine_order = tuple((a, turned[a]) for a in axes if a in affine)
    cell_step = _steps(cell_order, shape)
    affine_step = _steps(affine_order, shape)
    merged: list[Axis] = []
    for a in axes:
        sign = -1 if turned[a] else 1
        axis = Axis(shape[a], cell_step.get(a, 0), affine_step.get(a, 0), *(sign * s[a] for s in strides))
        if merged and _chains(merged[-1], axis):
            merged[-1] = axis._replace(size=merged[-1].size * axis.size)
        else:
            merged.append(axis)
    cell_order += tuple((a, False) for a in keep if shape[a] == 1)
    affine_order += tuple((a, False) for a in affine if shape[a] == 1)
    return _family(merged, base, itemsize, cell_order, affine_order)


def _steps(order: tuple[tuple[int, bool], ...], shape: tuple[int, ...]) -> dict[int, int]:
    """The step of each axis in a contiguous array of these axes, in this order."""
    steps, step = {}, 1
    for a, _ in reversed(order):
        steps[a] = step
        step *= shape[a]
    return steps


def _chains(outer: Axis, inner: Axis) -> bool:
    """Whether both axes are one longer axis in every operand, in the cells and in the affine parameters.

    An axis without a role has the step 0 there, so that equal roles are a part of this.
    """
    return (outer.cell == 0) == (inner.cell == 0) and (
        all(o == i * inner.size for o, i in zip(outer[1:], inner[1:], strict=True))
    )


def _family(
    axes: list[Axis],
    base: tuple[int, ...],
    itemsize: int,
    cell_order: tuple[tuple[int, bool], ...],
    affine_order: tuple[tuple[int, bool], ...],
) -> Plan:
    """Choose runs or lanes for merged axes, and cut the reduction into blocks."""
    lane_kept = lane_reduced = UNIT
    kept = [a for a in axes if a.cell]
    reduced = [a for a in axes if not a.cell]
    lanes = bool(axes) and _side_by_side(axes)
    if lanes:
        if not axes[-1].cell:
            lane_reduced = reduced.pop()
        lane_kept = kept.pop()
    inner = reduced.pop() if reduced else UNIT
    width = lane_kept.size * lane_reduced.size
    fold = _fold(inner, lane_kept, lane_reduced) if lanes else 1
    rows = max(LANE_ROWS, LANE_BLOCK // (width * fold)) if lanes else RUN_BLOCK
    positions = prod(a.size for a in reduced)
    steps = -(-inner.size // fold)
    pieces = -(-steps // rows)
    together = max(1, rows // steps) if pieces == 1 else 1
    rows = -(-steps // pieces)
    blocks = -(-positions // together) if pieces == 1 else positions * pieces
    outside = prod(a.size for a in kept)
    chunk, fused = _chunk(outside, positions * inner.size, blocks, lane_kept.size, lane_reduced.size, fold, itemsize)
    return Plan(
        lanes=lanes,
        base=base,
        kept=tuple(kept),
        outer=tuple(reduced),
        inner=inner,
        lane_kept=lane_kept,
        lane_reduced=lane_reduced,
        fold=fold,
        rows=rows,
        pieces=pieces,
        together=together,
        blocks=blocks,
        chunk=chunk,
        neighbours=1 if lanes else _neighbours(kept, reduced, inner.size * itemsize),
        fused=fused,
        cell_order=cell_order,
        affine_order=affine_order,
    )


def _side_by_side(axes: list[Axis]) -> bool:
    """Whether the innermost axes are lanes: a kept axis, or a short reduced one behind a kept one with more rows to add."""
    last = axes[-1]
    if last.cell:
        return True
    if last.size >= SHORT_RUN or all(a.cell for a in axes[:-1]):
        return False
    before = axes[-2]
    chained = all(o == i * last.size for o, i in zip(before[3:], last[3:], strict=True))
    return bool(before.cell) and chained


def _fold(inner: Axis, lane_kept: Axis, lane_reduced: Axis) -> int:
    """How many rows lie side by side, where rows are short, follow each other in memory and share their affine parameters."""
    width = lane_kept.size * lane_reduced.size
    last = lane_reduced if lane_reduced.size > 1 else lane_kept
    if width > FOLDED // 2 or inner.affine or any(s != i * width for s, i in zip(inner[3:], last[3:], strict=True)):
        return 1
    return max(1, min(FOLDED // width, inner.size // 4))


def _chunk(
    outside: int, rows: int, blocks: int, lane_kept: int, lane_reduced: int, fold: int, itemsize: int
) -> tuple[int, bool]:
    """How many lane cells one task takes, and whether their data fit the cache together.

    The bits do not depend on it: every lane is summed alone.
    """
    cell_bytes = rows * lane_reduced * itemsize
    fits = cell_bytes * lane_kept <= GROUP_BYTES
    if fold > 1 or lane_kept == 1:
        return lane_kept, fits
    most = max(1, LANES // lane_reduced)
    fitting = min(GROUP_BYTES // max(cell_bytes, 1), max(1, most // 2))
    lanes = lane_kept * lane_reduced
    fused = fitting * lane_reduced >= min(64, lanes) and (fits or rows <= PARTED_ROWS)
    if fused:
        most = fitting
    chunks = -(-lane_kept // most)
    if fused and outside == 1 and lanes >= 128 and not is_serial(rows * lanes, lane_kept):
        chunks += chunks % 2  # two threads have equally much to do, and a short call is one thread's
    elif not fused:
        chunks = max(chunks, min(-(-CORES // (outside * blocks)), lanes // FEW_LANES))
    chunk = -(-lane_kept // chunks)
    even = -(-chunk // LINE_VALUES) * LINE_VALUES
    return even if lane_reduced == 1 and even <= most else chunk, fused


def _neighbours(kept: list[Axis], outer: list[Axis], run_bytes: int) -> int:
    """How many neighbouring cells go together; the bits do not depend on it, since every cell is summed alone."""
    if not kept:
        return 1
    if not outer:
        is_cached = run_bytes * prod(a.size for a in kept) <= CACHED
        fitting = max(2, SINGLE_BYTES_OF_CACHED // run_bytes) if is_cached else SINGLE_BYTES // run_bytes
    elif kept[-1].x <= outer[-1].x:
        fitting = min(PIECE_BYTES // run_bytes, NEIGHBOUR_BYTES // (run_bytes * prod(a.size for a in outer)))
    else:
        return 1  # the runs of a cell are nearer to each other than to those of its neighbours
    return max(1, min(fitting, kept[-1].size, NEIGHBOURS))
