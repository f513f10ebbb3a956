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

# Bytes of a result from which on it is written past the caches. (Two threads, 32 MiB of cache: 18 MB take 1.5 times as long
# that way, 27 MB as long as otherwise, 60 MB 0.8 times.)
STREAM = 24 << 20

# Bytes of a row, at least, that goes there where rows are whole cache lines.
ROW = 512

# The same where they are not: the ends share their lines with the neighbours and go through the caches. (64 MB in rows of one
# cache line and a part, two threads: 1 KiB 6.2 to 7.4 ms and 8.1 with plain stores, 2 KiB 4.3 and 7.4, 4 KiB 3.4 and 5.5.)
LONG_ROW = 1 << 10

# Bytes of an array from which on rows are asked for ahead.
AHEAD = 1 << 21

# Lanes of a tile, and lanes up to which a row is cut into tiles: longer rows are streams that the processor sees.
TILE, TILED = 32, 512

# Bytes by which a tile asks ahead, at least.
ASKED = 4096

# Values of the line in which a result is made: 4 KiB of float32, so that it stays in the L1 cache.
LINE = 1024

# Bytes by which a long run of a far array asks ahead, and bytes of an array from which on it is far: the memory takes longer
# to answer than the processor looks ahead by itself. (Two threads, 77 MB, runs of 200 KB: moments in 1.5 ms, not in 2 to 3,
# the backward step in 9, not in 12. With 25 MB it gained nothing.)
DISTANCE, FAR = 4096, 1 << 25

# Bytes of an array and of its runs from which on the sums ask ahead, also beyond the end of a run: mostly the next is there.
# (Layer norm of (16384,256), two threads: 0.94 ms, not 1.29.)
BEYOND, BEYOND_RUN = 1 << 22, 512

# Bytes by which a result is claimed ahead, and bytes of a result from which on it is: a store waits for its line to come, and
# the processor does not look ahead for stores as it does for loads.
ROOM, CLAIMED = 4096, 1 << 20

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
def ask(typing, array, index):
    """Begin to fetch the cache line of array[index]; an index outside is no error."""

    def generate(context, builder, signature, arguments):
        return _fetch(context, builder, signature, arguments, False)

    return types.none(array, types.intp), generate


@intrinsic
def claim(typing, array, index):
    """The same for a line that will be written."""

    def generate(context, builder, signature, arguments):
        return _fetch(context, builder, signature, arguments, True)

    return types.none(array, types.intp), generate


@intrinsic
def finish(typing):
    """Let other threads see what was written past the caches."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


@exact
def ask_ahead(x, first, step, rows, n):
    """Begin to fetch `rows` rows of n values; where many rows are read at once, the processor does not see a pattern."""
    line = _CACHE_LINE // x.itemsize
    for row in range(rows):
        start = first + row * step
        for i in range(0, n, line):
            ask(x, start + i)


@exact
def claim_ahead(y, start, n):
    """Claim the lines of n values."""
    for i in range(0, n, _CACHE_LINE // y.itemsize):
        claim(y, start + i)


@exact
def distance(x, n):
    """By how many values a run of n asks ahead; 0 where that would be of no use."""
    return DISTANCE // x.itemsize if x.nbytes >= FAR and n * x.itemsize >= DISTANCE else 0


@exact
def distance_of_sums(x, n):
    """The same for the sums of a run, which are the first to read it."""
    return DISTANCE // x.itemsize if x.nbytes >= BEYOND and n * x.itemsize >= BEYOND_RUN else 0


@exact
def room(y, past):
    """By how many values a result is claimed ahead of what is written; 0 where that would be of no use."""
    return ROOM // y.itemsize if y.nbytes >= CLAIMED and not past else 0


@exact
def tile_of(x, n, step):
    """How many of the n lanes of four rows, `step` apart, are summed before the next lanes: TILE, or all.

    Four rows read from one end to the other are four streams, none long enough for the processor to foresee, and take
    twice as long as one. Tile by tile, with as many lines asked for in the order of the memory, they are one stream.
    """
    return TILE if step == n and TILE < n <= TILED and x.nbytes >= AHEAD else n


@exact
def ask_in_order(x, first, n, group):
    """Begin to fetch n values, a little ahead of x[first], and at least the `group` of values that is read now."""
    ask_ahead(x, first + most(ASKED // x.itemsize, group), 0, 1, n)


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
def before_lines(y, start, n, past):
    """How many of n values from y[start] on come before the first cache line that is written past the caches, if one is."""
    size = y.itemsize
    return least((-(address_of(y) + start * size) % _CACHE_LINE) // size, n) if past else 0


@exact
def before_steps(y, start, step):
    """How many values from y[start] on come before the first address that is a multiple of one step's."""
    size = y.itemsize
    return (-(address_of(y) + start * size) % (step * size)) // size


@exact
def whole_steps(y, n, step, past):
    """How many of n values are written in whole steps; in whole cache lines, where these go past the caches.

    A line of which one half goes past the caches and the other through them takes longer than all the rest of a short row.
    """
    unit = most(step, _CACHE_LINE // y.itemsize) if past else step
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
    return row >= (ROW if whole else LONG_ROW) and is_large(y)
