"""Eight neighbouring values at once, said explicitly: a loop over single values is that only if the compiler guesses well.

A loop that LLVM turns into vectors first asks whether its arrays overlap, and keeps a second and a third loop for what is left
over; for a run of 196 values that takes as long as the sums. Here the kernels say themselves that they take eight values,
and LLVM makes of them one instruction, two or four, as the processor has.

`load` gives eight values of an array as they are; `differences`, `deviations` and `centred_values` are what the functions
of one value in scalars.py are, and give eight float64, which `+`, `-` and `*` take and `save` writes. What is left at the
end of a row goes through `load_first`, `first` and `save_first`. What `save` writes may also be eight float32.
"""

import operator

from llvmlite import ir
from llvmlite.ir import Constant
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic

from keepnorm.kernels.cpu.integers import whole_range

WIDTH = 8

_BYTES = ir.IntType(8).as_pointer()
_INT = ir.IntType(32)
_WORD = ir.IntType(64)
_HALF_BITS = ir.IntType(16)


def _lanes(kind, count=WIDTH):
    """An LLVM vector of a kind, eight of it where nothing else is said."""
    return ir.VectorType(kind, count)


def _same(kind, value, count=WIDTH):
    """The same constant in all lanes."""
    return Constant(_lanes(kind, count), [value] * count)


_DOUBLES = _lanes(ir.DoubleType())
_SINGLES = _lanes(ir.FloatType())


class Floats(types.Type):
    """Eight float64."""

    def __init__(self):
        super().__init__("float64 x 8")


class Values(types.Type):
    """Eight values of another dtype, as they lie in memory."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(f"{dtype} x 8")


FLOATS = Floats()
SINGLES = Values(types.float32)


@register_default(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _DOUBLES)


@register_default(Values)
class _ValuesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _lanes(_element(kind.dtype)))


def _element(dtype):
    """LLVM's type of one value; float16 and bfloat16 are records around their bits."""
    if isinstance(dtype, types.Record):
        return _HALF_BITS
    if isinstance(dtype, types.Integer):
        return ir.IntType(dtype.bitwidth)
    if dtype is types.boolean:
        return ir.IntType(8)
    return ir.FloatType() if dtype is types.float32 else ir.DoubleType()


def is_narrow_float(dtype):
    """Whether a dtype is float32, float16 or bfloat16."""
    return dtype is types.float32 or isinstance(dtype, types.Record)


def _is_brain(dtype):
    """Whether a dtype is bfloat16."""
    return isinstance(dtype, types.Record) and "bfloat16" in dtype.fields


def _kind(dtype):
    return FLOATS if dtype is types.float64 else Values(dtype)


def place(context, builder, kind, array, start, index, count=WIDTH):
    """The address of array[start + index], as that of `count` values, and the bytes that it is a multiple of."""
    index = builder.add(start, index)
    made = context.make_array(kind)(context, builder, array)
    size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    start = builder.gep(builder.bitcast(made.data, _BYTES), [builder.mul(index, Constant(index.type, size))])
    return builder.bitcast(start, _lanes(_element(kind.dtype), count).as_pointer()), size


