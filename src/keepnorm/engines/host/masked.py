"""Moments of the values of a NumPy array where a mask is true, or that have weights."""

from math import prod
from typing import Any, cast

import numpy as np

from keepnorm.axes import Axes
from keepnorm.engines.host.memory import flat, in_place, plain, readable, walk
from keepnorm.kernels.columns import MEASURED_ROWS, MERGE, STATES
from keepnorm.kernels.jit.launch import run
from keepnorm.kernels.jit.threads import threads_for
from keepnorm.moments import Moments
from keepnorm.precision import moments_name

Array = np.ndarray[Any, Any]


def moments(x: Array, axes: Axes, where: Array) -> Moments:
    """Count, mean and variance of the values of each kept cell where the mask is true."""
    state = _state(x, axes, where)
    if state is None:
        return _no_data(x, axes)
    count, shift, delta, m2 = state
    return _as_moments(x, axes, count.astype(np.int64), shift, delta, m2)


# The dtypes under which the bits of floats reach the kernel, which tell it what the bits of a NaN are.
_BITS = {"float16": np.uint16, "bfloat16": np.int16, "float32": np.uint32, "float64": np.uint64}


def omitting(x: Array, axes: Axes) -> Moments:
    """Count, mean and variance of the values of each kept cell that are no NaN: the kernel asks them as it reads them."""
    x = readable(x)
    return moments(x, axes, x.view(_BITS[x.dtype.name]))


def weighted_moments(x: Array, axes: Axes, weights: Array) -> Moments:
    """Count, mean and variance of the values of each kept cell, each as often as its weight says; 0 leaves it out."""
    state = _state(x, axes, weights)
    counted = count_positive(weights, axes)
    if state is None:
        return _no_data(x, axes).replaced(sum_weights=np.zeros(axes.kept_shape))
    total, shift, delta, m2 = state
    return _as_moments(x, axes, counted, shift, delta, m2).replaced(sum_weights=total)


def count_positive(weights: Array, axes: Axes) -> Array:
    """How many values of each kept cell have a weight above 0."""
    if weights.all():
        return np.full(axes.kept_shape, axes.count, np.int64)
    given = weights.reshape((1,) * (len(axes.source) - weights.ndim) + weights.shape)
    if axes.shape == axes.source:  # what is broadcast is multiplied
        some = np.count_nonzero(given, axis=axes.reduce, keepdims=True)
        times = prod(axes.shape[a] for a in axes.reduce if given.shape[a] == 1)
        counts = np.broadcast_to(some * times, axes.broadcast_shape).reshape(axes.kept_shape)
        return cast("Array", counts.astype(np.int64))
    whole = np.broadcast_to(given, axes.source).reshape(axes.shape)
    return np.asarray(np.count_nonzero(whole, axis=axes.reduce), np.int64).reshape(axes.kept_shape)


def _state(x: Array, axes: Axes, marks: Array) -> tuple[Array, ...] | None:
    """(n, K, delta, M2) of each kept cell, with n the sum of the marks; None of no data."""
    x = readable(x)
    mask = in_place(np.broadcast_to(marks, x.shape))
    if x.size == 0:
        return None
    steps = walk(plain(axes), (x, mask))
    plan = steps.plan
    groups = plan.cells_outside * plan.chunks
    part = np.empty((groups * plan.blocks, MEASURED_ROWS, plan.chunk))
    state = np.empty((MEASURED_ROWS, plan.cells))
    values, flags = flat(x), flat(mask)
    dtypes = values.dtype, flags.dtype
    arguments = (values, flags, steps.integers, steps.kept, steps.outer, part, state)
    run("masked", dtypes, min(threads_for(x.size, plan.cells), groups * plan.blocks), groups * plan.blocks, STATES, arguments)
    run("masked", dtypes, 1, groups, MERGE, arguments)
    return tuple(steps.to_cells(row, axes) for row in state)


def _no_data(x: Array, axes: Axes) -> Moments:
    nothing = np.zeros(axes.kept_shape)
    return _as_moments(x, axes, np.zeros(axes.kept_shape, np.int64), nothing, nothing, nothing)


def _as_moments(x: Array, axes: Axes, count: Array, shift: Array, delta: Array, m2: Array) -> Moments:
    dtype = moments_name(x.dtype.name)
    return Moments(count, shift, delta, m2, keep=axes.keep, ndim=len(axes.shape), dtype=dtype)
