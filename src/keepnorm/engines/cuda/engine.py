"""CuPy arrays and PyTorch tensors on a CUDA device, through the CUDA kernels, on the caller's device and stream.

Nothing waits for the device, but for the first call with an arrangement of memory, which uploads its plan. A state is
float64 on the device, in the order of the plan's cells inside a call and of the kept axes in what is handed out.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from array_api_compat import array_namespace

from keepnorm.axes import Axes
from keepnorm.engines import standard
from keepnorm.engines.cuda.memory import Operand, operand
from keepnorm.engines.cuda.session import State, finish, opened, outputs, parameters, readable, state_from, to_cells
from keepnorm.engines.cuda.walk import Device, Walk, launch, spread, walk
from keepnorm.engines.dispatch import dtype_name
from keepnorm.gradients import Gradients
from keepnorm.kernels.cuda import build as cuda
from keepnorm.kernels.cuda.common import CENTER, GIVEN, OWN_WEIGHT, PLAIN, SECOND
from keepnorm.kernels.cuda.device import vector
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name
from keepnorm.request import Request

Array = Any


def moments(x: Array, axes: Axes, where: Array | None = None) -> Moments:
    """Count, mean and variance of each kept cell."""
    with opened(x, where) as device:
        x = readable(device, x)
        if 0 in x.shape:
            return _no_data(device, x, axes)
        state, steps = _measure(device, x, axes, where)
        return _to_moments(state, steps, axes, dtype_name(x.dtype), where is not None)


def omitting_moments(x: Array, axes: Axes) -> Moments:
    """The moments of the values that are no NaN."""
    return moments(x, axes, x == x)


def weighted_moments(x: Array, axes: Axes, weights: Array) -> Moments:
    """The moments of values that count as often as their weights say, by the library's own operations."""
    return standard.weighted_moments(x, axes, weights)


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: Array | None = None) -> Array:
    """``x * scale + shift``: the affine step of cells with mean 0 and deviation 1."""
    with opened(x, scale, shift, out) as device:
        result, target = outputs(device, x, out)
        x = readable(device, x)
        if 0 not in x.shape:
            steps, given, types = _forward_walk(device, x, target, axes, scale, shift)
            launch(device, steps, "", "forward", types, mode=PLAIN, **given)
        return finish(device, result, target)


def normalize(x: Array, request: Request, out: Array | None) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    with opened(x, *request.arrays, out) as device:
        result, target = outputs(device, x, out)
        x = readable(device, x)
        if 0 not in x.shape:
            _forward(device, x, target, request)
        return finish(device, result, target)


def normalize_with_moments(x: Array, request: Request) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalised it."""
    with opened(x, *request.arrays) as device:
        result, target = outputs(device, x, None)
        x = readable(device, x)
        if 0 in x.shape:
            return result, _no_data(device, x, request.axes)
        state, steps = _forward(device, x, target, request)
        return result, _to_moments(state, steps, request.axes, dtype_name(x.dtype), request.where is not None)


def normalize_vjp(x: Array, request: Request) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and the function from its gradient to those of x, weight and bias."""
    with opened(x, *request.arrays) as device:
        y, target = outputs(device, x, None)
        source = readable(device, x)
        state = State({}, None)
        if 0 not in x.shape:
            state, _ = _forward(device, source, target, request)

    def vjp(dy: Array) -> Gradients:
        where = request.where
        with opened(source, dy, *request.arrays) as device:
            dy = readable(device, dy)
            if request.moments is not None or where is None:
                return _backward(device, source, dy, request, state, request.moments is None)
            xp = array_namespace(source)
            hole = ~(xp.isfinite(source) | where)
            if not xp.any(hole):
                return _backward(device, source, dy, request, state, True)
            # What is not finite and was left out has no gradient but its own, that of given moments.
            clean, silent = (readable(device, xp.where(hole, xp.zeros_like(a), a)) for a in (source, dy))
            found = _backward(device, clean, silent, request, state, True)
            return found._replace(x=xp.where(hole, _backward(device, clean, dy, request, state, False).x, found.x))

    return y, vjp


