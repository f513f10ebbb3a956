"""NumPy arrays as flat memory for the kernels: the span that an array lies in, and the plan that walks it."""

from dataclasses import replace
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from keepnorm.axes import Axes
from keepnorm.kernels import columns
from keepnorm.kernels.columns import MEASURED_ROWS, STATE_ROWS
from keepnorm.machine import own_is_large
from keepnorm.moments import Moments
from keepnorm.plan import UNIT as UNIT_AXIS
from keepnorm.plan import Plan, make_plan
from keepnorm.tuning import PREFETCHED_ARRAY, PREFETCHED_GROUP, SHARED

Array = np.ndarray[Any, Any]

# A core with a large L2 cache fetches ahead by itself, and loses a twentieth by being told to.
BEHIND = 0 if own_is_large() else PREFETCHED_GROUP

# The parameters of an affine step without weight and bias; float32, as weights of narrow data are, for the same kernels.
UNIT = (np.ones(1, np.float32), np.zeros(1, np.float32))
_WIDE_UNIT = (np.ones(1), np.zeros(1))

_SINGLE = np.dtype(np.float32)
_DOUBLE = np.dtype(np.float64)


class Walk(NamedTuple):
    """A plan as the kernels take it: its integers, and tables of outer kept and outer reduced axes, at least one in each."""

    plan: Plan
    integers: Array
    kept: Array
    outer: Array
    cells_in_order: bool
    affine_in_order: bool
    family: str  # of kernels
    groups: int  # of cells that one task takes together
    cells: int
    fused: bool

    def to_cells(self, values: Array, axes: Axes) -> Array:
        """Values of the plan's cells, as an array of the kept shape."""
        return values.reshape(axes.kept_shape) if self.cells_in_order else _reorder(values, self.plan.cell_order, axes)

    def from_cells(self, values: Array) -> Array:
        """An array of the kept shape, as flat float64 in the order of the plan's cells."""
        return np.asarray(values, np.float64).reshape(-1) if self.cells_in_order else _flatten(values, self.plan.cell_order)

    def to_affine(self, values: Array, axes: Axes) -> Array:
        """Values in the order of the plan's affine index, as an array of the affine shape."""
        return values.reshape(axes.affine_shape) if self.affine_in_order else _reorder(values, self.plan.affine_order, axes)

    def from_affine(self, values: Array) -> Array:
        """A weight or a bias, as flat float64 in the order of the plan's affine index; never its own memory."""
        return np.array(values, np.float64).reshape(-1) if self.affine_in_order else _flatten(values, self.plan.affine_order)

    def from_states(self, other: "Walk", states: Array, axes: Axes) -> Array:
        """The states of the cells of another plan for the same axes, in the order of this plan's cells."""
        if self.plan.cell_order == other.plan.cell_order:
            return states
        return np.stack([self.from_cells(other.to_cells(row, axes)) for row in states[:MEASURED_ROWS]])


class _Span:
    """Memory by address; keeps its owner alive. NumPy takes it through the array interface."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, address: int, items: int, dtype: np.dtype[Any], owner: Array) -> None:
        # Marked as writable even if the owner is not: no kernel writes to x.
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (items,),
            "strides": None,
            "typestr": dtype.str,
            "version": 3,
        }
        self.owner = owner


@cache
def _record_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What stands for a dtype that Numba does not have."""
    from keepnorm.kernels.records import BFLOAT16, FLOAT16

    return {"float16": FLOAT16, "bfloat16": BFLOAT16, "bool": np.dtype(np.uint8)}[dtype.name]


_PLAIN = frozenset(np.dtype(c) for c in "fdbBhHiIlLqQ")


def readable(x: Array) -> Array:
    """x itself where kernels can read its values in place, else a copy."""
    return in_place(x if x.dtype.kind != "b" else _truths(x))


def _truths(x: Array) -> Array:
    """Booleans whose bytes are 0 and 1: those of a mask that was an image's bytes may be any."""
    raw = x.view(np.uint8)
    return x if raw.max(initial=0) <= 1 else raw != 0


def in_place(x: Array) -> Array:
    """x itself where its memory is as kernels want it, else a copy: byte-swapped, unaligned, or with a step inside a value."""
    if x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative:
        return x
    if not x.dtype.isnative:
        return x.astype(x.dtype.newbyteorder("="))
    if not x.flags.aligned or any(step % x.itemsize for step in x.strides):
        return x.copy()
    return x


