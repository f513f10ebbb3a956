"""The vector-Jacobian product of `normalize` on NumPy arrays."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from keepnorm.axes import Axes
from keepnorm.engines.memory import Walk, flat, parameters, plain, readable, state_of, walk
from keepnorm.gradients import Gradients
from keepnorm.kernels.threads import threads_for
from keepnorm.moments import Moments
from keepnorm.precision import result_name

Array = np.ndarray[Any, Any]

SUMS, ADD, GRADIENT, CELLS, ROWS = range(5)

# dweight and dbias of weights inside cells are summed in this many rows at most, so that threads share none.
GRADIENT_ROWS = 64


def vjp(
    x: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    moments: Moments,
    where: Array | None,
    through: bool,
) -> Callable[[Array], Gradients]:
    """What maps dy to the gradients of x, weight and bias.

    `moments` are those that normalised x, `through` tells whether they were its own, so that the gradient flows through
    them, and `where` which values of x they were taken from.
    """
    x = _dense(readable(x))
    shape, dtype = axes.source, np.dtype(x.dtype) if result_name(x.dtype.name) == x.dtype.name else np.dtype(result_name(x.dtype.name))

    def pull(dy: Array) -> Gradients:
        dy = np.asarray(dy)
        if dy.shape != shape:
            raise ValueError(f"dy has shape {dy.shape}, but the result has shape {shape}")
        upstream = np.empty_like(x, dtype=dtype)
        if dy.strides == upstream.strides and dy.dtype == dtype and dy.dtype.isnative and dy.flags.aligned:
            upstream = dy
        else:
            np.copyto(upstream, dy, casting="same_kind")
        if not x.size:
            gradients = tuple(np.zeros(a.shape, a.dtype) if a is not None else None for a in (weight, bias))
            return Gradients(np.empty(shape, dtype), *gradients)
        dx, *rest = _gradients(x, upstream, axes, weight, bias, eps, center, moments, through)
        if through and where is not None:
            # A value that the mask left out has moved no moment: its gradient is that of given moments.
            alone = _gradients(x, upstream, axes, weight, bias, eps, center, moments, False)[0]
            dx = np.where(where, dx, alone)
        return Gradients(dx, *rest)

    return pull


def _dense(x: Array) -> Array:
    """x itself if its values lie side by side in some order of the axes, else a copy."""
    span = sum(abs(step) * (n - 1) for n, step in zip(x.shape, x.strides, strict=True)) // max(x.itemsize, 1) + 1
    return x if x.size in (0, span) and all(step > 0 for n, step in zip(x.shape, x.strides, strict=True) if n > 1) else x.copy()


def _gradients(
    x: Array,
    dy: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    moments: Moments,
    through: bool,
) -> tuple[Array, Array | None, Array | None]:
    bare = weight is None and bias is None
    steps = walk(plain(axes) if bare else axes, (x, dy, dy))
    inside = not bare and not set(axes.affine) <= set(axes.keep)
    dx = np.empty_like(dy)
    plan = steps.plan
    groups = plan.cells_outside * plan.chunks
    w, _ = parameters(steps, weight, bias)
    state = state_of(moments, steps)
    totals = np.empty((2, plan.cells))
    rows = min(groups, GRADIENT_ROWS, max(1, x.size // (4 * w.size))) if inside else 1
    dw, db = np.zeros((2, rows, w.size if inside else 1))

    def run(stage: int, count: int, part: Array) -> None:
        from keepnorm.kernels.launch import run as launch

        family = "lanes_backward" if plan.lanes else "runs_backward"
        launch(
            family, min(threads_for(x.size), count), count, stage, flat(x), flat(dx), flat(dy), steps.integers, steps.kept,
            steps.outer, part, state, totals, w, dw, db, eps, center, inside, through,
        )  # fmt: skip

    nothing = np.empty((1, 2, 1))
    if inside:
        run(ROWS, rows, nothing)
    elif plan.blocks == 1 or (plan.fused and groups >= threads_for(x.size)):
        run(CELLS, groups, nothing)
    else:
        part = np.empty((groups * plan.blocks, 2, plan.chunk))
        run(SUMS, groups * plan.blocks, part)
        run(ADD, groups, part)
        run(GRADIENT, groups * plan.blocks, nothing)
    if inside:
        sums = [steps.to_affine(total.sum(0), axes) for total in (dw, db)]
    else:
        sums = _over_cells(steps, axes, totals, state, eps, center)
    return dx, *(_as(total, given) for total, given in zip(sums, (weight, bias), strict=True))


def _over_cells(steps: Walk, axes: Axes, totals: Array, state: Array, eps: float, center: bool) -> list[Array]:
    """Gradients of weights that each hold for whole cells: sums over the cells that share one."""
    mean = state[1] + state[2]
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty cell has no variance, a constant may have the root 0
        var = state[3] / state[0]
        scale = 1 / np.sqrt(var + (eps if center else eps + mean * mean))
    other = tuple(i for i, a in enumerate(axes.keep) if a not in axes.affine)
    return [steps.to_cells(total, axes).sum(other) for total in (totals[1] * scale, totals[0])]


def _as(total: Array, given: Array | None) -> Array | None:
    """A gradient with the shape and the dtype of what it belongs to."""
    if given is None:
        return None
    return total.reshape(given.shape).astype(given.dtype) if prod(given.shape) else np.zeros_like(given)
