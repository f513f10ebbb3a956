"""The fast path: a repeated call of arrays in C order.

What follows from the axes, the dtype and which parameters there are is worked out once, by `prepare` and its sisters. A
repeated call only checks that its arrays have the type, dtype, shape and order of the first one; it returns None where they
do not, and the long path decides. That takes less time than a small kernel does.
"""

from collections.abc import Callable
from functools import cache, partial
from math import inf, prod
from typing import Any, TypeAlias

import numpy as np
from numpy import empty, ndarray

from keepnorm.axes import Axes
from keepnorm.engines.host.memory import UNIT, Walk, apart, is_half, ones, zeros
from keepnorm.engines.host.pool import empty_like
from keepnorm.engines.host.stages import NO_OUTPUT, NO_PART, Stage, affine, centers, forward, part_shape, reduction
from keepnorm.kernels.columns import DELTA, M2, STATE_ROWS, K, N
from keepnorm.kernels.jit.launch import start
from keepnorm.kernels.jit.threads import available, team
from keepnorm.machine import is_serial
from keepnorm.moments import Moments
from keepnorm.powers import is_held
from keepnorm.precision import moments_name
from keepnorm.tuning import POOLED, SHARED
from keepnorm.tuning import SPARE_CELLS as _SPARE_CELLS

Array = np.ndarray[Any, Any]

# (x, weight, bias, eps, center, out) to the normalised array, or to None where the arguments need a closer look.
Ready: TypeAlias = Callable[[Array, Any, Any, Any, Any, Array | None], Array | None]

# x to its moments, or to None.
Measured: TypeAlias = Callable[[Array], Moments | None]

# (x, weight, bias, eps, center, moments, out) to the normalised array, or to None.
Applied: TypeAlias = Callable[[Array, Any, Any, float, bool, Moments | None, Array | None], Array | None]

# The machine code of a kernel, as `keepnorm.kernels.jit.launch.entry_for` gives it.
Entry: TypeAlias = Callable[..., None]

_SINGLE = np.dtype(np.float32)

# Arrays for the states of up to 1024 cells, for the next call of whatever shape. (Between two kernels, which leave nothing in
# the L1 cache, a new one takes 0.5 us.) They are as long as the next power of two, and a cache line more: seven rows that are
# 4 KiB apart would lie in the same few sets of that cache. Each list has as many as there were calls at the same time.
_spare: tuple[list[Array], ...] = tuple([] for _ in range(_SPARE_CELLS.bit_length()))


def prepare(
    axes: Axes, dtype: np.dtype[Any], steps: Walk, entry: Callable[..., None], has_weight: bool, has_bias: bool
) -> Ready:
    """The call for x of these axes and this dtype, with a weight and a bias or without."""
    shape, size = axes.source, prod(axes.source)
    shapes = axes.affine_shape, axes.source_affine_shape
    parameters = prod(axes.affine_shape) if has_weight or has_bias else 1
    weight = None if has_weight or parameters > SHARED else ones(parameters)
    bias = None if has_bias or parameters > SHARED else zeros(parameters)
    integers, kept, outer, cells = steps.integers, steps.kept, steps.outer, steps.cells
    keeps = cells <= _SPARE_CELLS
    order = (cells - 1).bit_length()
    spare: list[Array] = _spare[order] if keeps else []  # a call takes one out, so that no two have the same
    states = STATE_ROWS, (1 << order) + 8 if keeps else cells
    is_small, alone = size * dtype.itemsize < POOLED, is_serial(size, cells)
    parallel, number, team_size = (0, 0, 0) if alone else team()
    serial = forward(steps, 1)
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
        w = (ones(parameters) if weight is None else weight) if w is None else _single(w, shapes)
        b = (zeros(parameters) if bias is None else bias) if b is None else _single(b, shapes)
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


def prepare_moments(axes: Axes, dtype: np.dtype[Any], steps: Walk, entry: Entry) -> Measured:
    """The moments of x of these axes and this dtype; None for float64 data whose squares float64 may not hold."""
    integers, kept, outer, cells = steps.integers, steps.kept, steps.outer, steps.cells
    count, shape, keep, ndim = axes.count, axes.kept_shape, axes.keep, len(axes.shape)
    name = moments_name(dtype.name)
    alone, wide = is_serial(prod(axes.shape), cells), dtype == np.float64

    @cache
    def planned(threads: int) -> tuple[tuple[Stage, ...], tuple[int, ...] | None]:
        stages = reduction(steps, threads)
        return stages, part_shape(steps, stages)

    def measured(x: Array) -> Moments | None:
        stages, parts = planned(1 if alone else available())
        state = empty((STATE_ROWS, cells))
        arguments = x, NO_OUTPUT, integers, kept, outer, NO_PART if parts is None else empty(parts), state, *UNIT, 0.0, True
        try:
            for stage, tasks, threads in stages:
                start(entry, threads, tasks, stage, arguments)
        except TypeError:  # x is not in C order, or not aligned
            return None
        shift, delta, m2 = state[K : M2 + 1].copy().reshape(3, *shape)
        if wide and not is_held(shift, m2):
            return None
        return Moments(count, shift, delta, m2, keep=keep, ndim=ndim, dtype=name)

    return measured


def prepare_given(axes: Axes, dtype: np.dtype[Any], steps: Walk, entry: Entry) -> Applied:
    """The affine step of x of these axes and this dtype, narrow floats; given None, of cells with mean 0 and variance 1."""
    shape, size, cells = axes.source, prod(axes.source), steps.cells
    shapes = axes.affine_shape, axes.source_affine_shape
    parameters = prod(axes.affine_shape)
    integers, kept, outer = steps.integers, steps.kept, steps.outer
    is_small, alone = size * dtype.itemsize < POOLED, is_serial(size, cells)
    planned = cache(partial(affine, steps))
    first = centers(steps)

    def applied(x: Array, w: Any, b: Any, eps: float, center: bool, given: Moments | None, out: Array | None) -> Array | None:
        if out is not None and not _may_be_written(out, x, w, b):
            return None
        w = ones(parameters) if w is None else _single(w, shapes)
        b = zeros(parameters) if b is None else _single(b, shapes)
        if w is None or b is None:
            return None
        state = empty((STATE_ROWS, cells))
        if given is None:
            state[N], state[K], state[DELTA], state[M2] = 1.0, 0.0, 0.0, 1.0
        elif type(given.shift) is ndarray and given.exponent is None and (given.count is None or type(given.count) is int):
            state[N] = 1 if given.count is None else given.count
            for row, values in ((K, given.shift), (DELTA, given.delta), (M2, given.m2)):
                state[row] = values.reshape(-1)
        else:
            return None
        if out is None:
            out = empty(shape, dtype) if is_small else empty_like(x, dtype)
        arguments = x, out, integers, kept, outer, NO_PART, state, w, b, eps, center
        try:
            start(entry, first.threads, first.tasks, first.number, arguments)
            state[M2] = 0.0  # no reduction has seen how far x may lie from the mean: the kernels take the exact way
            stage, tasks, threads = planned(1 if alone else available())
            start(entry, threads, tasks, stage, arguments)
        except TypeError:  # an array is not in C order, or not aligned
            return None
        return out

    return applied


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