def _are_first(builder, n, count):
    """Which of some values are the first n: of eight, n is at most 2^31, of sixteen 2^15, since 256 bits hold the numbers."""
    kind = ir.IntType(256 // count)
    numbers = Constant(_lanes(kind, count), list(range(count)))
    return builder.icmp_signed("<", numbers, filled(builder, builder.trunc(n, kind), count))


def filled(builder, value, count=WIDTH):
    """One value in all lanes."""
    nothing = Constant(_lanes(value.type, count), ir.Undefined)
    one = builder.insert_element(nothing, value, Constant(_INT, 0))
    return builder.shuffle_vector(one, nothing, _same(_INT, 0, count))


def loaded_first(builder, pointer, size, n):
    """The first n of the values at an address, and zeros."""
    lanes = pointer.type.pointee
    mask = _are_first(builder, n, lanes.count)
    kind = ir.FunctionType(lanes, [pointer.type, _INT, mask.type, lanes])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.{_letters(lanes)}.p0")
    return builder.call(function, [pointer, Constant(_INT, size), mask, Constant(lanes, None)])


def store_first(builder, value, pointer, size, n):
    """Store the first n of some values at an address."""
    mask = _are_first(builder, n, value.type.count)
    kind = ir.FunctionType(ir.VoidType(), [value.type, pointer.type, _INT, mask.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.{_letters(value.type)}.p0")
    builder.call(function, [value, pointer, Constant(_INT, size), mask])


def store_past(builder, value, pointer, size, nontemporal):
    """Store some values, past the caches where `past` says so; the address must then be a multiple of what they take."""
    with builder.if_else(nontemporal) as (beside, through):
        with beside:
            store = builder.store(value, pointer, align=value.type.count * size)
            store.set_metadata("nontemporal", builder.module.add_metadata([_INT(1)]))
        with through:
            builder.store(value, pointer, align=size)


@intrinsic
def load(typing, array, start, index):
    """The eight values of a flat array from array[start + index] on."""

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=size)

    return _kind(array.dtype)(array, types.intp, types.intp), generate


@intrinsic
def load_both(typing, array, start, index):
    """The sixteen values of a flat array from array[start + index] on, in any order: two times eight.

    Of bfloat16 those in even places and those in odd ones, since both take one instruction less that way.
    """
    brain = _is_brain(array.dtype)
    kind = SINGLES if brain else _kind(array.dtype)

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments)
        if brain:
            both = split(builder, builder.load(builder.bitcast(pointer, _lanes(_INT).as_pointer()), align=size))
        else:
            both = [builder.load(builder.gep(pointer, [Constant(_INT, n)]), align=size) for n in range(2)]
        return context.make_tuple(builder, signature.return_type, both)

    return types.UniTuple(kind, 2)(array, types.intp, types.intp), generate


@intrinsic
def load_n(typing, array, start, index, n):
    """The first n of eight values, and zeros; the rest is not read."""

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments[:3])
        return loaded_first(builder, pointer, size, arguments[3])

    return _kind(array.dtype)(array, types.intp, types.intp, types.intp), generate


@intrinsic
def load_same(typing, array, place_of_it):
    """One value of a flat array eight times."""

    def generate(context, builder, signature, arguments):
        array, at = arguments
        pointer, size = place(context, builder, signature.args[0], array, at, Constant(at.type, 0), 1)
        one = builder.extract_element(builder.load(pointer, align=size), Constant(_INT, 0))
        return filled(builder, one)

    return _kind(array.dtype)(array, types.intp), generate


# The bits of an infinity in the formats that marks may be the raw bits of: those above it, without the sign, are a NaN.
INFINITE = {
    types.uint16: 0x7C00,  # float16
    types.int16: 0x7F80,  # bfloat16
    types.uint32: 0x7F800000,
    types.uint64: 0x7FF0000000000000,
}


def _let_in(builder, kind, marks):
    """Which of eight values their marks let in: a mask's bytes, weights, or the bits of values, which must be no NaN."""
    if kind is FLOATS:
        return builder.fcmp_unordered("!=", marks, _same(ir.DoubleType(), 0.0))
    element = marks.type.element
    if kind.dtype not in INFINITE:
        return builder.icmp_unsigned("!=", marks, _same(element, 0))
    plain = builder.and_(marks, _same(element, (1 << (element.width - 1)) - 1))
    return builder.icmp_unsigned("<=", plain, _same(element, INFINITE[kind.dtype]))


@intrinsic
def counts(typing, marks):
    """How often each of eight values counts: 1 or 0, or its weight."""

    def generate(context, builder, signature, arguments):
        kind, (marks,) = signature.args[0], arguments
        if kind is FLOATS:
            return marks
        inside = _let_in(builder, kind, marks)
        return builder.select(inside, *(_same(ir.DoubleType(), value) for value in (1.0, 0.0)))

    return FLOATS(marks), generate


@intrinsic
def chosen(typing, marks, values):
    """Eight float64, 0 where their marks do not let them in."""

    def generate(context, builder, signature, arguments):
        marks, values = arguments
        return builder.select(_let_in(builder, signature.args[0], marks), values, _same(ir.DoubleType(), 0.0))

    return FLOATS(marks, FLOATS), generate


@intrinsic
def save(typing, array, start, index, value):
    """Write eight float64 or float32 to a flat array, rounded to its dtype."""

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments[:3])
        builder.store(_rounded(builder, signature.args[0].dtype, arguments[3]), pointer, align=size)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, value), generate


@intrinsic
def write(typing, array, start, index, value, nontemporal):
    """The same, past the caches where `past` says so; the address must then be a multiple of what eight values take."""

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments[:3])
        store_past(builder, _rounded(builder, signature.args[0].dtype, arguments[3]), pointer, size, arguments[4])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, value, types.boolean), generate