def flat(x: Array) -> Array:
    """The memory from the first to the last byte of x as a contiguous array, of any rank, of the kernels' dtype."""
    if x.flags.c_contiguous:
        return x if x.dtype in _PLAIN else x.view(_record_of(x.dtype))
    ordered = in_memory_order(x)
    if ordered.flags.c_contiguous:
        return ordered if x.dtype in _PLAIN else ordered.view(_record_of(x.dtype))
    low = high = 0
    for n, step in zip(x.shape, x.strides, strict=True):
        if step < 0:
            low += step * (n - 1)
        else:
            high += step * (n - 1)
    raw = np.dtype(f"u{x.itemsize}")
    address = x.__array_interface__["data"][0] + low
    whole = np.asarray(_Span(address, (high - low) // x.itemsize + 1, raw, x))
    return whole.view(x.dtype if x.dtype in _PLAIN else _record_of(x.dtype))


def in_memory_order(x: Array) -> Array:
    """x with its axes in the order of the memory: contiguous if its values lie side by side, each in a place of its own."""
    return x.transpose(_by_stride(x.strides))


@lru_cache(maxsize=4096)
def _by_stride(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The axes, the one with the largest step first."""
    return tuple(sorted(range(len(strides)), key=lambda a: -abs(strides[a])))


def walk(axes: Axes, arrays: tuple[Array, ...]) -> Walk:
    """The plan for arrays of one shape that are walked together: x, and what comes with it."""
    if len(arrays) == 2:  # the most usual call, spelt out: a small kernel takes less time than a generator
        x, y = arrays
        return walk_strides(axes, ((x.strides, x.itemsize), (y.strides, y.itemsize)))
    return walk_strides(axes, tuple((a.strides, a.itemsize) for a in arrays))


@lru_cache(maxsize=4096)
def walk_strides(axes: Axes, arrays: tuple[tuple[tuple[int, ...], int], ...]) -> Walk:
    """The plan for arrays with these strides and sizes of one value, both in bytes."""
    shape = axes.shape
    steps = tuple(_split_strides(axes, strides, itemsize) for strides, itemsize in arrays)
    plan = make_plan(shape, axes.keep, axes.affine, steps, arrays[0][1])
    origins = [-sum(min(0, s * (n - 1)) for s, n in zip(step, shape, strict=True)) for step in steps]
    base = [b + o for b, o in zip(plan.base, [*origins, 0, 0, 0], strict=False)]
    lane = plan.lane_reduced if plan.lane_reduced.size > 1 else plan.lane_kept
    said: dict[Any, int] = {
        columns.CELLS_OUTSIDE: plan.cells_outside,
        columns.POSITIONS: plan.positions,
        columns.INNER: plan.inner.size,
        columns.INNER_AFFINE: plan.inner.affine,
        columns.INNER_X: plan.inner.x,
        columns.INNER_Y: plan.inner.y,
        columns.INNER_Z: plan.inner.z,
        columns.INNER_MASK: plan.inner.mask,
        columns.ROWS: plan.rows,
        columns.PIECES: plan.pieces,
        columns.TOGETHER: plan.together,
        columns.BLOCKS: plan.blocks,
        columns.FOLD: plan.fold,
        columns.LANE_KEPT: plan.lane_kept.size,
        columns.LANE_REDUCED: plan.lane_reduced.size,
        columns.KEPT_AFFINE: plan.lane_kept.affine,
        columns.REDUCED_AFFINE: plan.lane_reduced.affine,
        columns.LANE_X: lane.x,
        columns.LANE_Y: lane.y,
        columns.LANE_Z: lane.z,
        columns.LANE_MASK: lane.mask,
        columns.CHUNK: plan.chunk,
        columns.CHUNKS: plan.chunks,
        columns.NEIGHBOURS: plan.neighbours,
        columns.BEHIND: _asks_ahead(plan, arrays[0][1]),
        columns.OWN: plan.own,
    } | dict(zip((columns.BASE_X, columns.BASE_Y, columns.BASE_Z, columns.BASE_MASK), base, strict=True))
    integers = np.array([said[column] for column in range(columns.INTEGERS)], np.int64)
    family, groups = _family(plan), plan.cells_outside * plan.chunks
    kept, outer = (np.array(table or (UNIT_AXIS,), np.int64) for table in (plan.kept, plan.outer))
    return Walk(
        plan,
        integers,
        kept,
        outer,
        _in_order(plan.cell_order),
        _in_order(plan.affine_order),
        family,
        groups,
        plan.cells,
        plan.fused,
    )


def _family(plan: Plan) -> str:
    """The kernels for a plan: elementwise ones where values side by side in a cell have weights of their own."""
    if plan.lanes:
        return "columns_elementwise" if plan.own else "columns"
    return "rows_elementwise" if plan.inner.affine else "rows"


def _asks_ahead(plan: Plan, itemsize: int) -> bool:
    """Whether the cells of the next task are asked for during the second step of this one: both stay in the L2 cache."""
    group = plan.count * plan.chunk * itemsize
    return group <= BEHIND and plan.count * plan.cells * itemsize >= PREFETCHED_ARRAY and (not plan.lanes or plan.chunks > 1)


@lru_cache(maxsize=4096)
def plain(axes: Axes) -> Axes:
    """The same axes without affine ones: more of them merge."""
    return replace(axes, affine=())


def _split_strides(axes: Axes, strides: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in elements for the split shape: an axis split into (g, c) has the strides (c * stride, stride)."""
    steps = []
    for a, source in enumerate(axes.origin):
        behind = prod(axes.shape[b] for b in range(a + 1, len(axes.shape)) if axes.origin[b] == source)
        steps.append(strides[source] // itemsize * behind)
    return tuple(steps)


def _in_order(order: tuple[tuple[int, bool], ...]) -> bool:
    """Whether axes are ascending, none of them turned round (size-1 axes at the end do no harm once reshaped)."""
    return all(not turned for _, turned in order) and [a for a, _ in order] == sorted(a for a, _ in order)


def _reorder(values: Array, order: tuple[tuple[int, bool], ...], axes: Axes) -> Array:
    """Flat values in the order of a plan, as an array with one axis for each of `order`, ascending."""
    if not order:
        return values.reshape(())
    shaped = values.reshape([axes.shape[a] for a, _ in order])
    for position, (_, turned) in enumerate(order):
        if turned:
            shaped = np.flip(shaped, position)
    return np.ascontiguousarray(np.transpose(shaped, np.argsort([a for a, _ in order])))


def _flatten(values: Array, order: tuple[tuple[int, bool], ...]) -> Array:
    """An array with one axis for each of `order`, ascending, as flat float64 in the order of a plan."""
    ranked = sorted(a for a, _ in order)
    shaped = np.transpose(values, [ranked.index(a) for a, _ in order])
    for position, (_, turned) in enumerate(order):
        if turned:
            shaped = np.flip(shaped, position)
    return np.array(shaped, np.float64).reshape(-1)


def parameters(steps: Walk, weight: Array | None, bias: Array | None) -> tuple[Array, Array]:
    """Weight and bias as flat float64 in the order of the plan; 1 and 0 for what is not given."""
    if weight is None and bias is None:
        return _WIDE_UNIT
    w = None if weight is None else steps.from_affine(weight)
    b = np.zeros_like(w) if bias is None else steps.from_affine(bias)
    return np.ones_like(b) if w is None else w, b


def parameters_for(steps: Walk, weight: Array | None, bias: Array | None, y: Array, new: bool) -> tuple[Array, Array]:
    """The same for kernels that widen float32 and write y: such parameters are not copied, unless y may be their memory.

    Halves become float32.
    """
    if y.dtype is not _DOUBLE:
        if weight is None and bias is None:
            return UNIT
        w, b = (UNIT[0] if weight is None else single(weight)), (UNIT[1] if bias is None else single(bias))
        if steps.affine_in_order and _is_plain(w) and _is_plain(b) and (new or (apart(w, y) and apart(b, y))):
            w = w if w is not UNIT[0] else ones(b.size)
            return w, b if b is not UNIT[1] else zeros(w.size)
    return parameters(steps, weight, bias)


# A weight of ones and a bias of zeros for the calls that have only one of the two: all of them share the beginnings of two
# arrays, which grow with the largest parameter up to SHARED values. Larger ones are made for each call.
_beginnings = dict(zip((1.0, 0.0), UNIT, strict=True))


def ones(n: int) -> Array:
    """A weight of so many ones in float32, for reading only."""
    return _constant(1.0, n)


def zeros(n: int) -> Array:
    """A bias of so many zeros in float32, for reading only."""
    return _constant(0.0, n)


def _constant(value: float, n: int) -> Array:
    known = _beginnings[value]
    if n > known.size:
        known = np.full(n if n > SHARED else min(2 * n, SHARED), value, _SINGLE)
        known.flags.writeable = False
        if n <= SHARED:
            _beginnings[value] = known
    return known[:n]


def apart(a: Array, b: Array) -> bool:
    """Whether two arrays surely share no memory: each has its own, or one ends before the other begins."""
    return a is not b and ((a.flags.owndata and b.flags.owndata) or not np.may_share_memory(a, b))


@cache
def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype that kernels take is float16, or bfloat16, which NumPy knows as two bytes without a meaning."""
    return dtype.itemsize == 2 and dtype.kind in "fV" and dtype.isnative


def single(values: Array) -> Array:
    """Halves as float32 in C order; other values as they are."""
    return values.astype(_SINGLE, "C") if is_half(values.dtype) else values


def _is_plain(values: Array) -> bool:
    """Whether values are float32, in order, aligned, and not marked as read-only: of the one type the kernels know."""
    return values.dtype is _SINGLE and values.flags.carray


def state_of(moments: Moments, steps: Walk) -> Array:
    """Moments as a state of the kernels; without a count, M2 holds the variance itself."""
    count = 1 if moments.count is None else moments.count
    state = np.empty((STATE_ROWS, steps.cells))
    state[0] = count if isinstance(count, int) else steps.from_cells(count)
    for row, values in zip(state[1:4], (moments.shift, moments.delta, moments.squares), strict=True):
        row[:] = steps.from_cells(values)
    return state
