"""Moments of the values of a NumPy array where a mask is true."""

from typing import Any

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
    x = readable(x)
    mask = in_place(np.broadcast_to(where, x.shape))
    shape, dtype = axes.kept_shape, moments_name(x.dtype.name)
    if x.size == 0:
        nothing = np.zeros(shape)
        return Moments(np.zeros(shape, np.int64), nothing, nothing, nothing, keep=axes.keep, ndim=len(axes.shape), dtype=dtype)
    steps = walk(plain(axes), (x, mask))
    plan = steps.plan
    groups = plan.cells_outside * plan.chunks
    part = np.empty((groups * plan.blocks, MEASURED_ROWS, plan.chunk))
    state = np.empty((MEASURED_ROWS, plan.cells))
    values, marks = flat(x), flat(mask)
    dtypes = values.dtype, marks.dtype
    arguments = (values, marks, steps.integers, steps.kept, steps.outer, part, state)
    run("masked", dtypes, min(threads_for(x.size, plan.cells), groups * plan.blocks), groups * plan.blocks, STATES, arguments)
    run("masked", dtypes, 1, groups, MERGE, arguments)
    count, shift, delta, m2 = (steps.to_cells(row, axes) for row in state)
    return Moments(count.astype(np.int64), shift, delta, m2, keep=axes.keep, ndim=len(axes.shape), dtype=dtype)
