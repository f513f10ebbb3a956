"""The CUDA kernels by name: made for the dtypes of a call, compiled for its device at the first call, launched on its stream.

A kernel takes pointers as integers and two floats, with one explicit signature: nothing is typed at a launch.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from keepnorm.kernels.cuda import columns, rows, spread
from keepnorm.kernels.cuda.common import Arguments
from keepnorm.kernels.cuda.device import NULL, SIMULATED, compiled, launch_on
from keepnorm.kernels.cuda.formulas import Types
from keepnorm.kernels.cuda.partition import Shape

# A block of the simulator is as many Python threads; small ones meet the same branches.
SHAPE = Shape(threads=8, warp=4, block=32, most=16, fan=2) if SIMULATED else Shape()

__all__ = ["NULL", "SHAPE", "SIMULATED", "Types", "function", "launch"]


@cache
def function(lanes: bool, reduction: str, step: str, types: Types, shape: Shape = SHAPE) -> Callable[..., None]:
    """A kernel as a plain function: a reduction, an elementwise step, or one after the other."""
    if reduction == "spread":
        return spread.kernel(shape)
    family = columns if lanes else rows
    return family.kernel(reduction, step, types, shape)


@cache
def _ready(lanes: bool, reduction: str, step: str, types: Types, wide: int, device: int) -> Any:
    return compiled(function(lanes, reduction, step, types._replace(wide=wide)))


def launch(
    lanes: bool, reduction: str, step: str, types: Types, wide: int, tasks: int, device: int, stream: int, **given: Any
) -> None:
    """Enqueue a kernel for `tasks` blocks on a stream of the current device; what it is not given is null.

    Memory that `given` points to must be the caller's until this returns; what is freed after it, on the same stream, is
    used again only by what follows the kernel there.
    """
    kernel = _ready(lanes, reduction, step, types, wide, device)
    launch_on(kernel, tasks, SHAPE.threads, device, stream, Arguments(**given))
