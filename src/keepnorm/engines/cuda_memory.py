"""Memory on a CUDA device, whoever owns it: pointers, strides, new arrays and the current stream, by library.

The same few functions for CuPy and PyTorch; a JAX array is taken as CuPy's on the same memory. In Numba's simulator NumPy
arrays stand for the device's.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from math import prod
from typing import Any, NamedTuple

from keepnorm.dispatch import dtype_name

Array = Any

# An address is rounded down to this many bytes, so that an index says whether a vector is aligned.
ALIGNMENT = 16


class Library(NamedTuple):
    """What an engine asks of an array library on a device."""

    name: str
    device_of: Callable[[Array], int]
    inside: Callable[[Array], AbstractContextManager[Any]]  # makes the array's device the current one
    stream: Callable[[int], int]  # the handle of the current stream of a device
    capturing: Callable[[], bool]  # whether that stream is being captured into a graph
    address: Callable[[Array], int]
    strides: Callable[[Array], tuple[int, ...]]  # in bytes
    empty_like: Callable[[Array, str], Array]  # with the strides of x where those leave no gaps
    empty: Callable[[tuple[int, ...], str, Array], Array]  # on the device of the array
    zeros: Callable[[int, str, Array], Array]
    upload: Callable[[list[int], Array], Array]  # int64, seen by every stream
    copy: Callable[[Array, Array], Any]  # into the first, from the second
    cache: Callable[[int], int]  # bytes of the L2 cache of a device


class Operand(NamedTuple):
    """One array as a walk sees it: what a kernel takes for its pointer, and what the plan must know."""

    pointer: Any
    strides: tuple[int, ...]
    itemsize: int
    offset: int  # of the first value, counted from the pointer

    @property
    def shape_in_memory(self) -> tuple[tuple[int, ...], int, int]:
        """What a plan depends on: never the address itself."""
        return self.strides, self.itemsize, self.offset


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
    if root == "numpy" and _simulated():
        return _simulator()
    for base in type(x).__mro__:  # a torch.nn.Parameter, or a class of the user's
        if base.__module__.partition(".")[0] == "torch":
            return _torch()
        if base.__module__.partition(".")[0] == "cupy":
            return _cupy()
    raise TypeError(f"x must be a CuPy array, a PyTorch tensor or a JAX array on a CUDA device; got {type(x).__name__}")


def operand(library: Library, x: Array) -> Operand:
    """An array as a walk sees it."""
    from keepnorm.kernels.cuda_device import itemsize

    size = itemsize(dtype_name(x.dtype))
    if library.name == "simulator":
        return _simulated_operand(x, size)
    address = library.address(x)
    return Operand(address - address % ALIGNMENT, library.strides(x), size, address % ALIGNMENT // size)


def is_contiguous(library: Library, x: Array) -> bool:
    """Whether the values of x lie one after the other in C order."""
    size, step = int(x.itemsize if hasattr(x, "itemsize") else x.element_size()), 1
    for n, stride in zip(reversed(x.shape), reversed(library.strides(x)), strict=True):
        if n != 1 and stride != step * size:
            return False
        step *= n
    return True


def span(library: Library, x: Array) -> tuple[int, int]:
    """The addresses of the first byte of x and of the first one behind it."""
    start = library.address(x)
    size = int(x.itemsize if hasattr(x, "itemsize") else x.element_size())
    steps = [stride * (n - 1) for n, stride in zip(x.shape, library.strides(x), strict=True)]
    return start + sum(min(0, s) for s in steps), start + sum(max(0, s) for s in steps) + size


@cache
def _torch() -> Library:
    import torch

    def strides(x: Array) -> tuple[int, ...]:
        size = x.element_size()
        return tuple(step * size for step in x.stride())

    def upload(numbers: list[int], x: Array) -> Array:
        there = torch.tensor(numbers, dtype=torch.int64).to(x.device)
        torch.cuda.current_stream(x.device).synchronize()
        return there

    return Library(
        name="torch",
        device_of=lambda x: int(x.device.index),
        inside=lambda x: torch.cuda.device(x.device),
        stream=lambda device: int(torch.cuda.current_stream(device).cuda_stream),
        capturing=torch.cuda.is_current_stream_capturing,
        address=lambda x: int(x.data_ptr()),
        strides=strides,
        empty_like=lambda x, name: torch.empty_like(x, dtype=getattr(torch, name), requires_grad=False),
        empty=lambda shape, name, x: torch.empty(shape, dtype=getattr(torch, name), device=x.device),
        zeros=lambda n, name, x: torch.zeros(n, dtype=getattr(torch, name), device=x.device),
        upload=upload,
        copy=lambda out, y: out.copy_(y),
        cache=cache(lambda device: int(torch.cuda.get_device_properties(device).L2_cache_size)),
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
        inside=lambda x: x.device,
        stream=lambda device: int(cupy.cuda.get_current_stream(device).ptr),
        capturing=lambda: bool(cupy.cuda.get_current_stream().is_capturing()),
        address=lambda x: int(x.data.ptr),
        strides=lambda x: tuple(x.strides),
        empty_like=lambda x, name: cupy.empty_like(x, dtype=dtype(name)),
        empty=lambda shape, name, _x: cupy.empty(shape, dtype=dtype(name)),
        zeros=lambda n, name, _x: cupy.zeros(n, dtype=dtype(name)),
        upload=upload,
        copy=lambda out, y: cupy.copyto(out, y),
        cache=cache(lambda device: int(cupy.cuda.Device(device).attributes["L2CacheSize"])),
    )


def _simulated() -> bool:
    from keepnorm.kernels.cuda_device import SIMULATED

    return SIMULATED


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
        inside=lambda _x: nullcontext(),
        stream=lambda _device: 0,
        capturing=lambda: False,
        address=lambda x: int(x.__array_interface__["data"][0]),
        strides=lambda x: tuple(x.strides),
        empty_like=lambda x, name: np.empty_like(x, dtype=dtype(name)),
        empty=lambda shape, name, _x: np.empty(shape, dtype=dtype(name)),
        zeros=lambda n, name, _x: np.zeros(n, dtype=dtype(name)),
        upload=lambda numbers, _x: np.array(numbers, np.int64),
        copy=lambda out, y: np.copyto(out, y),
        cache=lambda _device: 2048,
    )


def _simulated_operand(x: Array, size: int) -> Operand:
    """The memory of a NumPy array from its lowest address on, as raw values."""
    from keepnorm.engines.memory import flat
    from keepnorm.kernels.cuda_device import RAW, Memory

    low = sum(min(0, step * (n - 1)) for n, step in zip(x.shape, x.strides, strict=True))
    values = flat(x).reshape(-1).view(RAW[dtype_name(x.dtype)]) if prod(x.shape) else x.reshape(-1)
    return Operand(Memory(values), tuple(x.strides), size, -low // size)
