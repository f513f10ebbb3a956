"""Moments of files of any size: leaves are read and summed by threads, and merged in the order of the data.

The order of the merges depends on the files and the options alone, so that the bits depend neither on the threads nor on
an interruption. Kept cells that do not fit into the memory are cut into slabs, one pass over the data for each.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from typing import Any

import numpy as np

from keepnorm.axes import Axes, resolve
from keepnorm.functional import moments
from keepnorm.moments import Moments
from keepnorm.stats.options import Options
from keepnorm.stats.readers.modes import described
from keepnorm.stats.readers.packed import valid
from keepnorm.stats.readers.source import BOX_BYTES, Array, Box, Piece, Source, box_shape, boxes, line

STATE_BYTES = 24  # of a kept cell: shift, delta and M2
COPIES = 4  # of a state at a merge: both terms, the sum, what NumPy makes on the way
FAILURES = (OSError, ValueError, TypeError, MemoryError)
Slab = tuple[slice, ...]


class Tree:
    """Moments that merge like a tree: slot i holds those of 2**i leaves, like the bits of a counter."""

    def __init__(self, slots: Sequence[Moments | None] = ()) -> None:
        self.slots = list(slots)

    def add(self, leaf: Moments) -> None:
        """One leaf more."""
        held = next((slot for slot in self.slots if slot is not None), None)
        if held is not None and (held.shape, held.keep, held.ndim) != (leaf.shape, leaf.keep, leaf.ndim):
            held.merge(leaf)  # raises, before anything has changed
        for i, held in enumerate(self.slots):
            if held is None:
                self.slots[i] = leaf
                return
            leaf, self.slots[i] = held.merge(leaf), None
        self.slots.append(leaf)

    @property
    def total(self) -> Moments | None:
        """The moments of all leaves."""
        filled = [slot for slot in reversed(self.slots) if slot is not None]
        return reduce(Moments.merge, filled) if filled else None


@dataclass(slots=True)
class Leaf:
    """What one box, or all pieces of a stream, add."""

    tree: Tree = field(default_factory=Tree)
    spread: Tree = field(default_factory=Tree)
    low: Any = None
    high: Any = None
    items: int = 0
    depth: str = ""

    def bounds(self, low: Any, high: Any) -> None:
        """Widen what is known of the smallest and the largest value."""
        if low is not None:
            self.low = low if self.low is None else np.fmin(self.low, low)
            self.high = high if self.high is None else np.fmax(self.high, high)


@dataclass(slots=True)
class State:
    """Where a run is: enough to go on from, and to answer from."""

    done: int = 0  # steps
    slab: int = 0
    total: Leaf = field(default_factory=Leaf)
    parts: dict[tuple[tuple[int, int], ...], Leaf] = field(default_factory=dict)  # of the source that is being read
    source: int = -1
    skipped: dict[str, str] = field(default_factory=dict)
    files: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Task:
    """One step: a box of an array, or a whole stream."""

    step: int
    slab: int
    source: int
    corner: tuple[tuple[int, int], ...]
    box: Box | None


class Run:
    """One run over all sources.

    Parameters
    ----------
    sources : sequence of Source
        At least one.
    keep : int, tuple of int, pattern, or names of dimensions
        The axes that survive. Pictures have the axes (1, height, width, channels), tables (rows, columns).
    options : Options
    """

    def __init__(self, sources: Sequence[Source], keep: Any, options: Options) -> None:
        if not sources:
            raise ValueError("there is nothing to read; got no file")
        self.sources, self.keep, self.options = sources, keep, options
        self.state = State()
        self.first: dict[str, Any] = {}
        shape = self._shape()
        self.slabs = self._slabs(shape)

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return sum(1 for _ in self.tasks())

    def axes(self, source: Source, shape: tuple[int, ...]) -> Axes:
        """The kept axes of a source."""
        keep = self.keep
        names = (keep,) if isinstance(keep, str) else keep
        if isinstance(names, tuple) and names and all(isinstance(n, str) for n in names) and "->" not in names[0]:
            unknown = [n for n in names if n not in source.dims]
            if unknown:
                there = ", ".join(source.dims) or "none; its axes have numbers"
                raise ValueError(f"{source.name}: no dimension has the name {', '.join(unknown)}; there are: {there}")
            keep = tuple(source.dims.index(n) for n in names)
        try:
            axes = resolve(shape, keep)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{source.name}: {error}") from error
        if axes.shape != axes.source:
            raise ValueError(f"{source.name}: keep={keep!r} splits an axis; stats takes patterns without parentheses")
        if source.shape is None and 0 in axes.keep:
            raise ValueError(f"{source.name}: keep={keep!r} keeps axis 0, which counts the items, but stats pools them")
        if self.options.per_item and 0 in axes.keep:
            raise ValueError(f"{source.name}: --per-item averages over axis 0, which keep={keep!r} keeps")
        return axes

    def _shape(self) -> tuple[int, ...]:
        """The kept shape of the first source that can be read."""
        for source in self.sources:
            if source.shape is not None:
                return self.axes(source, source.shape).kept_shape
            with suppress(*FAILURES):
                piece = next(source.stream(), None) if source.stream else None
                if piece is not None:
                    return self.axes(source, piece[0].shape).kept_shape
        source = self.sources[0]
        if len(self.sources) == 1 and source.stream and self.options.on_error == "fail":
            for values, _ in source.stream():
                self.axes(source, values.shape)
        return ()

    def _slabs(self, shape: tuple[int, ...]) -> list[Slab]:
        cells = self.options.bytes // 4 // (STATE_BYTES * COPIES)
        part = box_shape(shape, 1, range(len(shape)), (1,) * len(shape), max(cells, 1))
        steps = [[slice(a, min(a + n, size)) for a in range(0, max(size, 1), n)] for size, n in zip(shape, part, strict=True)]
        return list(product(*steps))

    def tasks(self) -> Iterator[Task]:
        """Every step, in the order in which they merge."""
        most = min(BOX_BYTES, max(self.options.bytes // 16 // self.options.threads, 1 << 20))
        step = 0
        for s, slab in enumerate(self.slabs):
            for i, source in enumerate(self.sources):
                if source.shape is None:
                    yield Task(step, s, i, (), None)
                    step += 1
                    continue
                axes = self.axes(source, source.shape)
                part = slab
                if len(self.slabs) == 1:
                    part = tuple(slice(0, n) for n in axes.kept_shape)
                elif any(b.stop > n for b, n in zip(slab, axes.kept_shape, strict=True)):
                    raise ValueError(f"{source.name}: keeps cells of shape {axes.kept_shape}, unlike the files before")
                for box in boxes(source, axes.keep, part, most, self.options.per_item):
                    yield Task(step, s, i, tuple((box[a].start, box[a].stop) for a in axes.keep), box)
                    step += 1

    def work(self, task: Task) -> Leaf:
        """Read and sum: what threads do."""
        source, leaf = self.sources[task.source], Leaf()
        if task.box is not None and source.read is not None:
            self._sum(leaf, source, source.read(task.box), self.axes(source, source.shape or ()).keep)
        elif source.stream is not None:
            for piece in source.stream():
                axes = self.axes(source, piece[0].shape)
                if len(self.slabs) > 1:
                    piece = _cut(piece, axes.keep, self.slabs[task.slab])
                self._sum(leaf, source, piece, axes.keep)
        return leaf

    def _sum(self, leaf: Leaf, source: Source, piece: Piece, keep: tuple[int, ...]) -> None:
        values, where = piece
        options = self.options
        depth = str(values.dtype)
        if leaf.depth not in ("", depth):
            raise ValueError(f"{source.name}: holds {leaf.depth} and {depth} values")
        leaf.depth = depth
        if isinstance(options.nodata, (float, int, tuple)):
            where = _given(values, options.nodata, where, source.name)
        if options.nan_policy != "propagate" and values.dtype.kind == "f":
            if options.nan_policy == "omit":
                real = ~np.isnan(values)
                where = real if where is None else where & real
            elif np.isnan(values if where is None else values[where]).any():
                raise ValueError(f"{source.name}: holds NaN; --nan omit leaves them out")
        factor = _factor(values.dtype, options.scale)
        found = _scaled(_plain_count(moments(values, keep, where=where)), factor)
        leaf.tree.add(found)
        leaf.items += values.shape[0] if values.ndim else 1
        if options.per_item:
            each = moments(values, (0, *keep), where=where)
            with np.errstate(invalid="ignore", divide="ignore"):  # an item without values has no deviation
                spread = np.sqrt(np.asarray(each.squares / each.count)) / factor  # in the precision of the state
            leaf.spread.add(moments(spread, tuple(range(1, spread.ndim)), where=np.isfinite(spread)))
        if options.min_max:
            leaf.bounds(*(v / factor for v in _bounds(values, where, keep)))

    def merge(self, state: State, task: Task, leaf: Leaf) -> None:
        """Add a leaf; sources are complete or not in the answer at all."""
        source = self.sources[task.source]
        if source.pictures and leaf.depth:
            self._alike(source, leaf)
        held = state.parts.setdefault(task.corner, Leaf(depth=leaf.depth))
        for mine, new in ((held.tree, leaf.tree), (held.spread, leaf.spread)):
            total = new.total
            if total is not None:
                mine.add(total)
        held.items += leaf.items
        held.bounds(leaf.low, leaf.high)

    def _alike(self, source: Source, leaf: Leaf) -> None:
        total = leaf.tree.total
        if total is None:
            return
        before = self.first.setdefault("picture", (leaf.depth, total.shape, total.keep))
        if total.shape != before[1] and len(total.shape) == 1 == len(before[1]) and total.keep == (3,):
            has, others = described(total.shape[0]), described(before[1][0])
            raise ValueError(f"{source.name}: has {has}, but others have {others}; --mode RGB makes them alike")
        if leaf.depth != before[0] and self.options.scale != "auto":
            raise ValueError(
                f"{source.name}: holds {leaf.depth} pixels, but others {before[0]}; --scale auto makes them 0 to 1"
            )

    def close(self, state: State) -> None:
        """The source that was read is complete: its parts, side by side, join the total."""
        if not state.parts:
            return
        source = self.sources[state.source]
        trees = [side_by_side({c: getattr(p, n).total for c, p in state.parts.items()}) for n in ("tree", "spread")]
        low, high = (_side({c: getattr(p, n) for c, p in state.parts.items()}) for n in ("low", "high"))
        items = sum(p.items for p in state.parts.values())
        if source.shape is not None:
            items = source.shape[0] if source.shape else 1
        state.parts = {}
        try:
            if trees[0] is not None:
                state.total.tree.add(trees[0])
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from error
        if trees[1] is not None:
            state.total.spread.add(trees[1])
        state.total.bounds(low, high)
        if state.slab == 0:
            state.total.items += items
        state.files.add(state.source)


def ahead(run: Run, tasks: Iterable[Task]) -> Iterator[tuple[Task, Future[Leaf]]]:
    """Work on tasks by threads; their results come in the order of the tasks. The first compiles, before others start."""
    tasks = iter(tasks)
    first = next(tasks, None)
    if first is None:
        return
    yield first, _now(run, first)
    threads = run.options.threads
    with ThreadPoolExecutor(threads, thread_name_prefix="keepnorm") as pool:
        waiting: deque[tuple[Task, Future[Leaf]]] = deque()
        try:
            for task in tasks:
                waiting.append((task, pool.submit(run.work, task)))
                if len(waiting) > threads + 1:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def _now(run: Run, task: Task) -> Future[Leaf]:
    future: Future[Leaf] = Future()
    try:
        future.set_result(run.work(task))
    except FAILURES as error:
        future.set_exception(error)
    return future


def go(run: Run, failed: Callable[[str, Exception], None], step: Callable[[State], bool]) -> Iterator[tuple[Slab, Leaf]]:
    """Go through all steps from where the state is; give each slab when it is complete.

    `step` is called after each step with the state, and says whether to go on. `failed` raises, or the source is skipped.
    """
    state = run.state
    wrong = {i for i, source in enumerate(run.sources) if source.name in state.skipped}
    rest = (task for task in run.tasks() if task.step >= state.done and task.source not in wrong)
    for task, future in ahead(run, rest):
        if task.source != state.source or task.slab != state.slab:
            _close(run, state, failed, wrong)
            if task.slab != state.slab:
                yield run.slabs[state.slab], state.total
                state.total = Leaf(items=state.total.items)
            state.source, state.slab = task.source, task.slab
        if task.source not in wrong:
            try:
                run.merge(state, task, future.result())
            except FAILURES as error:
                _fail(run, state, task.source, error, failed, wrong)
        state.done = task.step + 1
        if not step(state):
            return
    _close(run, state, failed, wrong)
    yield run.slabs[state.slab], state.total


def _close(run: Run, state: State, failed: Callable[[str, Exception], None], wrong: set[int]) -> None:
    try:
        run.close(state)
    except FAILURES as error:
        _fail(run, state, state.source, error, failed, wrong)


def _fail(run: Run, state: State, source: int, error: Exception, failed: Any, wrong: set[int]) -> None:
    name = run.sources[source].name
    if not str(error).startswith(name):
        error = ValueError(f"{name}: {line(error)}")
    failed(name, error)
    wrong.add(source)
    state.parts = {}
    state.skipped[name] = line(error)


def side_by_side(parts: dict[tuple[tuple[int, int], ...], Moments | None]) -> Moments | None:
    """One Moments from those of the parts of the kept axes."""
    first = next(iter(parts.values()))
    if len(parts) == 1 or first is None:
        return first
    corners = list(parts)
    shape = tuple(max(c[a][1] for c in corners) - min(c[a][0] for c in corners) for a in range(len(first.shape)))
    start = tuple(min(c[a][0] for c in corners) for a in range(len(first.shape)))
    shift, delta, m2 = (np.empty(shape) for _ in range(3))
    count, exponent = (np.zeros(shape, np.int64) for _ in range(2))
    for corner, part in parts.items():
        if part is None:
            continue
        place = tuple(slice(a - s, b - s) for (a, b), s in zip(corner, start, strict=True))
        shift[place], delta[place], m2[place], count[place] = part.shift, part.delta, part.m2, part.count
        exponent[place] = 0 if part.exponent is None else part.exponent
    large = exponent if exponent.any() else None
    return _plain_count(first.replaced(count=count, shift=shift, delta=delta, m2=m2, exponent=large))


def _side(parts: dict[tuple[tuple[int, int], ...], Any]) -> Any:
    first = next(iter(parts.values()))
    if len(parts) == 1 or first is None:
        return first
    corners = list(parts)
    start = tuple(min(c[a][0] for c in corners) for a in range(first.ndim))
    whole = np.empty(tuple(max(c[a][1] for c in corners) - start[a] for a in range(first.ndim)))
    for corner, part in parts.items():
        whole[tuple(slice(a - s, b - s) for (a, b), s in zip(corner, start, strict=True))] = part
    return whole


def _plain_count(found: Moments) -> Moments:
    """One number for the count where all cells have the same."""
    count = found.count
    if isinstance(count, int) or not np.size(count) or np.min(count) != np.max(count):
        return found
    return found.replaced(count=int(np.min(count)))


def _scaled(found: Moments, factor: float) -> Moments:
    if factor == 1:
        return found
    return found.replaced(shift=found.shift / factor, delta=found.delta / factor, m2=found.m2 / factor**2)


def _factor(dtype: np.dtype[Any], scale: str | float | None) -> float:
    if scale == "auto":
        return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0
    return float(scale or 1)


def _given(values: Array, nodata: Any, where: Array | None, name: str) -> Array:
    fills = np.atleast_1d(nodata)
    if len(fills) == 1:
        return valid(values, fills[0], where)
    if not values.ndim or values.shape[-1] != len(fills):
        raise ValueError(
            f"{name}: --nodata has {len(fills)} values, but the last axis of shape {values.shape} needs one for each"
        )
    bands = np.stack([valid(values[..., i], fill) for i, fill in enumerate(fills)], -1)
    return bands if where is None else where & bands


def _bounds(values: Array, where: Array | None, keep: tuple[int, ...]) -> tuple[Array, Array]:
    """The smallest and the largest value of each cell, NaN left out and where there is none."""
    over = tuple(a for a in range(values.ndim) if a not in keep)
    real = values.astype(np.float64)
    if where is not None:
        real = np.where(where, real, np.nan)
    if not real.size:
        empty = np.full(tuple(values.shape[a] for a in keep), np.nan)
        return empty, empty
    return np.fmin.reduce(real, over), np.fmax.reduce(real, over)


def _cut(piece: Piece, keep: tuple[int, ...], slab: Slab) -> Piece:
    place = [slice(None)] * piece[0].ndim
    for a, part in zip(keep, slab, strict=True):
        place[a] = part
    where = None if piece[1] is None else np.broadcast_to(piece[1], piece[0].shape)[tuple(place)]
    return piece[0][tuple(place)], where
