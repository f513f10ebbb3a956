"""Plans on a CUDA device: made once for each arrangement of memory, uploaded once, launched any number of times."""

import os
import threading
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from keepnorm.axes import Axes
from keepnorm.engines.cuda_memory import Library, Operand
from keepnorm.kernels import cuda
from keepnorm.kernels.cuda_bodies import SUMS
from keepnorm.kernels.cuda_layout import Cut, cut, pack
from keepnorm.plan import make_plan

Array = Any

_lock = threading.Lock()


class Walk(NamedTuple):
    """A cut plan, what a kernel reads of it, and where that lies on each device."""

    cut: Cut
    integers: list[int]
    devices: dict[tuple[str, int], Any]
    cells_in_order: bool
    affine_in_order: bool


def walk(axes: Axes, operands: tuple[Operand | None, ...], wide: int) -> Walk:
    """The walk over arrays of one shape side by side: x, y, dy and mask; None for one that is not there."""
    return _walk(axes, tuple(None if o is None else o.shape_in_memory for o in operands), wide)


@lru_cache(maxsize=4096)
def _walk(axes: Axes, operands: tuple[tuple[tuple[int, ...], int, int] | None, ...], wide: int) -> Walk:
    nowhere = (0,) * len(axes.shape)
    steps = tuple(_split_strides(axes, o[0], o[1]) if o else nowhere for o in operands)
    itemsize = operands[0][1] if operands[0] else 1
    plan = make_plan(axes.shape, axes.keep, axes.affine, steps, itemsize)
    offsets = [o[2] if o else 0 for o in operands] + [0] * (len(plan.base) - len(operands))
    plan = replace(plan, base=tuple(b + o for b, o in zip(plan.base, offsets, strict=True)))
    done = cut(plan, wide, cuda.SHAPE)
    return Walk(done, pack(done), {}, _in_order(plan.cell_order), _in_order(plan.affine_order))


def _split_strides(axes: Axes, strides: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in values for the split shape: an axis split into (g, c) has the strides (c * stride, stride)."""
    steps = []
    for a, source in enumerate(axes.origin):
        behind = prod(axes.shape[b] for b in range(a + 1, len(axes.shape)) if axes.origin[b] == source)
        steps.append(strides[source] // itemsize * behind)
    return tuple(steps)


def _in_order(order: tuple[tuple[int, bool], ...]) -> bool:
    """Whether axes are ascending, none of them turned round."""
    ranks = [a for a, _ in order]
    return not any(turned for _, turned in order) and ranks == sorted(ranks)


class Device(NamedTuple):
    """Where a call runs: its library, its device and the caller's stream."""

    library: Library
    like: Array
    number: int
    stream: int

    def pointer(self, array: Array | None) -> Any:
        """What a kernel takes for an array of which it reads one value at a time."""
        if array is None:
            return None if cuda.SIMULATED else 0
        if not cuda.SIMULATED:
            return self.library.address(array)
        from keepnorm.kernels.cuda_device import Memory

        return Memory(array.reshape(-1))

    def empty(self, shape: tuple[int, ...], name: str = "float64") -> Array:
        """New memory on the device.

        Raises
        ------
        MemoryError
            If the device has not enough.
        """
        with guarded(f"{prod(shape)} values of {name}"):
            return self.library.empty(shape, name, self.like)

    def empty_like(self, x: Array, name: str) -> Array:
        """New memory for a result of the shape and, where they leave no gaps, the strides of x."""
        with guarded(f"a result of shape {tuple(x.shape)} and dtype {name}"):
            return self.library.empty_like(x, name)


class guarded:  # noqa: N801
    """Turn a library's own error of lacking memory into Python's, which names what was asked for."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if kind is not None and kind.__name__ in ("OutOfMemoryError", "CUDAOutOfMemoryError"):
            raise MemoryError(f"the CUDA device has no memory for {self.what}; got: {error}") from error


def launch(
    device: Device,
    steps: Walk,
    reduction: str,
    step: str,
    types: cuda.Types,
    *,
    first: int = 0,
    groups: int | None = None,
    mode: int = 0,
    **arguments: Any,
) -> None:
    """Enqueue a reduction, an elementwise step, or both, over some groups of cells (all of them by default)."""
    done = steps.cut
    groups = done.groups if groups is None else groups
    types = types._replace(wide=done.wide)
    part = counters = None
    if reduction and done.plan.blocks > 1:
        part, counters = _scratch(device, groups * done.slots * SUMS[reduction] * done.tile, groups * done.counters)
    given = {name: value if name in ("n", "eps") else _as_pointer(device, value) for name, value in arguments.items()}
    blank = device.pointer(None)
    known = cuda.Arguments(*[blank] * len(cuda.POINTER_NAMES))._replace(
        plan=_as_pointer(device, _upload(device, steps)),
        part=device.pointer(part),
        counters=device.pointer(counters),
        first=first,
        groups=groups,
        mode=mode,
        **given,
    )
    together = 1 if done.plan.lanes else cuda.SHAPE.threads // done.team
    tasks = -(-groups * done.plan.blocks // together)
    cuda.launch(done.plan.lanes, reduction, step, types, tasks, known, device.number, device.stream)


def spread(device: Device, cells: int, n: float, eps: float, mode: int, **arguments: Any) -> None:
    """Enqueue the kernel that works out mean, rstd and low * rstd of every cell."""
    blank = device.pointer(None)
    known = cuda.Arguments(*[blank] * len(cuda.POINTER_NAMES))._replace(
        n=n, eps=eps, groups=cells, mode=mode, **{name: device.pointer(value) for name, value in arguments.items()}
    )
    tasks = -(-cells // cuda.SHAPE.threads)
    cuda.launch(False, "spread", "", cuda.Types("float64"), tasks, known, device.number, device.stream)


def _as_pointer(device: Device, value: Any) -> Any:
    return value.pointer if isinstance(value, Operand) else device.pointer(value)


def _upload(device: Device, steps: Walk) -> Array:
    """The integers of a plan on the device: copied there at its first use."""
    key = (device.library.name, device.number)
    there = steps.devices.get(key)
    if there is None:
        if device.library.capturing():
            raise RuntimeError(
                "a CUDA graph cannot capture the first call for an arrangement of memory: call once on the same arrays "
                "before the capture; got a call that needs a new plan"
            )
        there = steps.devices[key] = device.library.upload(steps.integers, device.like)
    return there


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
        with guarded(f"{8 * values} bytes of scratch"):
            fresh = (
                device.library.empty((2 * values,), "float64", device.like),
                device.library.zeros(2 * counters, "int32", device.like),
            )
        if device.library.capturing():
            return fresh  # its memory belongs to the graph
        if found is not None:
            _outgrown.append(found)
        _scratch_of[key] = fresh
        return fresh


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


def common_width(*names: str) -> int:
    """How many neighbouring values of these dtypes a thread reads at once."""
    from keepnorm.kernels.cuda_device import vector

    return vector(*names)


def slab(total: int, bytes_of_one: int, cache: int) -> int:
    """How many groups are read, then read again, before their data leave a cache of so many bytes."""
    return max(1, min(total, cache // max(1, bytes_of_one)))