@intrinsic
def write_both(typing, array, start, index, values, nontemporal):
    """Write two times eight float64 to where `load_both` has read as many, as `write` does: to a multiple of what all take."""

    def generate(context, builder, signature, arguments):
        kind, at, nontemporal = signature.args[0], arguments[:3], arguments[4]
        both = cgutils.unpack_tuple(builder, arguments[3], 2)
        if _is_brain(kind.dtype):
            pointer, size = place(context, builder, kind, *at, 2 * WIDTH)
            words = united(builder, *(builder.fptrunc(part, _SINGLES) for part in both))
            store_past(builder, builder.bitcast(words, pointer.type.pointee), pointer, size, nontemporal)
        else:
            _write_two(context, builder, kind, at, both, nontemporal)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, values, types.boolean), generate


@intrinsic
def write_two(typing, array, start, index, one, other, nontemporal):
    """Write eight float64 and eight more behind them, as `write` does: to a multiple of what all take."""

    def generate(context, builder, signature, arguments):
        kind, at, (one, other, nontemporal) = signature.args[0], arguments[:3], arguments[3:]
        if _is_brain(kind.dtype):
            # Rounding takes nine instructions, for eight values as for sixteen.
            pointer, size = place(context, builder, kind, *at, 2 * WIDTH)
            store_past(builder, _rounded(builder, kind.dtype, joined(builder, one, other)), pointer, size, nontemporal)
        else:
            _write_two(context, builder, kind, at, (one, other), nontemporal)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, one, other, types.boolean), generate


def _write_two(context, builder, kind, at, both, nontemporal):
    pointer, size = place(context, builder, kind, *at)
    for n, values in enumerate(both):
        store_past(
            builder, _rounded(builder, kind.dtype, values), builder.gep(pointer, [Constant(_INT, n)]), size, nontemporal
        )


@intrinsic
def store_n(typing, array, start, index, n, value):
    """Write the first n of eight float64 or float32."""

    def generate(context, builder, signature, arguments):
        pointer, size = place(context, builder, signature.args[0], *arguments[:3])
        store_first(builder, _rounded(builder, signature.args[0].dtype, arguments[4]), pointer, size, arguments[3])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, types.intp, value), generate


def _letters(lanes):
    """How LLVM's names of functions spell a type of vectors."""
    return f"v{lanes.count}{ {'float': 'f32', 'double': 'f64'}.get(str(lanes.element), str(lanes.element)) }"


@intrinsic
def fill(typing, value):
    """One float64 eight times."""

    def generate(context, builder, signature, arguments):
        return filled(builder, arguments[0])

    return FLOATS(types.float64), generate


@intrinsic
def first(typing, values, n):
    """The first n of eight float64, and zeros."""

    def generate(context, builder, signature, arguments):
        return builder.select(_are_first(builder, arguments[1], WIDTH), arguments[0], Constant(_DOUBLES, [0.0] * WIDTH))

    return FLOATS(FLOATS, types.intp), generate


@intrinsic
def total(typing, values):
    """The sum of eight float64, always in the same order: halves, quarters, the last two."""

    def generate(context, builder, signature, arguments):
        return _halved(builder, arguments[0], builder.fadd)

    return types.float64(FLOATS), generate


def _halved(builder, value, join):
    """Eight values joined to one: each with that of the other half, until there is no other."""
    n = WIDTH
    while n > 1:
        n //= 2
        value = join(*(builder.shuffle_vector(value, value, _places(range(start, start + n))) for start in (0, n)))
    return builder.extract_element(value, Constant(_INT, 0))


@intrinsic
def larger(typing, values, others):
    """The larger of the magnitude of each of eight values and of the other; the other where a value is NaN."""

    def generate(context, builder, signature, arguments):
        return _larger(builder, call(builder, "fabs", arguments[0]), arguments[1])

    return FLOATS(FLOATS, FLOATS), generate


def _larger(builder, one, other):
    return builder.select(builder.fcmp_ordered(">", one, other), one, other)


@intrinsic
def largest(typing, values):
    """The largest of eight float64."""

    def generate(context, builder, signature, arguments):
        return _halved(builder, arguments[0], lambda one, other: _larger(builder, one, other))

    return types.float64(FLOATS), generate


