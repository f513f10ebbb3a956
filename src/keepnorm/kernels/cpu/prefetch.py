"""What large arrays need on their way through the caches: rows asked for ahead, and results written past them.

A store that misses the cache first reads its line, and then pushes out a line of x that the next step will want. A
result larger than STREAM would be gone again before anyone reads it, so it goes straight to the memory.
"""

from llvmlite import ir
from llvmlite.ir import Constant
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from keepnorm.kernels.cpu.integers import least, most
from keepnorm.kernels.cpu.scratch import address_of
from keepnorm.kernels.jit.compile import exact
from keepnorm.tuning import (
    BEYOND_ARRAY,
    BEYOND_RUN,
    PREFETCH,
    RUN_ARRAY,
    RUN_DISTANCE,
    STREAM,
    STREAM_ROW,
    STREAM_ROW_UNALIGNED,
    TILE,
    TILE_DISTANCE,
    TILED,
    WRITE_AHEAD,
    WRITE_ARRAY,
)

_CACHE_LINE = 64
_CHARS = ir.IntType(8).as_pointer()


def _address(context, builder, kind, array, index):
    """The address of array[index] as bytes."""
    made = context.make_array(kind)(context, builder, array)
    size = Constant(index.type, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    return builder.gep(builder.bitcast(made.data, _CHARS), [builder.mul(index, size)])


def _fetch(context, builder, signature, arguments, to_write):
    pointer = _address(context, builder, signature.args[0], *arguments)
    kind = ir.FunctionType(ir.VoidType(), [_CHARS, *[ir.IntType(32)] * 3])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(prefetch, [pointer, *(Constant(ir.IntType(32), n) for n in (int(to_write), 3, 1))])
    return context.get_dummy_value()


@intrinsic
def prefetch(typing, array, index):
    """Begin to fetch the cache line of array[index]; an index outside is no error."""

    def generate(context, builder, signature, arguments):
        return _fetch(context, builder, signature, arguments, False)

    return types.none(array, types.intp), generate


@intrinsic
def prefetch_write(typing, array, index):
    """The same for a line that will be written."""

    def generate(context, builder, signature, arguments):
        return _fetch(context, builder, signature, arguments, True)

    return types.none(array, types.intp), generate


@intrinsic
def fence(typing):
    """Let other threads see what was written past the caches."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


@exact
def prefetch_ahead(x, first, step, rows, n):
    """Begin to fetch `rows` rows of n values; where many rows are read at once, the processor does not see a pattern."""
    line = _CACHE_LINE // x.itemsize
    for row in range(rows):
        start = first + row * step
        for i in range(0, n, line):
            prefetch(x, start + i)


@exact
def prefetch_write_ahead(y, start, n):
    """Claim the lines of n values."""
    for i in range(0, n, _CACHE_LINE // y.itemsize):
        prefetch_write(y, start + i)


@exact
def distance(x, n):
    """By how many values a run of n asks ahead; 0 where that would be of no use."""
    return RUN_DISTANCE // x.itemsize if x.nbytes >= RUN_ARRAY and n * x.itemsize >= RUN_DISTANCE else 0


@exact
def distance_of_sums(x, n):
    """The same for the sums of a run, which are the first to read it."""
    return RUN_DISTANCE // x.itemsize if x.nbytes >= BEYOND_ARRAY and n * x.itemsize >= BEYOND_RUN else 0


@exact
def write_ahead(y, nontemporal):
    """By how many values a result is claimed ahead of what is written; 0 where that would be of no use."""
    return WRITE_AHEAD // y.itemsize if y.nbytes >= WRITE_ARRAY and not nontemporal else 0


@exact
def tile_of(x, n, step):
    """How many of the n lanes of four rows, `step` apart, are summed before the next lanes: TILE, or all.

    Four rows read from one end to the other are four streams, none long enough for the processor to foresee, and take
    twice as long as one. Tile by tile, with as many lines asked for in the order of the memory, they are one stream.
    """
    return TILE if step == n and TILE < n <= TILED and x.nbytes >= PREFETCH else n


@exact
def prefetch_in_order(x, first, n, group):
    """Begin to fetch n values, a little ahead of x[first], and at least the `group` of values that is read now."""
    prefetch_ahead(x, first + most(TILE_DISTANCE // x.itemsize, group), 0, 1, n)


@exact
def gathered(x, start, step, n, buffer):
    """Where n values of x lie side by side: in x itself, or in the buffer."""
    if step == 1:
        return x, start
    for i in range(n):
        buffer[i] = x[start + i * step]
    return buffer, 0


@exact
def put(line, y, start, step, n):
    """Bring the results that were made in a line to y[start:], if there is one."""
    for k in range(n if line.size > 0 else 0):
        y[start + k * step] = line[k]


@exact
def before_lines(y, start, n, nontemporal):
    """How many of n values from y[start] on come before the first cache line that is written past the caches, if one is."""
    size = y.itemsize
    return least((-(address_of(y) + start * size) % _CACHE_LINE) // size, n) if nontemporal else 0


@exact
def before_steps(y, start, step):
    """How many values from y[start] on come before the first address that is a multiple of one step's."""
    size = y.itemsize
    return (-(address_of(y) + start * size) % (step * size)) // size


@exact
def whole_steps(y, n, step, nontemporal):
    """How many of n values are written in whole steps; in whole cache lines, where these go past the caches.

    A line of which one half goes past the caches and the other through them takes longer than all the rest of a short row.
    """
    unit = most(step, _CACHE_LINE // y.itemsize) if nontemporal else step
    return n & -unit  # a power of two


@exact
def is_large(y):
    """Whether a result goes past the caches where its rows follow each other."""
    return y.nbytes >= STREAM


@exact
def streams(y, n):
    """Whether a result does whose rows of n values lie apart."""
    row = n * y.itemsize
    whole = address_of(y) % _CACHE_LINE == 0 and row % _CACHE_LINE == 0
    return row >= (STREAM_ROW if whole else STREAM_ROW_UNALIGNED) and is_large(y)
