"""Every use of numba.cuda: what a kernel asks of the device, each with a variant for Numba's simulator.

A pointer is an address that fills 16 bytes evenly, and an index into it counts values: an index that the vector's length
divides is a load of whole vectors. In the simulator a pointer is a `Memory`, and values of half types are their raw bits
there as here, so that the same code widens and narrows them.
"""

import ctypes
import os
import struct
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np


def _restore_row_stack() -> None:
    """Give NumPy 2.5 and later the alias that numba-cuda 0.30 registers an overload for; it was removed from NumPy."""
    if tuple(int(part) for part in np.__version__.split(".")[:2]) >= (2, 5) and not hasattr(np, "row_stack"):
        vars(np)["row_stack"] = np.vstack  # written so that no linter takes the name for a mistake


def _require(package: str) -> None:
    """Say how to get what is missing, before an import says only its name."""
    if find_spec(package) is None:
        raise ImportError(f'CUDA arrays need {package}: python -m pip install "keepnorm[cuda13]" (for CUDA 12: [cuda12])')


_restore_row_stack()
_require("numba_cuda")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # numba-cuda 0.30 makes a timedelta that NumPy 2.5 frowns upon
    from numba import cuda as cuda

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")

# Bytes that one load or store moves at most, and values that a thread keeps in registers at most.
VECTOR_BYTES = 16
MOST_WIDE = 8

# Threads of a block at most, and blocks of a multiprocessor at least: 128 registers a thread, of which a few dozen bytes
# spill outside the loops; with four vectors on the way in each thread, two blocks keep the memory busy.
LAUNCH_BOUNDS = (256, 2)

# What every kernel takes: pointers, then real numbers, then whole ones, of 8 bytes each; NULL is no pointer.
POINTERS, REALS, WHOLES = 16, 2, 2
NULL: Any = None if SIMULATED else 0