@intrinsic
def lost(typing, values):
    """What each of eight values loses as a float32, in magnitude: 0 where it is one, NaN where it is not finite."""

    def generate(context, builder, signature, arguments):
        kind, (given,) = signature.args[0], arguments
        wide = given if kind is FLOATS else _widened(builder, kind.dtype, given)
        back = builder.fpext(builder.fptrunc(wide, _SINGLES), _DOUBLES)
        return call(builder, "fabs", builder.fsub(wide, back))

    return FLOATS(values), generate


def _places(indices):
    return Constant(ir.VectorType(_INT, len(indices)), list(indices))


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, rounded once where the processor can."""

    def generate(context, builder, signature, arguments):
        return call(builder, "fmuladd", *arguments)

    return FLOATS(FLOATS, FLOATS, FLOATS), generate


@intrinsic
def scaled(typing, a, b, c):
    """a * b + c, rounded twice: where c is the negative product of the same numbers, nothing is left."""

    def generate(context, builder, signature, arguments):
        return builder.fadd(builder.fmul(*arguments[:2]), arguments[2])

    return FLOATS(FLOATS, FLOATS, FLOATS), generate


def call(builder, name, *arguments):
    """One of LLVM's functions of some float64 or float32."""
    lanes = arguments[0].type
    kind = ir.FunctionType(lanes, [lanes] * len(arguments))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{_letters(lanes)}")
    return builder.call(function, arguments)


@intrinsic
def differences(typing, values, shift):
    """Eight values less eight float64; exact for whole numbers from integers of 64 bits, which float64 cannot hold."""

    def generate(context, builder, signature, arguments):
        return _less(builder, signature.args[0], *arguments)

    return FLOATS(values, FLOATS), generate


@intrinsic
def unless(typing, plain, values, shift):
    """`differences`, except that the shift is not subtracted from narrow floats where `plain` says that it is 0.

    It is a branch, since that is what LLVM takes out of a loop: it makes two loops of one.
    """

    def generate(context, builder, signature, arguments):
        plain, values, shift = arguments
        kind = signature.args[1]
        if kind is FLOATS or not is_narrow_float(kind.dtype):
            return _less(builder, kind, values, shift)
        wide = _widened(builder, kind.dtype, values)
        before = builder.block
        with builder.if_then(builder.not_(plain)):
            away = builder.fsub(wide, shift)
            inside = builder.block
        result = builder.phi(_DOUBLES)
        result.add_incoming(wide, before)
        result.add_incoming(away, inside)
        return result

    return FLOATS(types.boolean, values, FLOATS), generate


@intrinsic
def all_near(typing, values, k):
    """Whether each of eight values is nearer to k than half of it."""

    def generate(context, builder, signature, arguments):
        away = _less(builder, signature.args[0], arguments[0], filled(builder, arguments[1]))
        twice = call(builder, "fabs", builder.fadd(away, away))
        near = builder.fcmp_ordered("<", twice, call(builder, "fabs", filled(builder, arguments[1])))
        bits = builder.bitcast(near, ir.IntType(WIDTH))
        return builder.icmp_unsigned("==", bits, Constant(bits.type, 2**WIDTH - 1))

    return types.boolean(values, types.float64), generate


@intrinsic
def deviations(typing, values, mean):
    """Eight values less their means; integers of 64 bits in two steps, the whole numbers first."""

    def generate(context, builder, signature, arguments):
        return _deviation(builder, signature.args[0], *arguments)

    return FLOATS(values, FLOATS), generate


def fold_into(given, result):
    """Whether float64 has digits enough between two dtypes for a mean to go into the shift (affine.py)."""
    return result is not types.float64 and given not in (types.float64, types.int64, types.uint64)


FOLDED = 2.0**20


@intrinsic
def fold_values(typing, values, mean, w, shift, result):
    """The centres and the shifts of eight values on their way to a result, as affine.fold gives them for one."""

    def generate(context, builder, signature, arguments):
        kind, (_, mean, w, shift, _) = signature.args[0], arguments
        both = mean, shift
        if kind is not FLOATS and fold_into(kind.dtype, result.dtype):
            product = builder.fmul(mean, w)
            folds = builder.fcmp_ordered("<", call(builder, "fabs", product), _same(ir.DoubleType(), FOLDED))
            away = builder.fsub(shift, product)
            both = builder.select(folds, Constant(_DOUBLES, None), mean), builder.select(folds, away, shift)
        return context.make_tuple(builder, signature.return_type, both)

    return types.UniTuple(FLOATS, 2)(values, FLOATS, FLOATS, FLOATS, result), generate


