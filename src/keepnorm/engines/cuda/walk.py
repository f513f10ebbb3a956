"""Plans on a CUDA device: made once for each arrangement of memory, uploaded once, launched any number of times."""

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from keepnorm.axes import Axes
from keepnorm.engines.cuda.memory import Library, Operand
from keepnorm.kernels.cuda import build as cuda
from keepnorm.kernels.cuda.device import Memory
from keepnorm.kernels.cuda.formulas import SUMS
from keepnorm.kernels.cuda.partition import Cut, cut, pack
from keepnorm.plan import make_plan

Array = Any

_lock = threading.Lock()


class Walk(NamedTuple):
    """A cut plan, what a kernel reads of it, and where that lies on each device."""

    cut: Cut
    groups: int
    blocks: int  # of threads, in a launch
    integers: list[int]
    devices: dict[tuple[str, int], Any]
    cells_in_order: bool
    affine_in_order: bool


def walk(axes: Axes, operands: tuple[Operand | None, ...], wide: int) -> Walk:
    """The walk over arrays of one shape side by side: x, y, dy and mask; None for one that is not there."""
    return _walk(axes, tuple([None if o is None else o.in_memory for o in operands]), wide)


@lru_cache(maxsize=4096)
def _walk(axes: Axes, operands: tuple[tuple[Sequence[int], int, int] | None, ...], wide: int) -> Walk:
    nowhere = (0,) * len(axes.shape)
    steps = tuple(_split_steps(axes, o[0]) if o else nowhere for o in operands)
    itemsize = operands[0][1] if operands[0] else 1
    plan = make_plan(axes.shape, axes.keep, axes.affine, steps, itemsize)
    offsets = [o[2] if o else 0 for o in operands] + [0] * (len(plan.base) - len(operands))
    plan = replace(plan, base=tuple(b + o for b, o in zip(plan.base, offsets, strict=True)))
    done = cut(plan, wide, cuda.SHAPE)
    together = 1 if done.plan.lanes else cuda.SHAPE.threads // done.team
    blocks = -(-done.groups * done.plan.blocks // together)
    return Walk(done, done.groups, blocks, pack(done), {}, _in_order(plan.cell_order), _in_order(plan.affine_order))


def _split_steps(axes: Axes, steps: Sequence[int]) -> tuple[int, ...]:
    """The steps of the split shape: an axis split into (g, c) has the steps (c * step, step)."""
    split = []
    for a, source in enumerate(axes.origin):
        behind = prod(axes.shape[b] for b in range(a + 1, len(axes.shape)) if axes.origin[b] == source)
        split.append(steps[source] * behind)
    return tuple(split)


def _in_order(order: tuple[tuple[int, bool], ...]) -> bool:
    """Whether axes are ascending, none of them turned round."""
    ranks = [a for a, _ in order]
    return not any(turned for _, turned in order) and ranks == sorted(ranks)


class Rows(NamedTuple):
    """Rows of float64 in new memory, and what a kernel takes for each of them, by the name of its argument."""

    values: Array
    given: dict[str, Any]


class Device(NamedTuple):
    """Where a call runs: its library, its device and the caller's stream."""

    library: Library
    like: Array
    number: int
    stream: int

    def pointer(self, array: Array) -> Any:
        """What a kernel takes for an array of which it reads one value at a time."""
        if not cuda.SIMULATED:
            return self.library.address(array)
        return Memory(array.reshape(-1))

    def rows(self, names: tuple[str, ...], cells: int) -> Rows:
        """Room for one value of each cell by each name."""
        values = self.empty((len(names), cells))
        if cuda.SIMULATED:
            return Rows(values, dict(zip(names, map(self.pointer, values), strict=True)))
        first = self.library.address(values)
        return Rows(values, {name: first + 8 * cells * i for i, name in enumerate(names)})

    def empty(self, shape: tuple[int, ...], name: str = "float64") -> Array:
        """New memory on the device.

        Raises
        ------
        MemoryError
            If the device has not enough.
        """
        with guarded(shape, name):
            return self.library.empty(shape, name, self.like)

    def empty_like(self, x: Array, name: str) -> Array:
        """New memory for a result of the shape and, where they leave no gaps, the strides of x."""
        with guarded(x.shape, name):
            return self.library.empty_like(x, name)


class guarded:  # noqa: N801
    """Turn a library's own error of lacking memory into Python's, which names what was asked for."""

    __slots__ = ("name", "shape")

    def __init__(self, shape: Sequence[int], name: str) -> None:
        self.shape, self.name = shape, name

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and kind.__name__ in ("OutOfMemoryError", "CUDAOutOfMemoryError"):
            raise MemoryError(
                f"the CUDA device has no memory for an array of shape {tuple(self.shape)} and dtype {self.name}; got: {error}"
            ) from error


def launch(
    device: Device,
    steps: Walk,
    reduction: str,
    step: str,
    types: cuda.Types,
    *,
    n: float = 0.0,
    eps: float = 0.0,
    mode: int = 0,
    **given: Any,
) -> None:
    """Enqueue a reduction, an elementwise step, or both, over all cells.

    What is given goes by the names of `kernels.cuda_common.Arguments`: operands, arrays, pointers of rows, or None.
    """
    done = steps.cut
    if reduction and done.plan.blocks > 1:
        values = steps.groups * done.slots * SUMS[reduction] * done.tile
        given["part"], given["counters"] = _scratch(device, values, steps.groups * done.counters)
    arguments = {name: _as_argument(device, value) for name, value in given.items() if value is not None}
    plan = _upload(device, steps)
    cuda.launch(
        done.plan.lanes, reduction, step, types, done.wide, steps.blocks, device.number, device.stream,
        plan=plan, n=n, eps=eps, groups=steps.groups, mode=mode, **arguments,
    )  # fmt: skip


def spread(device: Device, cells: int, **given: Any) -> None:
    """Enqueue the kernel that works out mean, rstd and low * rstd of every cell."""
    blocks = -(-cells // cuda.SHAPE.threads)
    types = cuda.Types("float64")
    cuda.launch(False, "spread", "", types, 1, blocks, device.number, device.stream, groups=cells, **given)


def _as_argument(device: Device, value: Any) -> Any:
    if isinstance(value, (int, Memory)):
        return value
    return value.pointer if isinstance(value, Operand) else device.pointer(value)


def _upload(device: Device, steps: Walk) -> Any:
    """A pointer to the integers of a plan on the device: copied there at its first use, and kept there."""
    key = (device.library.name, device.number)
    there = steps.devices.get(key)
    if there is None:
        if device.library.capturing():
            raise RuntimeError(
                "a CUDA graph cannot capture the first call for an arrangement of memory: call once on the same arrays "
                "before the capture; got a call that needs a new plan"
            )
        integers = device.library.upload(steps.integers, device.like)
        there = steps.devices[key] = (device.pointer(integers), integers)
    return there[0]


_scratch_of: dict[tuple[str, int, int], tuple[Array, Array]] = {}
_outgrown: list[tuple[Array, Array]] = []


def _scratch(device: Device, values: int, counters: int) -> tuple[Array, Array]:
    """Room for the sums of blocks, and counters that are zero: kept for each device and stream.

    Every launch leaves the counters at zero. Room that was outgrown stays, since a captured graph may still write to it.
    """
    key = (device.library.name, device.number, device.stream)
    with _lock:
        found = _scratch_of.get(key)
        if found is not None and found[0].shape[0] >= values and found[1].shape[0] >= counters:
            return found
        with guarded((_roomy(values),), "float64"):
            fresh = (
                device.library.empty((_roomy(values),), "float64", device.like),
                device.library.zeros(_roomy(counters), "int32", device.like),
            )
        if device.library.capturing():
            return fresh  # its memory belongs to the graph
        if found is not None:
            _outgrown.append(found)
        _scratch_of[key] = fresh
        return fresh


def _roomy(n: int) -> int:
    """More than n: twice as much if that is little, so that it is not outgrown again and again."""
    return n + max(min(n, 1 << 21), n // 4)


_process = os.getpid()


def check_process() -> None:
    """Refuse to work in a forked child: its parent's CUDA context is lost there, and only the driver's silence would tell.

    Raises
    ------
    RuntimeError
        If this process was forked after CUDA kernels had been used.
    """
    global _process
    if _process != os.getpid():
        if _used:
            raise RuntimeError(
                "CUDA was in use before this process was forked, and does not survive that: start the process with "
                'multiprocessing.get_context("spawn"), or use CUDA only after the fork'
            )
        _process = os.getpid()


_used: list[bool] = []


def mark_used() -> None:
    """Remember that this process has a CUDA context."""
    if not _used:
        _used.append(True)
