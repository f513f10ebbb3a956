"""What the affine step needs of a cell: its mean as two floats, and 1 / sqrt(var + eps); eight cells at once.

Without centring the mean is 0 and the scale 1 / sqrt(mean(x^2) + eps). Where the root is of 0, the scale is 0: the cell's
result is its bias, and its gradient is 0, as where the root is infinite.

For a narrow result both are rounded, the scale to 28 bits and the mean to 29 below the standard deviation: 2^-29 is a
hundredth of the result's last place, and the last bits of float64, which differ with the memory layout, are gone. The mean is
not rounded to nearest: where n has few odd divisors, means halfway between two are common.
"""

from llvmlite import ir
from llvmlite.ir import Constant
from numba import types
from numba.extending import intrinsic

from keepnorm.kernels.columns import DELTA, M2, K, N
from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.simd import FLOATS, WIDTH, call, filled, load_n, store_n
from keepnorm.kernels.jit.compile import exact

# An eighth to a quarter of the last place of what it multiplies, no short fraction of it: what is added before a rounding,
# so that no number of few bits lies halfway.
OFF_HALFWAY = 0.1180339887 * 2.0**-52

# 2^25 + 1, Veltkamp's split after 28 bits, and 1.5 * 2^23: adding it to a number drops the bits below 2^-29 of its unit.
_SPLIT, _DROP = 33554433.0, 12582912.0

_DOUBLE = ir.DoubleType()


@intrinsic
def _centres(typing, n, shift, delta, m2, eps, center, narrow):
    """Mean, the rest of the mean, and scale, from the states of eight cells."""

    def generate(context, builder, signature, arguments):
        n, shift, delta, m2, eps, center, narrow = arguments

        def same(value):
            return filled(builder, Constant(_DOUBLE, value))

        nothing, endless = same(0.0), same(float("inf"))
        var = builder.fdiv(m2, n)  # NaN for an empty cell
        mean = builder.fadd(shift, delta)
        low = builder.fadd(builder.fsub(shift, mean), delta)
        # Infinite values make the mean square infinite; those of both signs leave no mean.
        is_endless = builder.or_(
            builder.fcmp_ordered("==", call(builder, "fabs", mean), endless), builder.fcmp_ordered("==", var, endless)
        )
        square = builder.select(is_endless, endless, builder.fadd(var, builder.fmul(mean, mean)))
        spread = builder.fadd(builder.select(center, var, square), filled(builder, eps))
        scale = builder.fdiv(same(1.0), call(builder, "sqrt", spread))
        scale = builder.select(builder.fcmp_ordered("==", spread, nothing), nothing, scale)
        c = builder.fmul(scale, same(_SPLIT))
        short = builder.fsub(c, builder.fsub(c, scale))
        unit = builder.fdiv(same(_DROP), short)
        off = builder.fmul(unit, same(OFF_HALFWAY))

        def shortened(value):
            return builder.fsub(builder.fadd(builder.fadd(value, off), unit), unit)

        short_mean = shortened(mean)
        # 0 as a rule; of integers whose mean is 2^23 deviations or more, what float64 has lost of it.
        short_low = shortened(builder.fadd(builder.fsub(mean, short_mean), low))
        short_low = builder.select(builder.fcmp_ordered("==", short_low, short_low), short_low, nothing)  # an infinite mean
        # The mean of a constant stays exact, and so does its result; a scale of 0 has no last place.
        has_both = builder.and_(builder.fcmp_ordered(">", var, nothing), builder.fcmp_ordered(">", scale, nothing))
        rounded = builder.and_(has_both, filled(builder, narrow))
        results = [
            builder.select(center, builder.select(rounded, short_mean, mean), nothing),
            builder.select(center, builder.select(rounded, short_low, low), nothing),
            builder.select(rounded, short, scale),
        ]
        return context.make_tuple(builder, signature.return_type, results)

    wide = types.float64, types.boolean, types.boolean
    return types.UniTuple(FLOATS, 3)(FLOATS, FLOATS, FLOATS, FLOATS, *wide), generate


@exact
def set_centers(state, cell, cells, eps, center, narrow, mean, low, scale, at):
    """Work out what the affine step of neighbouring cells needs, from `at` on, once for all that it visits."""
    for i in range(0, cells, WIDTH):
        k = least(WIDTH, cells - i)
        n = load_n(state[N], cell, i, k)
        shift = load_n(state[K], cell, i, k)
        delta = load_n(state[DELTA], cell, i, k)
        m, e, s = _centres(n, shift, delta, load_n(state[M2], cell, i, k), eps, center, narrow)
        store_n(mean, at, i, k, m)
        store_n(low, at, i, k, e)
        store_n(scale, at, i, k, s)