def _measure(device: Device, x: Array, axes: Axes, where: Array | None) -> tuple[State, Walk]:
    """The state of every cell."""
    name = dtype_name(x.dtype)
    source, mask = operand(device.library, x), _mask(device, x, where)
    steps = walk(_plain(axes), (source, None, None, mask), 1 if mask else vector(name))
    state = _empty_state(device, steps, axes, mask is not None)
    _reduce(device, steps, cuda.Types(name), state, source, mask)
    return state, steps


def _reduce(device: Device, steps: Walk, types: cuda.Types, state: State, x: Operand, mask: Operand | None) -> None:
    """Fill the state; cells whose shift was an outlier are swept again, where that costs digits of the answer."""
    kind = "moments" if mask is None else "masked"
    types = cuda.Types(types.x)
    launch(device, steps, kind, "", types, x=x, mask=mask, **state.given)
    if steps.cut.plan.blocks > 1 and (mask is not None or types.x == "float64"):
        launch(device, steps, kind, "", types, mode=SECOND, x=x, mask=mask, **state.given)


def _forward(device: Device, x: Array, y: Array, request: Request) -> tuple[State, Walk]:
    """Moments, unless given, and affine step: in one launch where a cell has one block, else in two."""
    axes, weight, bias, eps, center, given, where = request
    axes = _plain(axes) if weight is None and bias is None else axes
    steps, arguments, types = _forward_walk(device, x, y, axes, weight, bias)
    reduction = ""
    if given is not None:
        state = state_from(device, given, steps)
    elif where is not None:
        state, _ = _measure(device, x, axes, where)
    else:
        state = _empty_state(device, steps, axes, False)
        if steps.cut.resident:
            reduction = "moments"
        else:
            _reduce(device, steps, types, state, arguments["x"], None)
    launch(device, steps, reduction, "forward", types, eps=eps, mode=CENTER if center else 0, **arguments, **state.given)
    return state, steps


def _forward_walk(
    device: Device, x: Array, y: Array, axes: Axes, weight: Array | None, bias: Array | None
) -> tuple[Walk, dict[str, Any], cuda.Types]:
    """The walk over x and y, the operands of a launch, and the dtypes of its kernel."""
    names = dtype_name(x.dtype), dtype_name(y.dtype)
    operands = operand(device.library, x), operand(device.library, y)
    steps = walk(axes, operands, vector(*names))
    w, b, kind = parameters(device, weight, bias, steps)
    types = cuda.Types(names[0], y=names[1], w=kind)
    return steps, {"x": operands[0], "y": operands[1], "weight": w, "bias": b}, types


def _backward(device: Device, x: Array, dy: Array, request: Request, state: State, through: bool) -> Gradients:
    """The gradients of x, weight and bias: through the moments of x, or with fixed ones.

    Where weight and bias live on kept axes, the sums of the backward step are their gradients, too; else (layer norm,
    group norm) those are sums of their own, over the axes that are not affine.
    """
    axes, weight, bias, eps, center, *_ = request
    given, where = not through, request.where if through else None
    result, dx = outputs(device, x, None)
    if 0 in x.shape:
        return Gradients(result, _no_gradient(device, weight), _no_gradient(device, bias))
    names = dtype_name(x.dtype), dtype_name(dx.dtype), dtype_name(dy.dtype)
    operands = [operand(device.library, a) for a in (x, dx, dy)]
    axes = _plain(axes) if weight is None and bias is None else axes
    mask = _mask(device, x, where)
    wide = 1 if mask else vector(*names)
    steps = walk(axes, (*operands, mask), wide)
    w, _, kind = parameters(device, weight, None, steps)
    mode = (CENTER if center else 0) | (GIVEN if given else 0)
    on_kept = set(axes.affine) <= set(axes.keep)
    sums = device.rows(("sum1", "sum2"), steps.cut.plan.cells)
    common = {"x": operands[0], "z": operands[2], "weight": w, "eps": eps, **state.given}
    types = cuda.Types(names[0], y=names[1], z=names[2], w=kind, masked=mask is not None, bare=on_kept)
    whole = {**common, **sums.given, "y": operands[1], "mask": mask}
    mode |= OWN_WEIGHT if on_kept else 0
    if steps.cut.resident and not given:
        launch(device, steps, "grads", "backward", types, mode=mode, **whole)
    else:
        if not given or on_kept:
            reading = types._replace(y="", masked=False, w="" if on_kept else kind)
            launch(device, steps, "grads", "", reading, mode=mode, **common, **sums.given)
        launch(device, steps, "", "backward", types, mode=mode, **whole)
    if weight is None and bias is None:
        return Gradients(result, None, None)
    if on_kept:
        dbias, dweight = (to_cells(total, steps, axes.shape) for total in sums.values)
        rest = tuple(i for i, a in enumerate(axes.keep) if a not in axes.affine)
        if rest:
            xp = array_namespace(dbias)
            dbias, dweight = xp.sum(dbias, axis=rest), xp.sum(dweight, axis=rest)
    else:
        dbias, dweight = _parameter_sums(device, operands[0], operands[2], names, axes, eps, mode, state, steps.cut.plan.cells)
    return Gradients(
        result,
        None if weight is None else _like(device, dweight, weight),
        None if bias is None else _like(device, dbias, bias),
    )


