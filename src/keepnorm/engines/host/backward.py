"""The vector-Jacobian product of `normalize` on NumPy arrays."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from keepnorm.axes import Axes
from keepnorm.engines.host.memory import Walk, flat, in_memory_order, plain, readable, state_of, walk_strides
from keepnorm.engines.host.pool import empty_like
from keepnorm.gradients import Gradients
from keepnorm.kernels.columns import ADD, CELLS, GRADIENT, INSIDE, SUMS
from keepnorm.kernels.jit.launch import run as start
from keepnorm.kernels.jit.threads import available
from keepnorm.machine import is_serial
from keepnorm.moments import Moments
from keepnorm.precision import result_name
from keepnorm.request import Request
from keepnorm.tuning import GRADIENT_ROWS

Array = np.ndarray[Any, Any]

_NO_PART = np.empty((1, 2, 1))


def vjp(x: Array, request: Request, used: Moments | tuple[Walk, Array]) -> Callable[[Array], Gradients]:
    """What maps dy to the gradients of x, weight and bias.

    `used` are the moments that normalised x, or a plan and the states of its cells. The gradient flows through them unless
    they were given.
    """
    weight, bias, where = request.arrays
    through = request.moments is None
    x = _dense(readable(x))
    dtype = _result_dtype(x.dtype)
    run = _backward(x, dtype, request, used) if x.size else None

    def pull(dy: Array) -> Gradients:
        dy = np.asarray(dy)
        if dy.shape != x.shape:
            raise ValueError(f"dy has shape {dy.shape}, but the result has shape {x.shape}")
        if run is None:
            return Gradients(
                np.empty(x.shape, dtype), *(None if a is None else np.zeros(a.shape, a.dtype) for a in (weight, bias))
            )
        if dy.strides != x.strides or dy.dtype != dtype or not dy.flags.aligned:
            dy = _like(x, dtype, dy)
        (dx, dweight, dbias), products = run(x, dy, through)
        seen = x
        if (where is not None or not through) and not np.isfinite(products).all():
            seen, silent = _without_holes(x, dy, where if through else None)
            if through:
                (dx, dweight, dbias), _ = run(seen, silent, True)
            else:
                dx = run(seen, dy, False)[0][0]
        if through and where is not None:
            # A value that the mask left out has moved no moment: its gradient is that of given moments.
            dx = np.where(where, dx, run(seen, dy, False)[0][0])
        return Gradients(dx, _as(dweight, weight), _as(dbias, bias))

    return pull


@cache
def _result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    name = result_name(dtype.name)
    return dtype if name == dtype.name else np.dtype(name)


def _dense(x: Array) -> Array:
    """x itself if its values lie side by side in some order of the axes, else a copy."""
    return x if x.flags.c_contiguous or in_memory_order(x).flags.c_contiguous else x.copy()


def _without_holes(x: Array, dy: Array, where: Array | None) -> tuple[Array, Array]:
    """x and dy with 0 where x is not finite and no moment was taken from it.

    Given moments have a gradient that does not depend on x, and what a mask left out has none but its own.
    """
    hole = ~np.isfinite(x)
    if where is not None:
        hole &= ~where
    clean, silent = x.copy("K"), dy.copy("K")
    clean[hole] = silent[hole] = 0
    return clean, silent


def _like(x: Array, dtype: np.dtype[Any], dy: Array) -> Array:
    """dy in the memory layout of x, which the kernels walk."""
    moved = np.empty_like(x, dtype=dtype)
    np.copyto(moved, dy, casting="same_kind")
    return moved


def _backward(
    x: Array, dtype: np.dtype[Any], request: Request, used: Moments | tuple[Walk, Array]
) -> Callable[[Array, Array, bool], tuple[tuple[Array, Array, Array], Array]]:
    """What depends on the moments alone, ready to take (x, dy, through) to dx and to the sums for dweight and dbias.

    It also gives the sums of g * d of all cells.
    """
    axes, weight, bias, eps, center, *_ = request
    given = weight is not None or bias is not None
    result = tuple(step // x.itemsize * dtype.itemsize for step in x.strides), dtype.itemsize  # x is dense
    steps = walk_strides(axes if given else plain(axes), ((x.strides, x.itemsize), result, result))
    plan = steps.plan
    w = np.ones(1 if bias is None else bias.size) if weight is None else steps.from_affine(weight)
    state = state_of(used, steps) if isinstance(used, Moments) else steps.from_states(*used, axes)
    inside = given and not set(axes.affine) <= set(axes.keep)
    size, cells, groups = x.size, plan.cells, plan.cells_outside * plan.chunks
    count, alone = groups * plan.blocks, is_serial(size, cells)
    rows = _gradient_rows(groups, size // w.size) if inside and not alone else 1
    shares = 2, rows, w.size if inside else 1
    family = "columns_backward" if plan.lanes else "rows_backward"
    integers, kept, outer = steps.integers, steps.kept, steps.outer

    def run(x: Array, dy: Array, through: bool) -> tuple[tuple[Array, Array, Array], Array]:
        dx, totals, sums = empty_like(dy, dy.dtype), np.empty((3, cells)), np.empty(shares)
        memory, gradient, pulled = flat(x), flat(dx), flat(dy)
        dtypes, threads = (memory.dtype, gradient.dtype), 1 if alone else available()
        given_and_wanted = (memory, gradient, pulled, integers, kept, outer)
        rest = (state, totals, w, sums[0], sums[1], eps, center, inside, through)

        def stage(number: int, tasks: int, part: Array = _NO_PART) -> None:
            start(family, dtypes, min(threads, tasks), tasks, number, (*given_and_wanted, part, *rest))

        if inside:
            stage(INSIDE, rows)
            dweight, dbias = sums[:, 0] if rows == 1 else np.add.reduce(sums, 1)
            if not steps.affine_in_order:
                dweight, dbias = steps.to_affine(dweight, axes), steps.to_affine(dbias, axes)
            return (dx, dweight, dbias), totals[1]
        if plan.blocks == 1 or (plan.fused and groups >= threads):
            stage(CELLS, groups)
        else:
            part = np.empty((count, 2, plan.chunk))
            stage(SUMS, count, part)
            stage(ADD, groups, part)
            stage(GRADIENT, count)
        return (dx, *(_over_cells(steps, axes, totals) if given else totals[1:])), totals[1]

    return run


def _gradient_rows(groups: int, summands: int) -> int:
    """In how many rows, each of them one thread's, the gradients of weights inside cells are summed.

    A row costs as much as two `summands` of each gradient. It is worth that for 32 of them, or for the first four threads.
    """
    return min(groups, GRADIENT_ROWS, max(1, summands // 32, min(summands // 4, 4)))


def _over_cells(steps: Walk, axes: Axes, totals: Array) -> tuple[Array, Array]:
    """Gradients of weights that each hold for whole cells: sums over the cells that share one."""
    dweight, dbias = steps.to_cells(totals[2], axes), steps.to_cells(totals[0], axes)
    other = tuple(i for i, a in enumerate(axes.keep) if a not in axes.affine)
    return (dweight.sum(other), dbias.sum(other)) if other else (dweight, dbias)


def _as(total: Array, given: Array | None) -> Array | None:
    """A gradient with the shape and the dtype of what it belongs to, and an array where it is the sum over every axis."""
    if given is None:
        return None
    with np.errstate(over="ignore"):  # what a half cannot hold is infinite, as everywhere
        return np.asarray(total).reshape(given.shape).astype(given.dtype)
