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
from keepnorm.dispatch import dtype_name
from keepnorm.engines.cuda_memory import Operand, operand
from keepnorm.engines.cuda_session import (
    Session,
    finish,
    opened,
    outputs,
    parameters,
    readable,
    state_from,
    to_cells,
)
from keepnorm.engines.cuda_walk import Walk, common_width, launch, slab, spread, walk
from keepnorm.gradients import Gradients
from keepnorm.kernels import cuda
from keepnorm.kernels.cuda_common import CENTER, GIVEN, OWN_WEIGHT, PLAIN, SECOND
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name

Array = Any


def moments(x: Array, axes: Axes, where: Array | None = None) -> Moments:
    """Count, mean and variance of each kept cell."""
    with opened(x, where) as session:
        x = readable(session, x)
        if 0 in x.shape:
            return _no_data(session, x, axes)
        state, steps = _measure(session, x, axes, where)
        return _to_moments(state, steps, axes, dtype_name(x.dtype), where is not None)


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: Array | None = None) -> Array:
    """``x * scale + shift``: the affine step of cells with mean 0 and deviation 1."""
    with opened(x, scale, shift, out) as session:
        result, target = outputs(session, x, out)
        x = readable(session, x)
        if 0 not in x.shape:
            steps, given, types = _forward_walk(session, x, target, axes, scale, shift)
            launch(session.device, steps, "", "forward", types, mode=PLAIN, **given)
        return finish(session, result, target)


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
    with opened(x, weight, bias, where, out) as session:
        result, target = outputs(session, x, out)
        x = readable(session, x)
        if 0 not in x.shape:
            _forward(session, x, target, axes, weight, bias, eps, center, moments, where)
        return finish(session, result, target)