@intrinsic
def uncentred(typing, values, centre, result):
    """Eight values less their centres, which are 0 where `fold_into` says so: then it is not subtracted."""

    def generate(context, builder, signature, arguments):
        kind = signature.args[0]
        if kind is not FLOATS and fold_into(kind.dtype, result.dtype):
            return _widened(builder, kind.dtype, arguments[0])
        return _deviation(builder, kind, *arguments[:2])

    return FLOATS(values, FLOATS, result), generate


@intrinsic
def centred_values(typing, values, mean, low):
    """Eight values less means in two floats; the second is below the last place of a narrow float and of a short integer."""

    def generate(context, builder, signature, arguments):
        kind = signature.args[0]
        away = _deviation(builder, kind, *arguments[:2])
        return builder.fsub(away, arguments[2]) if kind is FLOATS or _is_long(kind) else away

    return FLOATS(values, FLOATS, FLOATS), generate


def _is_whole(kind):
    """Whether values are integers that float64 cannot hold."""
    return isinstance(kind, Values) and kind.dtype in (types.int64, types.uint64)


def _is_long(kind):
    """Whether values are integers that float32 cannot hold."""
    return _is_whole(kind) or (isinstance(kind, Values) and kind.dtype in (types.int32, types.uint32))


def _deviation(builder, kind, given, mean):
    if not _is_whole(kind):
        return _less(builder, kind, given, mean)
    least, most = (_same(ir.DoubleType(), end) for end in whole_range(kind.dtype))
    whole = call(builder, "trunc", mean)
    whole = builder.select(builder.fcmp_unordered(">", whole, most), most, whole)
    whole = builder.select(builder.fcmp_ordered("<", whole, least), least, whole)
    return builder.fsub(_less(builder, kind, given, whole), builder.fsub(mean, whole))


def _less(builder, kind, given, shift):
    if not _is_whole(kind):
        return builder.fsub(given if kind is FLOATS else _widened(builder, kind.dtype, given), shift)
    signed = kind.dtype.signed
    whole = (builder.fptosi if signed else builder.fptoui)(shift, _lanes(_WORD))
    above = (builder.icmp_signed if signed else builder.icmp_unsigned)(">=", given, whole)
    away = builder.uitofp(builder.select(above, builder.sub(given, whole), builder.sub(whole, given)), _DOUBLES)
    return builder.select(above, away, builder.fneg(away))


@intrinsic
def floats(typing, values):
    """Eight values as float64."""

    def generate(context, builder, signature, arguments):
        kind = signature.args[0]
        return arguments[0] if kind is FLOATS else _widened(builder, kind.dtype, arguments[0])

    return FLOATS(values), generate


@intrinsic
def singles(typing, values):
    """Eight values as float32: rounded if they are float64."""

    def generate(context, builder, signature, arguments):
        kind, (given,) = signature.args[0], arguments
        if kind is FLOATS:
            return builder.fptrunc(given, _SINGLES)
        return single_of(builder, kind.dtype, given) if isinstance(kind.dtype, types.Record) else given

    return SINGLES(values), generate


@intrinsic
def affine_twice(typing, values, scale, rest, shift, weight, bias):
    """(values * (scale + rest) + shift) * weight + bias in float32, where the rest and the shift are small.

    What the first product loses is added to them, so that all that is lost is half a place of the bias and of the result.
    """

    def generate(context, builder, signature, arguments):
        return affine_and_weighted(builder, *arguments)

    return SINGLES(*[SINGLES] * 6), generate


def joined(builder, first, second):
    """Some values and as many more."""
    return builder.shuffle_vector(first, second, _places(range(2 * first.type.count)))


def halved(builder, values):
    """The inverse of `joined`."""
    count = values.type.count // 2
    return [builder.shuffle_vector(values, values, _places(range(start, start + count))) for start in (0, count)]


def affine_and_weighted(builder, given, scale, rest, shift, weight, bias):
    """What `affine_twice` gives, of any number of float32."""
    product = builder.fmul(given, scale)
    lost = call(builder, "fma", given, scale, builder.fneg(product))
    small = call(builder, "fma", given, rest, builder.fadd(shift, lost))
    return call(builder, "fma", product, weight, call(builder, "fma", small, weight, bias))


