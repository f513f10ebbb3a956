"""NumPy arrays through the CPU kernels."""

from typing import Any

import numpy as np

from keepnorm.axes import Axes
from keepnorm.engines.memory import Walk, flat, from_cells, plain, readable, to_cells, walk
from keepnorm.kernels.threads import SERIAL, threads_for
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name

Array = np.ndarray[Any, Any]

_ONE = np.ones(1)
_ZERO = np.zeros(1)
_NO_PART = np.empty((1, 4, 1))
_NO_OUTPUT = np.empty(1, np.float32)

STATES, MERGE, APPLY, MOMENTS, FORWARD = range(5)


def moments(x: Array, axes: Axes, where: Array | None = None) -> Moments:
    """Count, mean and variance of each kept cell."""
    if where is not None:
        from keepnorm.engines.masked import moments as masked

        return masked(x, axes, where)
    x = readable(x)
    if x.size == 0:
        return _no_data(x, axes)
    steps = walk(plain(axes), (x,))
    state = np.empty((4, steps.plan.cells))
    arguments = (flat(x), _NO_OUTPUT, steps, state, _ONE, _ZERO, 0.0, True)
    _reduce(arguments, x.size)
    return to_moments(state, steps, axes, x.dtype.name)


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: Array | None = None) -> Array:
    """``x * scale + shift``: the affine step of cells with mean 0 and variance 1."""
    result, target = _outputs(x, out)
    x = readable(x)
    if x.size:
        steps = walk(axes, (x, target))
        state = np.zeros((4, steps.plan.cells))
        state[0] = state[3] = 1.0
        weight, bias = parameters(steps, scale, shift)
        _apply((flat(x), flat(target), steps, state, weight, bias, 0.0, True), x.size)
    return _finish(result, target)


def normalize(
    x: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    moments: Moments | None,
    where: Array | None,
    out: Array | None,
) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    result, target = _outputs(x, out)
    x = readable(x)
    if x.size:
        if moments is None and where is None:
            _forward(x, target, axes, weight, bias, eps, center)
        else:
            given = _masked(x, axes, where) if moments is None else moments
            _with_moments(x, target, axes, weight, bias, eps, center, given)
    return _finish(result, target)


