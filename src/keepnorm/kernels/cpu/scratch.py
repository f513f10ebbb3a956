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

from keepnorm.kernels.jit.compile import exact

_LINE = 64  # every array begins a cache line
_BYTES = ir.IntType(8).as_pointer()


def _library(builder, name, result, argument):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [argument]), name)


def _place_before(context, builder, address):
    """Where the word before an array lies, which is the address to free."""
    word = ir.IntType(context.address_size)
    return builder.inttoptr(builder.sub(address, Constant(word, 8)), word.as_pointer())


def _dtype(dtype):
    """The type of the values, of np.float64 or of x.dtype."""
    return dtype.instance_type if isinstance(dtype, types.NumberClass) else dtype.dtype


@intrinsic
def allocate(typing, shape, dtype):
    """An array of a shape, whose values nobody has set; no memory is asked for where a size is 0."""
    kind = types.Array(_dtype(dtype), len(shape), "C")

    def generate(context, builder, signature, arguments):
        word = ir.IntType(context.address_size)
        value = context.get_data_type(kind.dtype)
        step = itemsize = context.get_constant(types.intp, context.get_abi_sizeof(value))
        sizes, steps = cgutils.unpack_tuple(builder, arguments[0], len(shape)), []
        for size in reversed(sizes):
            steps.append(step)
            step = builder.mul(step, size)
        there = cgutils.alloca_once_value(builder, Constant(word, 0))
        with builder.if_then(builder.icmp_signed(">", step, Constant(word, 0))):
            room = builder.add(step, Constant(word, _LINE + 8))
            start = builder.ptrtoint(builder.call(_library(builder, "malloc", _BYTES, word), [room]), word)
            with builder.if_then(builder.icmp_unsigned("!=", start, Constant(word, 0)), likely=True):
                address = builder.and_(builder.add(start, Constant(word, _LINE + 7)), Constant(word, -_LINE))
                builder.store(start, _place_before(context, builder, address))
                builder.store(address, there)
        array = context.make_array(kind)(context, builder)
        pointer = builder.inttoptr(builder.load(there), value.as_pointer())
        populate_array(array, pointer, sizes, steps[::-1], itemsize, None)
        return array._getvalue()

    return kind(shape, dtype), generate


@intrinsic
def have(typing, arrays):
    """Whether every array of a tuple has memory, or is empty."""

    def generate(context, builder, signature, arguments):
        all_of_them = Constant(ir.IntType(1), 1)
        for kind, array in zip(signature.args[0], cgutils.unpack_tuple(builder, arguments[0]), strict=True):
            made = context.make_array(kind)(context, builder, array)
            empty = builder.icmp_signed("==", made.nitems, Constant(made.nitems.type, 0))
            here = builder.or_(empty, cgutils.is_not_null(builder, made.data))
            all_of_them = builder.and_(all_of_them, here)
        return all_of_them

    return types.boolean(arrays), generate


@intrinsic
def release(typing, arrays):
    """Free the arrays of a tuple, which are those of `allocate`."""

    def generate(context, builder, signature, arguments):
        for kind, array in zip(signature.args[0], cgutils.unpack_tuple(builder, arguments[0]), strict=True):
            made = context.make_array(kind)(context, builder, array)
            with builder.if_then(cgutils.is_not_null(builder, made.data)):
                address = builder.ptrtoint(made.data, ir.IntType(context.address_size))
                start = builder.load(_place_before(context, builder, address))
                builder.call(_library(builder, "free", ir.VoidType(), _BYTES), [builder.inttoptr(start, _BYTES)])
        return context.get_dummy_value()

    return types.none(arrays), generate


@intrinsic
def address_of(typing, array):
    """Where the first value of an array lies."""

    def generate(context, builder, signature, arguments):
        made = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(made.data, ir.IntType(context.address_size))

    return types.intp(array), generate


@exact
def lines(n):
    """The values of 8 bytes in a row that has room for n, begins a cache line, and ends with a whole one that is free.

    The free line is where eight values may end that begin with the last, and rows of 4 KiB would all lie in the same few sets
    of the L1 cache.
    """
    return (n + 7) // 8 * 8 + 8