def normalize_with_moments(
    x: Array, axes: Axes, weight: Array | None, bias: Array | None, eps: float, where: Array | None = None
) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalised it."""
    with opened(x, weight, bias, where) as session:
        result, target = outputs(session, x, None)
        x = readable(session, x)
        if 0 in x.shape:
            return result, _no_data(session, x, axes)
        state, steps = _forward(session, x, target, axes, weight, bias, eps, True, None, where)
        return result, _to_moments(state, steps, axes, dtype_name(x.dtype), where is not None)


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
    """The normalised array, and the function from its gradient to those of x, weight and bias."""
    with opened(x, weight, bias, where) as session:
        y, target = outputs(session, x, None)
        source = readable(session, x)
        state: _State = {}
        if 0 not in x.shape:
            state, _ = _forward(session, source, target, axes, weight, bias, eps, center, moments, where)

    def vjp(dy: Array) -> Gradients:
        with opened(source, dy, weight, bias, where) as session:
            seen = None if moments is not None else where
            return _backward(session, source, readable(session, dy), axes, weight, bias, eps, center, state, moments, seen)

    return y, vjp


# What a kernel reads of the cells: shift, delta and m2 with the count of each (an array), or n for all.
_State = dict[str, Any]


def _measure(session: Session, x: Array, axes: Axes, where: Array | None) -> tuple[_State, Walk]:
    """The state of every cell."""
    name = dtype_name(x.dtype)
    source, mask = operand(session.library, x), _mask(session, x, where)
    steps = walk(_plain(axes), (source, None, None, mask), 1 if mask else common_width(name))
    state = _empty_state(session, steps, axes, mask is not None)
    _reduce(session, steps, cuda.Types(name), state, source, mask)
    return state, steps


def _reduce(
    session: Session, steps: Walk, types: cuda.Types, state: _State, x: Operand, mask: Operand | None, **part: int
) -> None:
    """Fill the state; cells whose shift was an outlier are swept again, where that costs digits of the answer."""
    kind = "moments" if mask is None else "masked"
    arguments = {"x": x, "mask": mask, **state} if mask is not None else {"x": x, **state}
    types = cuda.Types(types.x)
    launch(session.device, steps, kind, "", types, **part, **arguments)
    if steps.cut.plan.blocks > 1 and (mask is not None or types.x == "float64"):
        launch(session.device, steps, kind, "", types, **part, **arguments, mode=SECOND)


def _forward(
    session: Session,
    x: Array,
    y: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    given: Moments | None,
    where: Array | None,
) -> tuple[_State, Walk]:
    """Moments, unless given, and affine step: in one launch where a cell has one block, else slab by slab."""
    axes = _plain(axes) if weight is None and bias is None else axes
    steps, arguments, types = _forward_walk(session, x, y, axes, weight, bias)
    mode = CENTER if center else 0
    if given is not None:
        state = state_from(session, given, steps.cut.plan.cell_order, steps.cells_in_order)
        launch(session.device, steps, "", "forward", types, mode=mode, eps=eps, **arguments, **state)
        return state, steps
    if where is not None:
        state, _ = _measure(session, x, axes, where)
        launch(session.device, steps, "", "forward", types, mode=mode, eps=eps, **arguments, **state)
        return state, steps
    state = _empty_state(session, steps, axes, False)
    if steps.cut.resident:
        launch(session.device, steps, "moments", "forward", types, mode=mode, eps=eps, **arguments, **state)
        return state, steps
    groups = steps.cut.groups
    size = arguments["x"].itemsize * axes.count * steps.cut.tile
    some = slab(groups, size, session.cache // 4)
    for first in range(0, groups, some):
        part = {"first": first, "groups": min(some, groups - first)}
        _reduce(session, steps, types, state, arguments["x"], None, **part)
        launch(session.device, steps, "", "forward", types, mode=mode, eps=eps, **part, **arguments, **state)
    return state, steps


def _forward_walk(
    session: Session, x: Array, y: Array, axes: Axes, weight: Array | None, bias: Array | None
) -> tuple[Walk, dict[str, Any], cuda.Types]:
    """The walk over x and y, the operands of a launch, and the dtypes of its kernel."""
    names = dtype_name(x.dtype), dtype_name(y.dtype)
    operands = operand(session.library, x), operand(session.library, y)
    steps = walk(axes, operands, common_width(*names))
    w, b, kind = parameters(session, weight, bias, steps.cut.plan.affine_order, steps.affine_in_order)
    types = cuda.Types(names[0], y=names[1], w=kind)
    return steps, {"x": operands[0], "y": operands[1], "weight": w, "bias": b}, types


def _backward(
    session: Session,
    x: Array,
    dy: Array,
    axes: Axes,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    center: bool,
    state: _State,
    given: Moments | None,
    where: Array | None,
) -> Gradients:
    """The gradients of x, weight and bias.

    Where weight and bias live on kept axes, the sums of the backward step are their gradients, too; else (layer norm,
    group norm) those are sums of their own, over the axes that are not affine.
    """
    result, dx = outputs(session, x, None)
    if 0 in x.shape:
        return Gradients(result, _no_gradient(session, weight), _no_gradient(session, bias))
    names = dtype_name(x.dtype), dtype_name(dx.dtype), dtype_name(dy.dtype)
    operands = [operand(session.library, a) for a in (x, dx, dy)]
    axes = _plain(axes) if weight is None and bias is None else axes
    mask = _mask(session, x, where)
    wide = 1 if mask else common_width(*names)
    steps = walk(axes, (*operands, mask), wide)
    w, _, kind = parameters(session, weight, None, steps.cut.plan.affine_order, steps.affine_in_order)
    mode = (CENTER if center else 0) | (GIVEN if given is not None else 0)
    on_kept = set(axes.affine) <= set(axes.keep)
    sums = session.device.empty((2, steps.cut.plan.cells))
    pair = {"sum1": sums[0, ...], "sum2": sums[1, ...]}
    common = {"x": operands[0], "z": operands[2], "weight": w, "eps": eps, **state}
    types = cuda.Types(names[0], y=names[1], z=names[2], w=kind, masked=mask is not None, bare=on_kept)
    whole = {**common, **pair, "y": operands[1], "mask": mask} if mask else {**common, **pair, "y": operands[1]}
    mode |= OWN_WEIGHT if on_kept else 0
    if steps.cut.resident and given is None:
        launch(session.device, steps, "grads", "backward", types, mode=mode, **whole)
    else:
        if given is None or on_kept:
            reading = types._replace(y="", masked=False, w="" if on_kept else kind)
            launch(session.device, steps, "grads", "", reading, mode=mode, **common, **pair)
        launch(session.device, steps, "", "backward", types, mode=mode, **whole)
    if weight is None and bias is None:
        return Gradients(result, None, None)
    if on_kept:
        dbias, dweight = (to_cells(total, steps.cut.plan.cell_order, axes.shape) for total in (sums[0, ...], sums[1, ...]))
        rest = tuple(i for i, a in enumerate(axes.keep) if a not in axes.affine)
        if rest:
            xp = array_namespace(sums)
            dbias, dweight = xp.sum(dbias, axis=rest), xp.sum(dweight, axis=rest)
    else:
        dbias, dweight = _parameter_sums(session, operands[0], operands[2], names, axes, eps, mode, state)
    return Gradients(
        result,
        None if weight is None else _like(dweight, weight),
        None if bias is None else _like(dbias, bias),
    )


def _parameter_sums(
    session: Session, x: Operand, dy: Operand, names: tuple[str, ...], axes: Axes, eps: float, mode: int, state: _State
) -> tuple[Array, Array]:
    """sum(dy) and sum(dy * hat) over the axes that are not affine: the roles of cells and parameters are swapped."""
    swapped = _swapped(axes)
    steps = walk(swapped, (x, None, dy), common_width(names[0], names[2]))
    cells = steps.cut.plan
    number = state["shift"].shape[0]
    spread_out = session.device.empty((3, number))
    mean, rstd, low = (spread_out[i, ...] for i in range(3))
    given = {name: value for name, value in state.items() if name != "n"}
    spread(session.device, number, state.get("n", 0.0), eps, mode, weight=mean, bias=rstd, third=low, **given)
    sums = session.device.empty((2, cells.cells))
    types = cuda.Types(names[0], z=names[2])
    launch(
        session.device, steps, "swapped", "", types, x=x, z=dy, weight=mean, bias=rstd, third=low,
        sum1=sums[0, ...], sum2=sums[1, ...],
    )  # fmt: skip
    first, second = (to_cells(total, cells.cell_order, axes.shape) for total in (sums[0, ...], sums[1, ...]))
    return first, second


def _empty_state(session: Session, steps: Walk, axes: Axes, counted: bool) -> _State:
    rows = session.device.empty((4 if counted else 3, steps.cut.plan.cells))
    state: _State = {"shift": rows[0, ...], "delta": rows[1, ...], "m2": rows[2, ...], "n": float(axes.count)}
    if counted:
        state["count"] = rows[3, ...]
    return state


def _to_moments(state: _State, steps: Walk, axes: Axes, name: str, counted: bool) -> Moments:
    order = steps.cut.plan.cell_order
    shift, delta, m2 = (to_cells(state[row], order, axes.shape) for row in ("shift", "delta", "m2"))
    count: Any = axes.count
    if counted:
        xp = array_namespace(shift)
        count = xp.astype(to_cells(state["count"], order, axes.shape), xp.int64)
    return Moments(count, shift, delta, m2, keep=axes.keep, ndim=len(axes.shape), dtype=moments_name(name))


def _no_data(session: Session, x: Array, axes: Axes) -> Moments:
    nothing = session.library.empty(axes.kept_shape, "float64", x)
    nothing[...] = 0.0
    return Moments(0, nothing, nothing, nothing, keep=axes.keep, ndim=len(axes.shape), dtype=moments_name(dtype_name(x.dtype)))


def _no_gradient(session: Session, parameter: Array | None) -> Array | None:
    if parameter is None:
        return None
    nothing = session.library.empty(tuple(parameter.shape), result_name(dtype_name(parameter.dtype)), parameter)
    nothing[...] = 0
    return nothing


def _like(gradient: Array, parameter: Array) -> Array:
    xp = array_namespace(gradient)
    gradient = xp.reshape(gradient, tuple(parameter.shape))
    name = dtype_name(parameter.dtype)
    return xp.astype(gradient, parameter.dtype if result_name(name) == name else getattr(xp, result_name(name)))


def _mask(session: Session, x: Array, where: Array | None) -> Operand | None:
    if where is None:
        return None
    return operand(session.library, array_namespace(where).broadcast_to(where, tuple(x.shape)))


@lru_cache(maxsize=4096)
def _plain(axes: Axes) -> Axes:
    """The same axes without affine ones: more of them merge."""
    return replace(axes, affine=())


@lru_cache(maxsize=4096)
def _swapped(axes: Axes) -> Axes:
    """The same axes with the roles of kept and affine exchanged."""
    return replace(axes, keep=axes.affine, affine=axes.keep)
