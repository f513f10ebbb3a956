"""What the memory can do: a copy and a sum on all threads. Nothing that reads or writes every value can be faster for long.

Slices are taken first and indexed from zero: a loop that starts elsewhere is not vectorised.
"""

from functools import cache
from typing import Any

import numpy as np

from asv_bench.cases import Data


def copy(data: Data) -> Any:
    """A call that copies x into an array that is already there."""
    kernel, x = _kernels()[0], _flat(data)
    y = np.full_like(x, 0)

    def call() -> Any:
        kernel(x, y)
        return y

    return call


def read(data: Data) -> Any:
    """A call that sums the values of x, which are contiguous, in float32."""
    kernel, x = _kernels()[1], _flat(data)
    return lambda: kernel(x)


def _flat(data: Data) -> Any:
    if data.case.dtype != "float32":
        raise ValueError(f"a yardstick needs a float32 array; got {data.case.dtype}")
    return data.x.reshape(-1)


@cache
def _kernels() -> tuple[Any, Any]:
    import numba

    @numba.njit(parallel=True, error_model="numpy")
    def copy_all(x: Any, y: Any) -> None:
        threads = numba.get_num_threads()
        for t in numba.prange(threads):
            source = x[t * x.size // threads : (t + 1) * x.size // threads]
            target = y[t * x.size // threads : (t + 1) * x.size // threads]
            for i in range(source.size):
                target[i] = source[i]

    @numba.njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})
    def sum_part(part: Any) -> Any:
        total = np.float32(0)
        for i in range(part.size):
            total += part[i]
        return total

    @numba.njit(parallel=True, error_model="numpy")
    def sum_all(x: Any) -> Any:
        threads = numba.get_num_threads()
        partial = np.zeros(threads, x.dtype)
        for t in numba.prange(threads):
            partial[t] = sum_part(x[t * x.size // threads : (t + 1) * x.size // threads])
        return partial.sum()

    return copy_all, sum_all
