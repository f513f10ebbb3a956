"""A CUDA kernel that works out mean, rstd and low * rstd of every cell once, where the cells are walked as parameters."""

from collections.abc import Callable

from keepnorm.kernels.cuda.common import States, normalizer, put, state_of
from keepnorm.kernels.cuda.device import block, thread
from keepnorm.kernels.cuda.partition import Shape


def kernel(shape: Shape) -> Callable[..., None]:
    """From the state of `groups` cells to `weight` (mean), `bias` (rstd) and `third` (low * rstd)."""
    threads = shape.threads

    def spread(
        plan, x, y, z, mask, weight, bias, third, count, shift, delta, m2, sum1, sum2, part, counters,
        n, eps, groups, mode,
    ):  # fmt: skip
        cell = block() * threads + thread()
        if cell < groups:
            seen, k, d, m = state_of(States(count, shift, delta, m2, sum1, sum2), n, cell)
            mean, rstd, low = normalizer(seen, k, d, m, eps, mode)
            put(weight, cell, mean)
            put(bias, cell, rstd)
            put(third, cell, low)

    return spread
