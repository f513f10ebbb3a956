"""Calls that have been right before, ready to run again: of arrays in C order.

What follows from the axes, the dtype and which parameters there are is worked out once, by `prepare`. What is left for each
call are its arrays: whether they are as those of the first call were. That takes less time than a small kernel does.
"""

from collections.abc import Callable
from math import inf, prod
from typing import Any, TypeAlias

import numpy as np
from numpy import empty, ndarray

from keepnorm.axes import Axes
from keepnorm.engines.memory import STATE_ROWS, Walk, apart, is_half
from keepnorm.engines.results import LARGE, empty_like
from keepnorm.engines.stages import NO_PART, Stage, forward, part_shape
from keepnorm.kernels.threads import available, team
from keepnorm.machine import is_serial

Array = np.ndarray[Any, Any]

# (x, weight, bias, eps, center, out) to the normalised array, or to None where the arguments need a closer look.
Ready: TypeAlias = Callable[[Array, Any, Any, Any, Any, Array | None], Array | None]

_SINGLE = np.dtype(np.float32)

# Values of the states of all cells up to which they are kept for the next call. (Between two kernels, which leave nothing in
# the L1 cache, new ones take 0.5 us.)
_SPARE = 8192


def prepare(axes: Axes, dtype: np.dtype[Any], steps: Walk, entry: Callable[..., None], weight: Array, bias: Array) -> Ready:
    """The call for x of these axes and this dtype; `weight` and `bias` are for the parameters that a call does not have."""
    shape, size = axes.source, prod(axes.source)
    shapes = axes.affine_shape, axes.source_affine_shape
    integers, kept, outer, states = steps.integers, steps.kept, steps.outer, (STATE_ROWS, steps.cells)
    is_small, alone = size * dtype.itemsize < LARGE, is_serial(size, steps.cells)
    parallel, number, team_size = (0, 0, 0) if alone else team()
    serial = forward(steps, 1)
    spare: list[Array] = []  # from calls that have ended; a call takes them out, so that no two have the same
    keeps = prod(states) <= _SPARE
    for_threads: dict[int, tuple[tuple[Stage, ...], tuple[int, ...] | None]] = {}

    def planned(threads: int) -> tuple[tuple[Stage, ...], tuple[int, ...] | None]:
        stages = forward(steps, threads)
        for_threads[threads] = stages, part_shape(steps, stages)
        return for_threads[threads]

    def ready(x: Array, w: Any, b: Any, eps: Any, center: Any, out: Array | None) -> Array | None:
        if type(eps) is not float or not 0.0 <= eps < inf or not (center is True or center is False):
            return None
        if out is not None and not _may_be_written(out, x, w, b):
            return None
        w = weight if w is None else _single(w, shapes)
        b = bias if b is None else _single(b, shapes)
        if w is None or b is None:
            return None
        stages, part = serial, NO_PART
        if not alone and (threads := available()) > 1:
            if not parallel:
                return None
            stages, parts = for_threads.get(threads) or planned(threads)
            if parts is not None:
                part = empty(parts)
        if out is None:
            out = empty(shape, dtype) if is_small else empty_like(x, dtype)
        try:
            state = spare.pop()
        except IndexError:
            state = empty(states)
        try:
            for stage, tasks, n in stages:
                entry(
                    parallel if n > 1 else 0, number, team_size, n, 0, tasks, stage,
                    x, out, integers, kept, outer, part, state, w, b, eps, center,
                )  # fmt: skip
        except TypeError:  # an array is not in C order, or not aligned
            return None
        if keeps:
            spare.append(state)
        return out

    return ready


def _single(values: Any, shapes: tuple[tuple[int, ...], ...]) -> Array | None:
    """A parameter of one of these shapes as float32; None if it needs a closer look."""
    if type(values) is not ndarray or values.shape not in shapes:
        return None
    if values.dtype is _SINGLE:
        return values
    return values.astype(_SINGLE, "C") if is_half(values.dtype) else None


def _may_be_written(out: Array, x: Array, weight: Any, bias: Any) -> bool:
    """Whether `out` is like x, and is x itself or apart from all that is read."""
    return (
        type(out) is ndarray
        and out.dtype is x.dtype
        and out.shape == x.shape
        and out.flags.carray
        and (out is x or apart(x, out))
        and (weight is None or (type(weight) is ndarray and apart(weight, out)))
        and (bias is None or (type(bias) is ndarray and apart(bias, out)))
    )
