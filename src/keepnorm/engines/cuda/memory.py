"""Memory on a CUDA device, whoever owns it: pointers, strides, new arrays and the current stream, by library.

The same few functions for CuPy and PyTorch; a JAX array is taken as CuPy's on the same memory. In Numba's simulator NumPy
arrays stand for the device's.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from math import prod
from typing import Any, NamedTuple

from keepnorm.engines.dispatch import dtype_name
from keepnorm.kernels.cuda.device import RAW, SIMULATED, Memory

Array = Any

# An address is rounded down to this many bytes, so that an index says whether a vector is aligned.
ALIGNMENT = 16


class Library(NamedTuple):
    """What an engine asks of an array library on a device."""

    name: str
    device_of: Callable[[Array], int]
    inside: Callable[[int], AbstractContextManager[Any]]  # makes a device the current one
    stream: Callable[[int], int]  # the handle of the current stream of a device
    capturing: Callable[[], bool]  # whether that stream is being captured into a graph
    address: Callable[[Array], int]
    steps: Callable[[Array], Sequence[int] | None]  # strides in values; None where one ends inside a value
    itemsize: Callable[[Array], int]
    contiguous: Callable[[Array], bool]
    cast: Callable[[Array, str], Array]
    plain: Callable[[Array], Array]  # without a history or a pending sign
    empty_like: Callable[[Array, str], Array]  # with the strides of x where those leave no gaps
    empty: Callable[[tuple[int, ...], str, Array], Array]  # on the device of the array
    zeros: Callable[[int, str, Array], Array]
    upload: Callable[[list[int], Array], Array]  # int64, seen by every stream
    copied: Callable[[Array], Array]
    copy: Callable[[Array, Array], Any]  # into the first, from the second


class Operand(NamedTuple):
    """One array as a walk sees it: what a kernel takes for its pointer, and what the plan must know."""

    pointer: Any
    in_memory: tuple[Sequence[int], int, int]  # what a plan depends on: steps and size of a value, and the offset of the first

    @property
    def itemsize(self) -> int:
        """Bytes of one value."""
        return self.in_memory[1]


def library_of(x: Array) -> Library:
    """The library of an array on a CUDA device.

    Raises
    ------
    TypeError
        If no library is known for it.
    """
    root = type(x).__module__.partition(".")[0]
    if root == "torch":
        return _torch()
    if root == "cupy":
        return _cupy()
    if root == "numpy" and SIMULATED:
        return _simulator()
    for base in type(x).__mro__:  # a torch.nn.Parameter, or a class of the user's
        if base.__module__.partition(".")[0] == "torch":
            return _torch()
        if base.__module__.partition(".")[0] == "cupy":
            return _cupy()
    raise TypeError(f"x must be a CuPy array, a PyTorch tensor or a JAX array on a CUDA device; got {type(x).__name__}")


def operand(library: Library, x: Array) -> Operand:
    """An array as a walk sees it; the offset of its first value is counted from the pointer, in values."""
    size = library.itemsize(x)
    if library.name == "simulator":
        return _simulated_operand(x, size)
    address = library.address(x)
    inside = address % ALIGNMENT
    return Operand(address - inside, (library.steps(x) or (), size, inside // size))


def span(library: Library, x: Array) -> tuple[int, int]:
    """The addresses of the first byte of x and of the first one behind it."""
    start, size = library.address(x), library.itemsize(x)
    ends = [step * size * (n - 1) for n, step in zip(x.shape, library.steps(x) or (), strict=True)]
    return start + sum(min(0, end) for end in ends), start + sum(max(0, end) for end in ends) + size


def _whole_steps(x: Array) -> tuple[int, ...] | None:
    """The strides of NumPy's and CuPy's arrays, which count bytes, in values."""
    size = x.itemsize
    return None if any(step % size for step in x.strides) else tuple(step // size for step in x.strides)


@cache
def _torch() -> Library:
    import torch

    current = nullcontext()
    # Private, and used by the kernels that PyTorch's own compiler makes: a twentieth of the time of the public question.
    raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)

    def inside(device: int) -> AbstractContextManager[Any]:
        return current if torch.cuda.current_device() == device else torch.cuda.device(device)

    def upload(numbers: list[int], x: Array) -> Array:
        there = torch.tensor(numbers, dtype=torch.int64).to(x.device)
        torch.cuda.current_stream(x.device).synchronize()
        return there

    def plain(x: Array) -> Array:
        x = x.detach() if x.requires_grad else x
        return x.resolve_neg() if x.is_neg() else x

    return Library(
        name="torch",
        device_of=lambda x: int(x.device.index),
        inside=inside,
        stream=raw_stream or (lambda device: int(torch.cuda.current_stream(device).cuda_stream)),
        capturing=torch.cuda.is_current_stream_capturing,
        address=torch.Tensor.data_ptr,
        steps=torch.Tensor.stride,
        itemsize=torch.Tensor.element_size,
        contiguous=torch.Tensor.is_contiguous,
        cast=lambda x, name: x.to(getattr(torch, name)),
        plain=plain,
        empty_like=lambda x, name: torch.empty_like(x, dtype=getattr(torch, name), requires_grad=False),
        empty=lambda shape, name, x: torch.empty(shape, dtype=getattr(torch, name), device=x.device),
        zeros=lambda n, name, x: torch.zeros(n, dtype=getattr(torch, name), device=x.device),
        upload=upload,
        copied=lambda x: x.clone(),
        copy=lambda out, y: out.copy_(y),
    )


@cache
def _cupy() -> Library:
    import cupy

    def upload(numbers: list[int], _x: Array) -> Array:
        there = cupy.asarray(numbers, dtype=cupy.int64)
        cupy.cuda.get_current_stream().synchronize()
        return there

    def dtype(name: str) -> Any:
        if name == "bfloat16":
            from ml_dtypes import bfloat16

            return bfloat16
        return name

    return Library(
        name="cupy",
        device_of=lambda x: int(x.device.id),
        inside=lambda device: cupy.cuda.Device(device),
        stream=lambda device: int(cupy.cuda.get_current_stream(device).ptr),
        capturing=lambda: bool(cupy.cuda.get_current_stream().is_capturing()),
        address=lambda x: int(x.data.ptr),
        steps=_whole_steps,
        itemsize=lambda x: x.itemsize,
        contiguous=lambda x: bool(x.flags.c_contiguous),
        cast=lambda x, name: x.astype(dtype(name), copy=False),
        plain=lambda x: x,
        empty_like=lambda x, name: cupy.empty_like(x, dtype=dtype(name)),
        empty=lambda shape, name, _x: cupy.empty(shape, dtype=dtype(name)),
        zeros=lambda n, name, _x: cupy.zeros(n, dtype=dtype(name)),
        upload=upload,
        copied=lambda x: x.copy(),
        copy=lambda out, y: cupy.copyto(out, y),
    )


@cache
def _simulator() -> Library:
    import numpy as np

    def dtype(name: str) -> Any:
        if name == "bfloat16":
            from ml_dtypes import bfloat16

            return bfloat16
        return name

    return Library(
        name="simulator",
        device_of=lambda _x: 0,
        inside=lambda _device: nullcontext(),
        stream=lambda _device: 0,
        capturing=lambda: False,
        address=lambda x: int(x.__array_interface__["data"][0]),
        steps=_whole_steps,
        itemsize=lambda x: x.itemsize,
        contiguous=lambda x: bool(x.flags.c_contiguous),
        cast=lambda x, name: x.astype(dtype(name), copy=False),
        plain=lambda x: x,
        empty_like=lambda x, name: np.empty_like(x, dtype=dtype(name)),
        empty=lambda shape, name, _x: np.empty(shape, dtype=dtype(name)),
        zeros=lambda n, name, _x: np.zeros(n, dtype=dtype(name)),
        upload=lambda numbers, _x: np.array(numbers, np.int64),
        copied=lambda x: x.copy(),
        copy=lambda out, y: np.copyto(out, y),
    )


def _simulated_operand(x: Array, size: int) -> Operand:
    """The memory of a NumPy array from its lowest address on, as raw values."""
    from keepnorm.engines.host.memory import flat

    low = sum(min(0, step * (n - 1)) for n, step in zip(x.shape, x.strides, strict=True))
    values = flat(x).reshape(-1).view(RAW[dtype_name(x.dtype)]) if prod(x.shape) else x.reshape(-1)
    return Operand(Memory(values), (_whole_steps(x) or (), size, -low // size))
