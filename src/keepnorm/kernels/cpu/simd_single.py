"""Sixteen values at once, as float32: one instruction where a processor has registers for as many.

They are what the eight float64 of simd.py are where float32 is enough.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic

from keepnorm.kernels.cpu.simd import (
    affine_and_weighted,
    filled,
    half_of,
    halved,
    joined,
    loaded_first,
    moved_and_weighted,
    moved_values,
    place,
    single_of,
    split,
    store_first,
    store_past,
    united,
)

COUNT, BOTH = 16, 32


class Singles(types.Type):
    """Sixteen float32."""

    def __init__(self):
        super().__init__("float32 x 16")


SINGLES = Singles()


@register_default(Singles)
class _SinglesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), COUNT))


def _singles(builder, dtype, values):
    """Values of a dtype as float32."""
    if dtype is types.float64:
        return builder.fptrunc(values, ir.VectorType(ir.FloatType(), COUNT))
    return values if dtype is types.float32 else single_of(builder, dtype, values)


def _rounded(builder, dtype, values):
    """Float32 as values of a dtype of results: halves, or as they are."""
    return values if dtype is types.float32 else half_of(builder, dtype, values)


@intrinsic
def load(typing, array, start, index):
    """Sixteen values of a flat array from array[start + index] on, rounded if they are float64."""

    def generate(context, builder, signature, arguments):
        dtype = signature.args[0].dtype
        pointer, size = place(context, builder, signature.args[0], *arguments, COUNT)
        return _singles(builder, dtype, builder.load(pointer, align=size))

    return SINGLES(array, types.intp, types.intp), generate


@intrinsic
def load_both(typing, array, start, index):
    """Thirty-two halves from array[start + index] on: the first and the last, or of bfloat16 the even and the odd ones."""
    dtype = array.dtype

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments, BOTH)
        if "bfloat16" in dtype.fields:
            words = builder.bitcast(pointer, ir.VectorType(ir.IntType(32), COUNT).as_pointer())
            both = split(builder, builder.load(words, align=size))
        else:
            both = [single_of(builder, dtype, part) for part in halved(builder, builder.load(pointer, align=size))]
        return context.make_tuple(builder, signature.return_type, both)

    return types.UniTuple(SINGLES, 2)(array, types.intp, types.intp), generate


@intrinsic
def load_n(typing, array, start, index, n):
    """The first n of sixteen values, and zeros; the rest is not read."""

    def generate(context, builder, signature, arguments):
        dtype = signature.args[0].dtype
        pointer, size = place(context, builder, signature.args[0], *arguments[:3], COUNT)
        return _singles(builder, dtype, loaded_first(builder, pointer, size, arguments[3]))

    return SINGLES(array, types.intp, types.intp, types.intp), generate


@intrinsic
def store_n(typing, array, start, index, n, values):
    """Write the first n of sixteen values, rounded."""

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments[:3], COUNT)
        store_first(builder, _rounded(builder, signature.args[0].dtype, arguments[4]), pointer, size, arguments[3])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, types.intp, values), generate


@intrinsic
def write(typing, array, start, index, values, nontemporal):
    """Write sixteen values, rounded: past the caches where `past` says so, to a multiple of what they take."""

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments[:3], COUNT)
        store_past(builder, _rounded(builder, signature.args[0].dtype, arguments[3]), pointer, size, arguments[4])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, values, types.boolean), generate


@intrinsic
def write_both(typing, array, start, index, values, nontemporal):
    """Write what `load_both` has read, rounded: past the caches where `past` says so, to a multiple of 64 bytes."""
    dtype = array.dtype

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments[:3], BOTH)
        both = cgutils.unpack_tuple(builder, arguments[3], 2)
        if "bfloat16" in dtype.fields:
            result = builder.bitcast(united(builder, *both), pointer.type.pointee)
        else:
            result = joined(builder, *(half_of(builder, dtype, part) for part in both))
        store_past(builder, result, pointer, size, arguments[4])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, values, types.boolean), generate


@intrinsic
def moved_both(typing, values, high, factor, rest):
    """`moved` for two times sixteen values."""

    def generate(context, builder, signature, arguments):
        values, *given = arguments
        both = [moved_values(builder, part, *given) for part in cgutils.unpack_tuple(builder, values, 2)]
        return context.make_tuple(builder, signature.return_type, both)

    return values(values, SINGLES, SINGLES, SINGLES), generate


@intrinsic
def moved_twice(typing, values, high, factor, rest, weight, bias):
    """((values - high) * factor + rest) * weight + bias, rounded at each step but the products."""

    def generate(context, builder, signature, arguments):
        return moved_and_weighted(builder, *arguments)

    return SINGLES(*[SINGLES] * 6), generate


@intrinsic
def affine_twice(typing, values, scale, rest, shift, weight, bias):
    """(values * (scale + rest) + shift) * weight + bias, where the rest and the shift are small: as that of simd.py."""

    def generate(context, builder, signature, arguments):
        return affine_and_weighted(builder, *arguments)

    return SINGLES(*[SINGLES] * 6), generate


@intrinsic
def larger(typing, values, others):
    """The larger of the magnitude of each value and of the other; NaN where either is.

    Magnitudes compare as their bits do, and those of NaN are above all.
    """

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(ir.IntType(32), COUNT)
        one, other = (builder.bitcast(given, kind) for given in arguments)
        one = builder.and_(one, ir.Constant(kind, [0x7FFFFFFF] * COUNT))
        return builder.bitcast(builder.select(builder.icmp_unsigned(">", one, other), one, other), arguments[0].type)

    return SINGLES(SINGLES, SINGLES), generate


@intrinsic
def largest(typing, values):
    """The largest of sixteen magnitudes, NaN if one is."""

    def generate(context, builder, signature, arguments):
        values = builder.bitcast(arguments[0], ir.VectorType(ir.IntType(32), COUNT))
        while values.type.count > 1:
            one, other = halved(builder, values)
            values = builder.select(builder.icmp_unsigned(">", one, other), one, other)
        return builder.bitcast(builder.extract_element(values, ir.Constant(ir.IntType(32), 0)), ir.FloatType())

    return types.float32(SINGLES), generate


@intrinsic
def fill(typing, value):
    """One float32 sixteen times."""

    def generate(context, builder, signature, arguments):
        return filled(builder, arguments[0], COUNT)

    return SINGLES(types.float32), generate


@intrinsic
def moved(typing, values, high, factor, rest):
    """(values - high) * factor + rest, rounded twice."""

    def generate(context, builder, signature, arguments):
        return moved_values(builder, *arguments)

    return SINGLES(SINGLES, SINGLES, SINGLES, SINGLES), generate
