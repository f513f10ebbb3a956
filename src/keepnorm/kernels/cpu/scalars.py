"""What the kernels of both families share: reading and writing one value of any dtype, offsets, blocks, the merge."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from keepnorm.kernels.columns import BLOCKS, CHUNKS, DELTA, FOLD, INNER, M2, PIECES, POSITIONS, ROWS, SIZE, TOGETHER, K, N
from keepnorm.kernels.cpu.integers import least, whole_range
from keepnorm.kernels.jit.compile import exact, variant


@intrinsic
def half_to_float(typing, bits):
    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _float_to_half(typing, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def bits_to_float(typing, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _float_to_bits(typing, value):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@exact
def _to_bfloat(value):
    """Round a float32 to the nearest bfloat16, ties to even; a NaN stays one."""
    bits = _float_to_bits(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(0x7FC0) if value != value else np.uint16(rounded)


def difference(value, shift):
    """The value less the shift, as float64; exact for integers of 64 bits, which float64 cannot hold."""


@variant(difference)
def _difference(value, shift):
    if isinstance(value, types.Record):
        if "float16" in value.fields:
            return lambda value, shift: np.float64(half_to_float(value.float16)) - shift
        return lambda value, shift: np.float64(bits_to_float(np.uint32(value.bfloat16) << np.uint32(16))) - shift
    if value is types.int64:

        def signed(value, shift):
            whole = np.int64(shift)
            if value >= whole:
                return np.float64(np.uint64(value) - np.uint64(whole))
            return -np.float64(np.uint64(whole) - np.uint64(value))

        return signed
    if value is types.uint64:

        def unsigned(value, shift):
            whole = np.uint64(shift)
            return np.float64(value - whole) if value >= whole else -np.float64(whole - value)

        return unsigned
    return lambda value, shift: np.float64(value) - shift


def deviation(value, mean):
    """The value less a mean, as float64; of a 64-bit integer in two steps, the whole numbers first."""


@variant(deviation)
def _deviation(value, mean):
    if value in (types.int64, types.uint64):
        low, high = whole_range(value)

        def in_two_steps(value, mean):
            whole = max(min(np.trunc(mean), high), low)
            return difference(value, whole) - (mean - whole)

        return in_two_steps
    return lambda value, mean: difference(value, mean)


@exact
def _less(value, low):
    """value - low, in this order: where sums may be reordered, low would vanish in mean + low."""
    return value - low


def centred(value, mean, low):
    """The value less a mean in two floats; the second is below the last place of a narrow float and of a short integer."""


@variant(centred)
def _centred(value, mean, low):
    if value in (types.float64, types.int64, types.uint64, types.int32, types.uint32):
        return lambda value, mean, low: _less(deviation(value, mean), low)
    return lambda value, mean, low: deviation(value, mean)  # noqa: ARG005


def store(y, i, value):
    """Write a float64 into y, rounded to its dtype."""


@variant(store, inline="always")
def _store(y, i, value):
    if isinstance(y.dtype, types.Record):
        if "float16" in y.dtype.fields:

            def half(y, i, value):
                y[i].float16 = _float_to_half(np.float32(value))

            return half

        def brain(y, i, value):
            y[i].bfloat16 = _to_bfloat(np.float32(value))

        return brain
    if y.dtype is types.float32:

        def single(y, i, value):
            y[i] = np.float32(value)

        return single

    def double(y, i, value):
        y[i] = value

    return double


@exact
def offset(table, position, column):
    """The offset of one position of the axes of a table, the last axis counting fastest."""
    total = 0
    rest = position
    for a in range(table.shape[0] - 1, 0, -1):
        size = table[a, SIZE]
        outer = rest // size
        total += (rest - outer * size) * table[a, column]
        rest = outer
    return total + rest * table[0, column]


@exact
def block_bounds(plan, b):
    """The outer positions and the steps of the inner axis that block b covers; plan.Plan.block is its twin."""
    if plan[PIECES] == 1:
        first = b * plan[TOGETHER]
        return first, least(first + plan[TOGETHER], plan[POSITIONS]), 0, plan[INNER]
    position = b // plan[PIECES]
    step = plan[ROWS] * plan[FOLD]
    start = (b - position * plan[PIECES]) * step
    return position, position + 1, start, least(start + step, plan[INNER])


@exact
def chunk_and_block(t, plan):
    """Which chunk of cells, and which of its blocks, task t has where each has one of both: in the order of the memory."""
    chunks = plan[CHUNKS]
    row = t // chunks
    position = row // plan[BLOCKS]
    return position * chunks + t - row * chunks, row - position * plan[BLOCKS]


def about_mean(x, n, s, q, delta):
    """M2 from q = sum (x - K)^2, with delta = s / n.

    K of 64-bit integers may be 1024 from their mean, though they differ by one: float64 has no number between. Their s and q
    are whole numbers, mostly exact, and so is what is left of both, if no product is rounded.
    """


@variant(about_mean)
def _about_mean(x, n, s, q, delta):
    if x.dtype in (types.int64, types.uint64):
        return lambda x, n, s, q, delta: _exact_rest(n, s, q, delta)  # noqa: ARG005
    return lambda x, n, s, q, delta: q - s * delta  # noqa: ARG005


@exact
def _product(a, b):
    """a * b and what it loses (Dekker)."""
    c = 134217729.0 * a
    a1 = c - (c - a)
    a2 = a - a1
    c = 134217729.0 * b
    b1 = c - (c - b)
    b2 = b - b1
    p = a * b
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


@exact
def _exact_rest(n, s, q, delta):
    """q - s^2 / n, with s = delta * n + what the division has lost."""
    back, lost = _product(delta, n)
    rest = (s - back) - lost
    square, lost = _product(s, delta)
    return ((q - square) - lost) - s * rest / n


@exact
def set_state(x, part, k, n, shift, s, q):
    """Write the state of n values of x with s = sum (x - K) and q = sum (x - K)^2.

    M2 is infinite where values are, or too far apart for float64, and NaN only where a value is.
    """
    empty = n == 0.0
    delta = s / n
    rest = about_mean(x, n, s, q, delta)
    m2 = np.inf if q == np.inf else rest
    m2 = 0.0 if m2 < 0.0 or empty else m2  # a NaN passes
    part[N, k] = n
    part[K, k] = shift
    part[DELTA, k] = 0.0 if empty else delta
    part[M2, k] = m2


@exact
def set_states(x, part, cells, n, s, q):
    """`set_state` for neighbouring cells, whose shifts `part` holds."""
    for k in range(cells):
        set_state(x, part, k, n, part[K, k], s[k], q[k])


@exact
def merge_state(a, b, k):
    """Merge cell k of state b into state a: the formula of moments.py, for scalars."""
    n1 = a[N, k]
    n2 = b[N, k]
    if n2 == 0.0:
        return
    shift = b[K, k]
    delta = b[DELTA, k]
    m2 = b[M2, k]
    n = n1 + n2
    if n1 > 0.0:
        apart = shift - a[K, k]
        d = apart + (delta - a[DELTA, k])
        finite = -np.inf < d < np.inf
        shift = a[K, k]
        m2 = a[M2, k] + (m2 + (d * d * (n1 / n * n2) if d == d else 0.0))
        delta = a[DELTA, k] + (d * (n2 / n) if finite else delta + apart)
    a[N, k] = n
    a[K, k] = shift
    a[DELTA, k] = delta
    a[M2, k] = m2


@exact
def merge_blocks(part, first, blocks, width):
    """Merge `blocks` states from `first` on, for `width` cells, into the first: a tree in a fixed order."""
    step = 1
    while step < blocks:
        for b in range(0, blocks - step, 2 * step):
            for k in range(width):
                merge_state(part[first + b], part[first + b + step], k)
        step *= 2


@exact
def clear(table, row):
    """Set a row of a table to 0."""
    for i in range(table.shape[1]):
        table[row, i] = 0.0


@exact
def copy_states(part, state, cell, cells):
    """Write the states of neighbouring cells to their places. (A loop: assigning a slice compiles for two seconds.)"""
    for row in range(4):
        for k in range(cells):
            state[row, cell + k] = part[row, k]


def is_narrow(y):
    """Whether y has fewer bits than the state, so that its bits can be the same for every order of summation."""


@variant(is_narrow)
def _is_narrow(y):
    narrow = y.dtype is not types.float64
    return lambda y: narrow  # noqa: ARG005
