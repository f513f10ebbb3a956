"""Memory that a task needs for itself, from the C library: kernels run without Numba's runtime, which owns its arrays.

An array of `allocate` has no data where there was no memory; a kernel asks `have` before it begins, and releases all of
them at its end, missing ones included.
"""

from llvmlite import ir
from llvmlite.ir import Constant
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from keepnorm.kernels.compile import exact

_LINE = 64  # every array begins a cache line
_BYTES = ir.IntType(8).as_pointer()


def _library(builder, name, result, argument):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [argument]), name)


@intrinsic
def _claim(typing, size):
    """The address of some bytes that begin a cache line, 0 if there are none; the word before them is what to free."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(context.address_size)
        room = builder.add(arguments[0], Constant(word, _LINE + 8))
        start = builder.ptrtoint(builder.call(_library(builder, "malloc", _BYTES, word), [room]), word)
        there = builder.and_(builder.add(start, Constant(word, _LINE + 7)), Constant(word, -_LINE))
        found = builder.icmp_unsigned("!=", start, Constant(word, 0))
        with builder.if_then(found, likely=True):
            before = builder.inttoptr(builder.sub(there, Constant(word, 8)), word.as_pointer())
            builder.store(start, before)
        return builder.select(found, there, Constant(word, 0))

    return types.intp(types.intp), generate


@intrinsic
def _give_back(typing, address):
    """Free what `_claim` has given."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(context.address_size)
        before = builder.inttoptr(builder.sub(arguments[0], Constant(word, 8)), word.as_pointer())
        start = builder.inttoptr(builder.load(before), _BYTES)
        builder.call(_library(builder, "free", ir.VoidType(), _BYTES), [start])
        return context.get_dummy_value()

    return types.none(types.intp), generate


@intrinsic
def _itemsize(typing, dtype):
    kind = _dtype(dtype)

    def generate(context, builder, signature, arguments):
        return context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind)))

    return types.intp(dtype), generate


def _dtype(dtype):
    """The type of the values, of np.float64 or of x.dtype."""
    return dtype.instance_type if isinstance(dtype, types.NumberClass) else dtype.dtype


@intrinsic
def _array(typing, address, shape, dtype):
    """The memory at an address as a C-contiguous array."""
    kind = types.Array(_dtype(dtype), len(shape), "C")

    def generate(context, builder, signature, arguments):
        sizes = cgutils.unpack_tuple(builder, arguments[1], len(shape))
        value = context.get_data_type(kind.dtype)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(value))
        steps, step = [], itemsize
        for size in reversed(sizes):
            steps.append(step)
            step = builder.mul(step, size)
        array = context.make_array(kind)(context, builder)
        pointer = builder.inttoptr(arguments[0], value.as_pointer())
        populate_array(array, pointer, sizes, steps[::-1], itemsize, None)
        return array._getvalue()

    return kind(types.intp, shape, dtype), generate


@intrinsic
def address_of(typing, array):
    """Where the first value of an array lies."""

    def generate(context, builder, signature, arguments):
        made = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(made.data, ir.IntType(context.address_size))

    return types.intp(array), generate


@exact
def lines(n):
    """n, rounded up to rows that each begin a cache line, in values of 8 bytes."""
    return (n + 7) // 8 * 8


@exact
def allocate(shape, dtype):
    """An array of a shape whose values nobody has set; no memory is asked for where a size is 0."""
    size = _itemsize(dtype)
    for n in shape:
        size *= n
    return _array(_claim(size) if size > 0 else 0, shape, dtype)


@exact
def have(array):
    """Whether an array that is not empty has memory."""
    return array.size == 0 or address_of(array) != 0


@exact
def release(array):
    """Free an array of `allocate`."""
    if address_of(array) != 0:
        _give_back(address_of(array))