def _parameter_sums(
    device: Device,
    x: Operand,
    dy: Operand,
    names: tuple[str, ...],
    axes: Axes,
    eps: float,
    mode: int,
    state: State,
    cells: int,
) -> tuple[Array, Array]:
    """sum(dy) and sum(dy * hat) over the axes that are not affine: the roles of cells and parameters are swapped."""
    steps = walk(_swapped(axes), (x, None, dy), vector(names[0], names[2]))
    known = device.rows(("weight", "bias", "third"), cells)
    spread(device, cells, eps=eps, mode=mode, **known.given, **state.given)
    sums = device.rows(("sum1", "sum2"), steps.cut.plan.cells)
    types = cuda.Types(names[0], z=names[2])
    launch(device, steps, "swapped", "", types, x=x, z=dy, **known.given, **sums.given)
    first, second = (to_cells(total, steps, axes.shape) for total in sums.values)
    return first, second


def _empty_state(device: Device, steps: Walk, axes: Axes, counted: bool) -> State:
    names = ("shift", "delta", "m2", "count") if counted else ("shift", "delta", "m2")
    rows = device.rows(names, steps.cut.plan.cells)
    return State({"n": float(axes.count), **rows.given}, rows.values)


def _to_moments(state: State, steps: Walk, axes: Axes, name: str, counted: bool) -> Moments:
    shift, delta, m2, *counts = (to_cells(row, steps, axes.shape) for row in state.held)
    count: Any = axes.count
    if counted:
        xp = array_namespace(shift)
        count = xp.astype(counts[0], xp.int64)
    return Moments(count, shift, delta, m2, keep=axes.keep, ndim=len(axes.shape), dtype=moments_name(name))


def _no_data(device: Device, x: Array, axes: Axes) -> Moments:
    nothing = device.library.empty(axes.kept_shape, "float64", x)
    nothing[...] = 0.0
    return Moments(0, nothing, nothing, nothing, keep=axes.keep, ndim=len(axes.shape), dtype=moments_name(dtype_name(x.dtype)))


def _no_gradient(device: Device, parameter: Array | None) -> Array | None:
    if parameter is None:
        return None
    nothing = device.library.empty(tuple(parameter.shape), result_name(dtype_name(parameter.dtype)), parameter)
    nothing[...] = 0
    return nothing


def _like(device: Device, gradient: Array, parameter: Array) -> Array:
    name = result_name(dtype_name(parameter.dtype))
    return device.library.cast(gradient.reshape(tuple(parameter.shape)), name)


def _mask(device: Device, x: Array, where: Array | None) -> Operand | None:
    if where is None:
        return None
    return operand(device.library, array_namespace(where).broadcast_to(where, tuple(x.shape)))


@lru_cache(maxsize=4096)
def _plain(axes: Axes) -> Axes:
    """The same axes without affine ones: more of them merge."""
    return replace(axes, affine=())


@lru_cache(maxsize=4096)
def _swapped(axes: Axes) -> Axes:
    """The same axes with the roles of kept and affine exchanged."""
    return replace(axes, keep=axes.affine, affine=axes.keep)