@intrinsic
def moved_twice(typing, values, high, factor, rest, weight, bias):
    """((values - high) * factor + rest) * weight + bias in float32, rounded at each step but the products."""

    def generate(context, builder, signature, arguments):
        return moved_and_weighted(builder, *arguments)

    return SINGLES(*[SINGLES] * 6), generate


def moved_values(builder, given, high, factor, rest):
    """(given - high) * factor + rest, rounded twice, of any number of float32."""
    return call(builder, "fma", builder.fsub(given, high), factor, rest)


def moved_and_weighted(builder, given, high, factor, rest, weight, bias):
    """The same times a weight, and a bias, rounded once more."""
    return call(builder, "fma", moved_values(builder, given, high, factor, rest), weight, bias)


@intrinsic
def either(typing, which, values, others):
    """Of eight values and eight others of their kind, the first where `which` is not 0."""

    def generate(context, builder, signature, arguments):
        which, values, others = arguments
        return builder.select(builder.fcmp_unordered("!=", which, Constant(which.type, None)), values, others)

    return values(SINGLES, values, values), generate


def single_of(builder, dtype, given):
    """Some float16 or bfloat16 as float32."""
    count = given.type.count
    kind = _lanes(ir.FloatType(), count)
    if "float16" in dtype.fields:
        return builder.fpext(builder.bitcast(given, _lanes(ir.HalfType(), count)), kind)
    return builder.bitcast(builder.shl(builder.zext(given, _lanes(_INT, count)), _same(_INT, 16, count)), kind)


def split(builder, words):
    """The bfloat16 in both halves of some words, as float32."""
    count = words.type.count
    parts = builder.shl(words, _same(_INT, 16, count)), builder.and_(words, _same(_INT, 0xFFFF0000, count))
    return [builder.bitcast(part, _lanes(ir.FloatType(), count)) for part in parts]


def united(builder, low, high):
    """The inverse of `split`, rounded."""
    count = low.type.count
    low, high = halved(builder, _nearest(builder, joined(builder, low, high)))
    return builder.or_(builder.lshr(low, _same(_INT, 16, count)), builder.and_(high, _same(_INT, 0xFFFF0000, count)))


def half_of(builder, dtype, single):
    """Some float32 rounded to float16 or bfloat16."""
    count = single.type.count
    if "float16" in dtype.fields:
        return builder.bitcast(builder.fptrunc(single, _lanes(ir.HalfType(), count)), _lanes(_HALF_BITS, count))
    return builder.trunc(builder.lshr(_nearest(builder, single), _same(_INT, 16, count)), _lanes(_HALF_BITS, count))


def _nearest(builder, single):
    """Some float32 as words, whose upper halves are the nearest bfloat16, ties to even; a NaN stays one."""
    count = single.type.count
    bits = builder.bitcast(single, _lanes(_INT, count))
    last = builder.and_(builder.lshr(bits, _same(_INT, 16, count)), _same(_INT, 1, count))
    nearest = builder.add(builder.add(bits, _same(_INT, 0x7FFF, count)), last)
    return builder.select(builder.fcmp_unordered("uno", single, single), _same(_INT, 0x7FC00000, count), nearest)


def _widened(builder, dtype, given):
    """Eight values of a dtype as float64."""
    if isinstance(dtype, types.Record):
        return builder.fpext(single_of(builder, dtype, given), _DOUBLES)
    if isinstance(dtype, types.Integer):
        return (builder.sitofp if dtype.signed else builder.uitofp)(given, _DOUBLES)
    return builder.fpext(given, _DOUBLES) if dtype is types.float32 else given


def _rounded(builder, dtype, value):
    """Some float64 or float32 as values of a dtype of results."""
    if dtype is types.float64:
        return value
    kind = _lanes(ir.FloatType(), value.type.count)
    single = value if value.type == kind else builder.fptrunc(value, kind)
    return single if dtype is types.float32 else half_of(builder, dtype, single)


def _operation(name, *operations):
    """Make operators of Python's work on eight float64."""

    class Arithmetic(ConcreteTemplate):
        cases = (signature(FLOATS, FLOATS, FLOATS),)

    def generate(context, builder, signature, arguments):
        return getattr(builder, name)(*arguments)

    for operation in operations:
        infer_global(operation)(Arithmetic)
        lower_builtin(operation, FLOATS, FLOATS)(generate)


_operation("fadd", operator.add, operator.iadd)
_operation("fsub", operator.sub, operator.isub)
_operation("fmul", operator.mul, operator.imul)
