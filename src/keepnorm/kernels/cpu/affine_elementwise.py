"""The affine step where every value of a cell has its own weight and bias (layer norm), in float32 where that is enough.

With the scale as the sum of two float32, the larger of which is s::

    y = product * weight + (rest * weight + bias)
    product = float32(x * s)
    rest = x * (scale - s) - mean * scale + (x * s - product)

Each line is rounded once for each of its sums. In units in the last place of ``max(|y|, 1)``, y is off by at most half of one,
half a place of the bias, 1.5 times ``|mean * scale * weight|``, and ``(|weight| + |y - bias|) / 64`` for the 28 bits of mean
and scale (scalars.py): by less than 2 where no weight exceeds 4, no bias 3.5, and ``|mean * scale * weight|`` is 0.2 at most;
or no bias 1.5, and that is 0.5 at most.

Results that are halves have a last place far away, and need no second float32::

    y = ((x - mean) * scale + rest) * weight + bias
    rest = (float32(mean) - mean) * scale

It is rounded once for each operation, and y is off by ``2^-22 |y| + 2^-22 |bias|`` before it becomes a half: by a hundredth of
the last place of a float16 where no bias exceeds 32.

Other cells stay with float64. So does a cell without variance, where nothing must be left of the difference, and one whose
moments were given, which say nothing of how far x may lie from them: in its last place the result may then be another than
that of the same moments of x itself.
"""

import numpy as np
from numba import types
from numpy import float32, float64

from keepnorm.kernels.columns import M2, MEAN, OWN, SCALE
from keepnorm.kernels.cpu import simd_single
from keepnorm.kernels.cpu.integers import least
from keepnorm.kernels.cpu.simd import WIDTH, fill, floats, larger, largest, load_n, lost, total
from keepnorm.kernels.cpu.simd_single import COUNT
from keepnorm.kernels.jit.compile import exact, variant

# The largest bias and weight, and the largest mean in standard deviations times the weight: for float32, where that depends on
# the bias, and for halves.
MOST_BIAS, MOST_BIAS_OF_HALVES = 3.5, 2.0**5
SMALL_BIAS = 1.5
MOST_WEIGHT, MOST_WEIGHT_OF_HALVES = 4.0, 2.0**8
MOST_MEAN, MOST_MEAN_OF_HALVES = 0.2, 2.0**8
MOST_MEAN_OF_SMALL_BIAS = 0.5

# Scales outside keep their second float32 from holding what is left, or may overflow where y does not.
LEAST_FACTOR, MOST_FACTOR = 2.0**-60, 2.0**60


def is_held(dtype):
    """Whether float32 holds every value of a dtype of x, so that there may be a choice."""
    return not isinstance(dtype, types.Integer) and dtype is not types.float64


def largest_mean(x, y, plan, outer, weight, bias):
    """The largest mean in standard deviations for which float32 is enough, if every value has its own weight; else -1.

    A matter of the parameters alone, and only of such as all cells share: neither a memory layout nor a batch changes it.
    """


@variant(largest_mean)
def _largest_mean(x, y, plan, outer, weight, bias):
    if not is_held(x.dtype):
        return lambda x, y, plan, outer, weight, bias: -1.0  # noqa: ARG005
    if y.dtype is types.float32:
        small, most, most_weight = SMALL_BIAS, MOST_BIAS, MOST_WEIGHT
        mean_of_small, most_mean = MOST_MEAN_OF_SMALL_BIAS, MOST_MEAN
    else:
        small, most, most_weight = 0.0, MOST_BIAS_OF_HALVES, MOST_WEIGHT_OF_HALVES
        mean_of_small = most_mean = MOST_MEAN_OF_HALVES

    @exact
    def limit(w, b):
        if not (w <= most_weight and b <= most):
            return -1.0
        share = mean_of_small if b <= small else most_mean
        return share / w if w > 0.0 else np.inf

    if weight.dtype is types.float32 and bias.dtype is types.float32:

        def learn_singles(x, y, plan, outer, weight, bias):
            n = weight.size if plan[OWN] != 0 else 0
            w = b = simd_single.fill(float32(0.0))
            for i in range(0, n, COUNT):
                w = simd_single.larger(simd_single.load_n(weight, 0, i, least(COUNT, n - i)), w)
                b = simd_single.larger(simd_single.load_n(bias, 0, i, least(COUNT, n - i)), b)
            return limit(float64(simd_single.largest(w)), float64(simd_single.largest(b))) if n > 0 else -1.0

        return learn_singles

    def learn(x, y, plan, outer, weight, bias):
        n = weight.size if plan[OWN] != 0 else 0
        w = b = rounded = fill(0.0)
        for i in range(0, n, WIDTH):
            one = load_n(weight, 0, i, least(WIDTH, n - i))
            other = load_n(bias, 0, i, least(WIDTH, n - i))
            w = larger(floats(one), w)
            b = larger(floats(other), b)
            rounded += lost(one) + lost(other)
        return limit(largest(w), largest(b)) if n > 0 and total(rounded) == 0.0 else -1.0

    return learn


@exact
def float32_is_enough(state, cell, largest):
    """Whether it is for one cell, with what `largest_mean` has told: a matter of its own values."""
    scale = state[SCALE, cell]
    usual = state[M2, cell] > 0.0 and LEAST_FACTOR <= scale <= MOST_FACTOR
    return usual and abs(state[MEAN, cell] * scale) <= largest


def float32_parts(x, mean, scale):
    """What the steps of a cell take in float32: scale, its second float32, shift; of halves: scale, mean, rest."""


@variant(float32_parts)
def _float32_parts(x, mean, scale):
    if isinstance(x.dtype, types.Record):
        return lambda x, mean, scale: (float32(scale), float32(mean), float32((float64(float32(mean)) - mean) * scale))  # noqa: ARG005
    return lambda x, mean, scale: (float32(scale), float32(scale - float64(float32(scale))), float32(-mean * scale))  # noqa: ARG005
