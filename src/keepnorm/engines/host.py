"""NumPy arrays through the CPU kernels."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from keepnorm.axes import Axes
from keepnorm.engines.memory import STATE_ROWS, UNIT, Walk, flat, parameters, plain, readable, state_of, walk
from keepnorm.gradients import Gradients
from keepnorm.kernels.threads import SERIAL, threads_for
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name

Array = np.ndarray[Any, Any]

STATES, MERGE, APPLY, MOMENTS, FORWARD, CENTERS = range(6)

_NO_PART = np.empty((1, 4, 1))
_NO_OUTPUT = np.empty(1, np.float32)


def moments(x: Array, axes: Axes, where: Array | None = None) -> Moments:
    """Count, mean and variance of each kept cell."""
    if where is not None:
        from keepnorm.engines.masked import moments as masked

        return masked(x, axes, where)
    x = readable(x)
    if x.size == 0:
        return _no_data(x, axes)
    steps = walk(plain(axes), (x,))
    state = np.empty((STATE_ROWS, steps.plan.cells))
    _reduce((flat(x), _NO_OUTPUT, steps, state, *UNIT, 0.0, True), threads_for(x.size))
    return _to_moments(state, steps, axes, x.dtype)


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: Array | None = None) -> Array:
    """``x * scale + shift``: the affine step of cells with mean 0 and variance 1."""
    result, target = _outputs(x, out)
    x = readable(x)
    if x.size:
        steps = walk(axes, (x, target))
        state = np.zeros((STATE_ROWS, steps.plan.cells))
        state[0] = state[3] = 1.0
        _apply_given((flat(x), flat(target), steps, state, *parameters(steps, scale, shift), 0.0, True), threads_for(x.size))
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
        _normalize(x, target, axes, weight, bias, eps, center, moments, where)
    return _finish(result, target)


def normalize_with_moments(
    x: Array, axes: Axes, weight: Array | None, bias: Array | None, eps: float, where: Array | None = None
) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalised it."""
    result, target = _outputs(x, None)
    x = readable(x)
    used = _normalize(x, target, axes, weight, bias, eps, True, None, where) if x.size else partial(_no_data, x, axes)
    return result, used()


def normalize_vjp(
    x: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    moments: Moments | None,
    where: Array | None,
) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and a function from its gradient to those of x, weight and bias."""
    from keepnorm.engines.backward import vjp

    result, target = _outputs(x, None)
    x = readable(x)
    used = _normalize(x, target, axes, weight, bias, eps, center, moments, where) if x.size else partial(_no_data, x, axes)
    return result, vjp(x, axes, weight, bias, eps, center, used(), where, moments is None)


def _normalize(
    x: Array,
    y: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    given: Moments | None,
    where: Array | None,
) -> Callable[[], Moments]:
    """Write y; give back how to make the moments that were used, since making them takes longer than a small kernel."""
    steps = walk(axes if weight is not None or bias is not None else plain(axes), (x, y))
    w, b = parameters(steps, weight, bias)
    if given is None and where is not None:
        given = moments(x, axes, where)
    if given is not None:
        _apply_given((flat(x), flat(y), steps, state_of(given, steps), w, b, eps, center), threads_for(x.size))
        return lambda: given
    state = np.empty((STATE_ROWS, steps.plan.cells))
    arguments = (flat(x), flat(y), steps, state, w, b, eps, center)
    threads = threads_for(x.size)
    if steps.plan.fused and steps.groups >= threads:
        # Each group of cells meets the cache for its affine step.
        _run(FORWARD, steps.groups, _NO_PART, arguments, threads)
    else:
        _reduce(arguments, threads)
        _apply(arguments, threads)
    return partial(_to_moments, state, steps, axes, x.dtype)


def _reduce(arguments: tuple[Any, ...], threads: int) -> None:
    """Fill the state: cell by cell where there are enough cells for all threads, else block by block."""
    steps = arguments[2]
    plan, groups = steps.plan, steps.groups
    if threads == 1 or plan.blocks == 1 or groups >= 4 * threads:
        _run(MOMENTS, groups, _NO_PART, arguments, threads)
        return
    part = np.empty((groups * plan.blocks, 4, plan.chunk))
    _run(STATES, groups * plan.blocks, part, arguments, threads)
    _run(MERGE, groups, part, arguments, threads if plan.cells * plan.blocks > SERIAL // 16 else 1)


def _apply_given(arguments: tuple[Any, ...], threads: int) -> None:
    """The affine step with states that no reduction has written."""
    _run(CENTERS, arguments[2].groups, _NO_PART, arguments, 1)
    _apply(arguments, threads)


def _apply(arguments: tuple[Any, ...], threads: int) -> None:
    steps = arguments[2]
    plan = steps.plan
    tasks = steps.groups * (plan.blocks if plan.lanes else plan.positions * plan.pieces)
    _run(APPLY, tasks, _NO_PART, arguments, threads)


def _run(stage: int, count: int, part: Array, arguments: tuple[Any, ...], threads: int) -> None:
    """Run the tasks of one stage."""
    x, y, steps, *rest = arguments
    _launch()(steps.family, min(threads, count), count, stage, x, y, steps.integers, steps.kept, steps.outer, part, *rest)


@cache
def _launch() -> Callable[..., None]:
    """The launcher of kernels; Numba is loaded at the first of them."""
    from keepnorm.kernels.launch import run

    return run


def _to_moments(state: Array, steps: Walk, axes: Axes, dtype: np.dtype[Any]) -> Moments:
    """A state of the kernels, whose counts are all equal, as Moments."""
    shift, delta, m2 = (steps.to_cells(row, axes) for row in state[1:4])
    return Moments(axes.count, shift, delta, m2, keep=axes.keep, ndim=len(axes.shape), dtype=moments_name(dtype.name))


def _no_data(x: Array, axes: Axes) -> Moments:
    nothing = np.zeros(axes.kept_shape)
    dtype = moments_name(x.dtype.name)
    return Moments(axes.count, nothing, nothing, nothing, keep=axes.keep, ndim=len(axes.shape), dtype=dtype)


def _outputs(x: Array, out: Array | None) -> tuple[Array, Array]:
    """What is handed back and what the kernels write: another array where `out` overlaps x in a different layout."""
    if out is None:
        result = np.empty_like(x, dtype=_result_dtype(x.dtype), subok=False)
        return result, result
    if readable(out) is out and (not np.may_share_memory(x, out) or _same_memory(x, out)):
        return out, out
    return out, np.empty_like(x, dtype=out.dtype.newbyteorder("="), subok=False)


def _same_memory(x: Array, out: Array) -> bool:
    """Whether each value of `out` has the place of the same value of x."""
    starts = (a.__array_interface__["data"][0] for a in (x, out))
    return x is out or (out.strides == x.strides and next(starts) == next(starts))


def _finish(result: Array, target: Array) -> Array:
    if result is not target:
        np.copyto(result, target)
    return result


@cache
def _result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    name = result_name(dtype.name)
    return dtype.newbyteorder("=") if name == dtype.name else np.dtype(name)