def normalize_with_moments(
    x: Array, axes: Axes, weight: Array | None, bias: Array | None, eps: float, where: Array | None = None
) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalised it."""
    result, target = _outputs(x, None)
    x = readable(x)
    if not x.size:
        return result, _no_data(x, axes)
    if where is not None:
        given = _masked(x, axes, where)
        _with_moments(x, target, axes, weight, bias, eps, True, given)
        return result, given
    state, steps = _forward(x, target, axes, weight, bias, eps, True)
    return result, to_moments(state, steps, axes, x.dtype.name)


def _masked(x: Array, axes: Axes, where: Array | None) -> Moments:
    return moments(x, axes, where)


def _forward(
    x: Array, y: Array, axes: Axes, weight: Array | None, bias: Array | None, eps: float, center: bool
) -> tuple[Array, Walk]:
    """Moments and affine step, in one go for each group of cells where their data fit the cache."""
    steps = walk(_with_parameters(axes, weight, bias), (x, y))
    plan = steps.plan
    state = np.empty((4, plan.cells))
    w, b = parameters(steps, weight, bias)
    arguments = (flat(x), flat(y), steps, state, w, b, eps, center)
    groups = plan.cells_outside * plan.chunks
    if plan.fused and (x.size <= SERIAL or groups >= threads_for(x.size)):
        _run(FORWARD, groups, _NO_PART, arguments, x.size)
    else:
        _reduce(arguments, x.size)
        _apply(arguments, x.size)
    return state, steps


def _with_moments(
    x: Array,
    y: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    moments: Moments,
) -> None:
    steps = walk(_with_parameters(axes, weight, bias), (x, y))
    w, b = parameters(steps, weight, bias)
    _apply((flat(x), flat(y), steps, from_moments(moments, steps), w, b, eps, center), x.size)


def _reduce(arguments: tuple[Any, ...], size: int) -> None:
    """Fill the state: cell by cell where there are enough cells for all threads, else block by block."""
    plan = arguments[2].plan
    groups = plan.cells_outside * plan.chunks
    if plan.blocks == 1 or size <= SERIAL or groups >= 4 * threads_for(size):
        _run(MOMENTS, groups, _NO_PART, arguments, size)
        return
    part = np.empty((groups * plan.blocks, 4, plan.chunk))
    _run(STATES, groups * plan.blocks, part, arguments, size)
    _run(MERGE, groups, part, arguments, size if plan.cells * plan.blocks > SERIAL // 16 else 0)


def _apply(arguments: tuple[Any, ...], size: int) -> None:
    plan = arguments[2].plan
    _run(APPLY, plan.cells_outside * plan.chunks * plan.blocks, _NO_PART, arguments, size)


def _run(stage: int, count: int, part: Array, arguments: tuple[Any, ...], size: int) -> None:
    """Run the tasks of one stage, on as many threads as are safe and worth waking."""
    from keepnorm.kernels.launch import run

    if arguments[2].plan.lanes:
        from keepnorm.kernels import lanes as family
    else:
        from keepnorm.kernels import runs as family
    x, y, steps, *rest = arguments
    run(family, min(threads_for(size), count), count, stage, x, y, steps.integers, steps.kept, steps.outer, part, *rest)


def parameters(steps: Walk, weight: Array | None, bias: Array | None) -> tuple[Array, Array]:
    """Weight and bias as flat float64 in the order of the plan; 1 and 0 for what is not given."""
    if weight is None and bias is None:
        return _ONE, _ZERO
    w = _flat_affine(steps, weight) if weight is not None else None
    b = _flat_affine(steps, bias) if bias is not None else None
    if w is None:
        w = np.ones_like(b)
    if b is None:
        b = np.zeros_like(w)
    return w, b


def _with_parameters(axes: Axes, weight: Array | None, bias: Array | None) -> Axes:
    return plain(axes) if weight is None and bias is None else axes


def _flat_affine(steps: Walk, values: Array) -> Array:
    if steps.affine_in_order:
        return np.array(values, np.float64).reshape(-1)
    return from_cells(np.asarray(values), steps.plan.affine_order)


def to_moments(state: Array, steps: Walk, axes: Axes, dtype: str) -> Moments:
    """A state of the kernels, whose counts are all equal, as Moments."""
    shift, delta, m2 = (
        state[i].reshape(axes.kept_shape) if steps.cells_in_order else to_cells(state[i], steps.plan, axes) for i in (1, 2, 3)
    )
    return Moments(axes.count, shift, delta, m2, keep=axes.keep, ndim=len(axes.shape), dtype=moments_name(dtype))


def from_moments(moments: Moments, steps: Walk) -> Array:
    """Moments as a state of the kernels; without a count, M2 holds the variance itself."""
    count = 1 if moments.count is None else moments.count
    state = np.empty((4, steps.plan.cells))
    for row, values in enumerate((count, moments.shift, moments.delta, moments.m2)):
        cells = np.broadcast_to(np.asarray(values, np.float64), moments.shape)
        state[row] = cells.reshape(-1) if steps.cells_in_order else from_cells(cells, steps.plan.cell_order)
    return state


def _no_data(x: Array, axes: Axes) -> Moments:
    nothing = np.zeros(axes.kept_shape)
    return Moments(0, nothing, nothing, nothing, keep=axes.keep, ndim=len(axes.shape), dtype=moments_name(x.dtype.name))


def _outputs(x: Array, out: Array | None) -> tuple[Array, Array]:
    """What is handed back and what the kernels write: another array where `out` overlaps x in a different layout."""
    if out is None:
        result = np.empty_like(x, dtype=_result_dtype(x), subok=False)
        return result, result
    same = out.strides == x.strides and out.__array_interface__["data"][0] == x.__array_interface__["data"][0]
    writable = out.dtype.isnative and out.flags.aligned and not any(s % out.itemsize for s in out.strides)
    if writable and (same or not np.may_share_memory(x, out)):
        return out, out
    return out, np.empty_like(x, dtype=out.dtype.newbyteorder("="), subok=False)


def _finish(result: Array, target: Array) -> Array:
    if result is not target:
        np.copyto(result, target)
    return result


def _result_dtype(x: Array) -> np.dtype[Any]:
    name = result_name(x.dtype.name)
    return x.dtype.newbyteorder("=") if name == x.dtype.name else np.dtype(name)