# The raw type of the values of each dtype: half types come as their bits.
RAW = {
    "float16": "uint16",
    "bfloat16": "uint16",
    "bool": "uint8",
    **{name: name for name in ("float32", "float64")},
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class DriverError(RuntimeError):
    """What the driver says when it does not do as asked."""


class Memory:
    """Device memory in the simulator: values by index, unknown to Numba, which would copy an array."""

    __slots__ = ("values",)

    def __init__(self, values: Any) -> None:
        self.values = values


def itemsize(name: str) -> int:
    """Bytes of one value of a dtype."""
    return np.dtype(RAW[name]).itemsize


@cache
def vector(*names: str) -> int:
    """How many neighbouring values a thread reads at once, of the widest of these dtypes."""
    return min(MOST_WIDE, VECTOR_BYTES // max(itemsize(name) for name in names))


if SIMULATED:
    from numba.cuda.simulator.kernel import _get_kernel_context as _context

    def inlined(function):
        """A function that runs on the device."""
        return function

    def thread():
        """The index of this thread in its block."""
        return _context().threadIdx.x

    def block():
        """The index of this block."""
        return _context().blockIdx.x

    def sync():
        """Wait for all threads of the block."""
        _context().syncthreads()

    def fence():
        """What this thread wrote is seen by the whole device before what it writes next."""

    def add_one(counters, i):
        """Add 1 to a counter and give what it was."""
        return _context().atomic.add(counters.values, i, 1)

    float64: Any = np.float64

    def exchange(value, mask, room):
        """The value of the thread whose index differs in the bit `mask`, inside a warp."""
        t = thread()
        sync()
        room[t] = value
        sync()
        other = room[t ^ mask]
        sync()
        return other

    @cache
    def load(name, wide):
        """A reader of one value (a tuple of `wide` values, from an index that `wide` divides) of a dtype."""

        def one(pointer, i):
            return pointer.values[i]

        def several(pointer, i):
            assert i % wide == 0, f"index {i} is out of step with vectors of {wide}"
            return tuple(pointer.values[i : i + wide])

        return one if wide == 1 else several

    @cache
    def store(name, wide):
        """A writer of one value, or of a tuple of `wide` values, of a dtype."""

        def one(pointer, i, value):
            pointer.values[i] = value

        def several(pointer, i, values):
            assert i % wide == 0, f"index {i} is out of step with vectors of {wide}"
            pointer.values[i : i + wide] = values

        return one if wide == 1 else several

    def load_fresh(pointer, i):
        """A float64 that another block may have written in this launch."""
        return pointer.values[i]

    def half_to_float(bits):
        """The float32 of a float16's bits."""
        return np.uint16(bits).view(np.float16).astype(np.float32)

    def float_to_half(value):
        """The bits of the float16 nearest to a float32."""
        return np.float32(value).astype(np.float16).view(np.uint16)

    def bits_to_float(bits):
        """The float32 of its bits."""
        return np.uint32(bits).view(np.float32)

    def float_to_bits(value):
        """The bits of a float32."""
        return np.float32(value).view(np.uint32)

    def quotient(a, b):
        """a // b of two numbers from 0 to 2**32."""
        return a // b

    long_quotient = quotient

    def inverse_root(value):
        """One over the square root of a float64."""
        return 1.0 / np.sqrt(value)

    def present(pointer):
        """Whether an optional operand is there."""
        return pointer is not None

    def compiled(function):
        """A kernel that can be launched."""
        return cuda.jit(function)

    def launch_on(kernel, blocks, threads, device, stream, arguments):
        """Run a kernel in the simulator."""
        kernel[blocks, threads](*arguments)

else:
    from cuda.bindings import driver
    from cuda.core import Device
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    def inlined(function):
        """A function that runs on the device, always inlined: its arrays then live in registers."""
        return cuda.jit(device=True, forceinline=True)(function)

    @inlined
    def thread():
        """The index of this thread in its block."""
        return np.int64(cuda.threadIdx.x)

    @inlined
    def block():
        """The index of this block."""
        return np.int64(cuda.blockIdx.x)

    @inlined
    def sync():
        """Wait for all threads of the block."""
        cuda.syncthreads()

    @inlined
    def fence():
        """What this thread wrote is seen by the whole device before what it writes next."""
        cuda.threadfence()

    float64 = types.float64

    @inlined
    def exchange(value, mask, room):
        """The value of the thread whose index differs in the bit `mask`, inside a warp."""
        return cuda.shfl_xor_sync(0xFFFFFFFF, value, mask)

    def _global_pointer(builder, address, index, element, kind):
        """A pointer into global memory, of vectors or of values, to the value at an index."""
        first = builder.inttoptr(address, ir.PointerType(element, addrspace=1))
        return builder.bitcast(builder.gep(first, [index]), ir.PointerType(kind, addrspace=1))

    WORD = ir.IntType(32)

    def _word(n):
        return ir.Constant(WORD, n)

    def _words(name, wide):
        """How many values a 32-bit word holds, and how many words a vector has; (1, wide) for wider values.

        A vector of shorter values would be loaded in halves, so that they travel in words.
        """
        each = max(1, 4 // itemsize(name)) if wide * itemsize(name) >= 4 else 1
        return each, wide // each

    @cache
    def load(name, wide):
        """A reader of one value (a tuple of `wide` values, from an index that `wide` divides) of a dtype."""
        raw = getattr(types, RAW[name])
        result = raw if wide == 1 else types.UniTuple(raw, wide)
        each, words = _words(name, wide)

        @intrinsic
        def read(typing, address, index):
            def generate(context, builder, signature, arguments):
                element = context.get_value_type(raw)
                unit = WORD if each > 1 else element
                kind = unit if words == 1 else ir.VectorType(unit, words)
                pointer = _global_pointer(builder, *arguments, element, kind)
                value = builder.load(pointer, align=min(itemsize(name) * wide, VECTOR_BYTES))
                if wide == 1:
                    return value
                units = [value] if words == 1 else [builder.extract_element(value, _word(w)) for w in range(words)]
                if each == 1:
                    return context.make_tuple(builder, result, units)
                bits = 32 // each
                parts = [builder.trunc(builder.lshr(unit, _word(bits * i)), element) for unit in units for i in range(each)]
                return context.make_tuple(builder, result, parts)

            return result(types.int64, types.int64), generate

        return read

    @cache
    def store(name, wide):
        """A writer of one value, or of a tuple of `wide` values, of a dtype."""
        raw = getattr(types, RAW[name])
        given = raw if wide == 1 else types.UniTuple(raw, wide)
        each, words = _words(name, wide)

        @intrinsic
        def write(typing, address, index, value):
            def generate(context, builder, signature, arguments):
                element = context.get_value_type(raw)
                unit = WORD if each > 1 else element
                kind = unit if words == 1 else ir.VectorType(unit, words)
                pointer = _global_pointer(builder, *arguments[:2], element, kind)
                whole = arguments[2]
                if wide > 1:
                    parts = [builder.extract_value(arguments[2], j) for j in range(wide)]
                    units = [_joined(builder, parts[w * each : (w + 1) * each]) for w in range(words)]
                    whole = units[0] if words == 1 else ir.Constant(kind, ir.Undefined)
                    for w in range(words if words > 1 else 0):
                        whole = builder.insert_element(whole, units[w], _word(w))
                builder.store(whole, pointer, align=min(itemsize(name) * wide, VECTOR_BYTES))
                return context.get_dummy_value()

            return types.void(types.int64, types.int64, given), generate

        return write

    def _joined(builder, parts):
        """Values side by side in one word, the first in the lowest bits; a value alone is itself."""
        if len(parts) == 1:
            return parts[0]
        bits = 32 // len(parts)
        word = builder.zext(parts[0], WORD)
        for i, part in enumerate(parts[1:], 1):
            word = builder.or_(word, builder.shl(builder.zext(part, WORD), _word(bits * i)))
        return word

    @intrinsic
    def load_fresh(typing, address, index):
        """A float64 that another block may have written in this launch: never from a cache of this multiprocessor."""

        def generate(context, builder, signature, arguments):
            function = ir.FunctionType(ir.DoubleType(), [ir.IntType(64)])
            place = builder.add(arguments[0], builder.shl(arguments[1], ir.Constant(ir.IntType(64), 3)))
            asm = ir.InlineAsm(function, "ld.global.cg.f64 $0, [$1];", "=d,l,~{memory}", side_effect=True)
            return builder.call(asm, [place])

        return types.float64(types.int64, types.int64), generate

    @intrinsic
    def add_one(typing, counters, i):
        """Add 1 to a counter and give what it was."""

        def generate(context, builder, signature, arguments):
            pointer = _global_pointer(builder, *arguments, ir.IntType(32), ir.IntType(32))
            return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(32), 1), "monotonic")

        return types.int32(types.int64, types.int64), generate

    def _cast(result, given, generate):
        @intrinsic
        def cast(typing, value):
            return result(given), lambda _context, builder, _signature, arguments: generate(builder, arguments[0])

        return cast

    half_to_float = _cast(
        types.float32, types.uint16, lambda builder, bits: builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())
    )
    float_to_half = _cast(
        types.uint16,
        types.float32,
        lambda builder, value: builder.bitcast(builder.fptrunc(value, ir.HalfType()), ir.IntType(16)),
    )
    bits_to_float = _cast(types.float32, types.uint32, lambda builder, bits: builder.bitcast(bits, ir.FloatType()))
    float_to_bits = _cast(types.uint32, types.float32, lambda builder, value: builder.bitcast(value, ir.IntType(32)))

    def _divided(bits):
        @intrinsic
        def divide(typing, a, b):
            def generate(context, builder, signature, arguments):
                kind, whole = ir.IntType(bits), ir.IntType(64)
                one, other = (n if bits == 64 else builder.trunc(n, kind) for n in arguments)
                found = builder.udiv(one, other)
                return found if bits == 64 else builder.zext(found, whole)

            return types.int64(types.int64, types.int64), generate

        return divide

    # a // b of numbers that are not negative: below 2**32, a tenth of the instructions that Python's division of int64 takes.
    quotient, long_quotient = _divided(32), _divided(64)

    @inlined
    def inverse_root(value):
        """One over the square root of a float64."""
        return cuda.libdevice.rsqrt(value)

    @inlined
    def present(pointer):
        """Whether an optional operand is there."""
        return pointer != 0

    _PACKED = struct.Struct(f"={POINTERS}q{REALS}d{WHOLES}q")

    def signature():
        """The one signature of all kernels."""
        return types.void(*(types.int64,) * POINTERS, *(types.float64,) * REALS, *(types.int64,) * WHOLES)

    class Loaded(NamedTuple):
        """A kernel on a device: what the driver calls it, and what keeps its code there."""

        handle: Any
        owner: Any

    class _Room:
        """The arguments of one launch, and the table of where each of them lies, as the driver reads them."""

        def __init__(self, numbers):
            self.values = bytearray(8 * numbers)
            first = ctypes.addressof(ctypes.c_char.from_buffer(self.values))
            self.table = (ctypes.c_void_p * numbers)(*range(first, first + 8 * numbers, 8))
            self.address = ctypes.addressof(self.table)

    # Room that no launch is using. A launch takes its own out, so that neither another thread nor a signal's handler can
    # write to it; the driver has copied what it needs when its call returns.
    _rooms: list[_Room] = []

    def compiled(function):
        """A kernel compiled and loaded for the current device."""
        one = signature()
        kernel = cuda.jit(one, launch_bounds=LAUNCH_BOUNDS)(function).overloads[one.args]
        kernel.bind()
        loaded = kernel._codelibrary.get_cufunc().kernel
        return Loaded(driver.CUfunction(int(loaded.handle)), loaded)

    def launch_on(kernel, blocks, threads, device, stream, arguments):
        """Enqueue a kernel on a stream of a device; the arguments are integers and floats already."""
        try:
            room = _rooms.pop()
        except IndexError:
            room = _Room(len(arguments))
        _PACKED.pack_into(room.values, 0, *arguments)
        error = _enqueue(kernel, blocks, threads, stream, room)
        if error == driver.CUresult.CUDA_ERROR_INVALID_CONTEXT:
            Device(device).set_current()  # this thread has not used the device yet
            error = _enqueue(kernel, blocks, threads, stream, room)
        _rooms.append(room)
        if error:
            raise DriverError(f"the driver refused to launch a kernel of {blocks} blocks: {error.name}")

    def _enqueue(kernel, blocks, threads, stream, room):
        return driver.cuLaunchKernel(kernel.handle, blocks, 1, 1, threads, 1, 1, 0, stream, room.address, 0)[0]
