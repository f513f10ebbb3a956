"""NumPy arrays through the CPU kernels."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np

from keepnorm.axes import Axes
from keepnorm.bounded import remember
from keepnorm.engines import standard
from keepnorm.engines.host import magnitude, masked, pieces
from keepnorm.engines.host.backward import vjp
from keepnorm.engines.host.fast_path import Ready, prepare, prepare_given, prepare_moments
from keepnorm.engines.host.magnitude import Scaled
from keepnorm.engines.host.memory import (
    UNIT,
    Walk,
    apart,
    flat,
    is_half,
    parameters_for,
    plain,
    readable,
    state_of,
    walk,
)
from keepnorm.engines.host.pool import empty_like
from keepnorm.engines.host.stages import NO_OUTPUT, NO_PART, Stage, centers, forward, part_shape, reduction
from keepnorm.engines.host.stages import affine as affine_stage
from keepnorm.gradients import Gradients
from keepnorm.kernels.columns import DELTA, M2, STATE_ROWS, K, N
from keepnorm.kernels.jit.launch import BusyError, entry_for, run
from keepnorm.kernels.jit.threads import threads_for
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name
from keepnorm.request import Request
from keepnorm.tuning import POOLED
from keepnorm.tuning import REMEMBERED as _MOST_READY

Array = np.ndarray[Any, Any]
P = ParamSpec("P")
R = TypeVar("R")

# The dtypes that tell the kernels of one family apart, and what a kernel takes after its tasks.
Arguments: TypeAlias = tuple[tuple[Any, ...], tuple[Any, ...]]

# Where the states of blocks and of cells are among a kernel's arguments.
_PART, _STATE = 5, 6

_SINGLE = np.dtype(np.float32)

# The fast paths of repeated calls, by the identity of their axes, their dtype, the operation, and which parameters are
# missing; the axes are held, so that their identity stays their own.
_READY: dict[tuple[Any, ...], tuple[Axes, Any]] = {}

# Values of a result that is surely not large: small calls ask no further.
_FEW = POOLED // 8


def _or_standard(function: Callable[P, R]) -> Callable[P, R]:
    """The same by the standard engine in a signal handler or a finalizer that cannot have the kernel now."""

    @wraps(function)
    def engine(*arguments: P.args, **more: P.kwargs) -> R:
        try:
            return function(*arguments, **more)
        except BusyError:
            served: R = getattr(standard, function.__name__)(*arguments, **more)
            return served

    return engine


@_or_standard
def moments(x: Array, axes: Axes, where: Array | None = None) -> Moments:
    """Count, mean and variance of each kept cell."""
    key = id(axes), x.dtype, "moments"
    ready = _READY.get(key) if where is None else None
    if ready is not None and (seen := ready[1](x)) is not None:
        return cast("Moments", seen)
    found = _sums(x, axes, where)
    exponent = _unusual(x, axes, where, found.shift, found.m2, 0.0, True)
    if exponent is None:
        if where is None and ready is None and x.size and x.dtype.kind != "b" and x.flags.carray and x.dtype.isnative:
            steps = walk(plain(axes), (x,))
            if steps.cells_in_order:
                remember(_READY, key, (axes, _with_entry(prepare_moments, x, NO_OUTPUT, axes, steps)), _MOST_READY)
        return found
    return _sums(magnitude.scaled(x, axes, exponent), axes, where).back(exponent.reshape(axes.kept_shape))


def omitting_moments(x: Array, axes: Axes) -> Moments:
    """The moments of the values that are no NaN, without a mask in memory."""
    try:
        found = masked.omitting(x, axes)
        if magnitude.holds(x, found.shift, found.m2, 0.0, True):
            return found
    except BusyError:
        pass
    return moments(x, axes, x == x)


@_or_standard
def weighted_moments(x: Array, axes: Axes, weights: Array) -> Moments:
    """The moments of values that count as often as their weights say."""
    weights = np.asarray(weights, np.float64)
    found = masked.weighted_moments(x, axes, weights)
    exponent = _unusual(x, axes, weights != 0, found.shift, found.m2, 0.0, True)
    if exponent is None:
        return found
    return masked.weighted_moments(magnitude.scaled(x, axes, exponent), axes, weights).back(exponent.reshape(axes.kept_shape))


def _unusual(x: Array, axes: Axes, where: Array | None, shift: Array, m2: Array, eps: float, center: bool) -> Array | None:
    """The exponents of cells whose states have not held what the result needs; None if all have."""
    return None if magnitude.holds(x, shift, m2, eps, center) else magnitude.exponents_of(x, axes, where, eps)


def _sums(x: Array, axes: Axes, where: Array | None) -> Moments:
    """The moments as the kernels find them."""
    if where is not None:
        return masked.moments(x, axes, where)
    x = readable(x)
    if x.size == 0:
        return _no_data(x, axes)
    steps = walk(plain(axes), (x,))
    state = np.empty((STATE_ROWS, steps.cells))
    arguments = _arguments(flat(x), NO_OUTPUT, steps, state, UNIT, 0.0, True)
    _run(steps, reduction(steps, threads_for(x.size, steps.cells)), arguments)
    return _to_moments(state, steps, axes, x.dtype)


@_or_standard
def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: Array | None = None) -> Array:
    """``x * scale + shift``: the affine step of cells with mean 0 and variance 1."""
    ready = _READY.get((id(axes), x.dtype, "given", False))
    if ready is not None and (y := ready[1](x, scale, shift, 0.0, True, None, out)) is not None:
        return cast("Array", y)
    result, target = _outputs(x, out)
    x = readable(x)
    if x.size:
        steps = walk(axes, (x, target))
        state = np.zeros((STATE_ROWS, steps.cells))
        state[N] = state[M2] = 1.0
        parameters = parameters_for(steps, scale, shift, target, out is None)
        threads = threads_for(x.size, steps.cells)
        _apply_given(steps, _arguments(flat(x), flat(target), steps, state, parameters, 0.0, True), threads)
        _keep_given(x, axes, scale, shift, result)
    return _finish(result, target)


@_or_standard
def normalize(x: Array, request: Request, out: Array | None) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    axes, weight, bias, eps, center, moments, where = request
    y = None
    if moments is not None:
        applied = _READY.get((id(axes), x.dtype, "given", weight is None and bias is None))
        y = None if applied is None else applied[1](x, weight, bias, eps, center, moments, out)
    elif where is None:
        ready = known(axes, x.dtype, weight, bias)
        y = None if ready is None else ready(x, weight, bias, eps, center, out)
    if y is not None:
        return cast("Array", y)
    result, target = _outputs(x, out)
    x = readable(x)
    if x.size > pieces.MOST and _by_pieces(x, target, request):
        return _finish(result, target)
    if x.size:
        _normalize(x, target, request, out is None)
        if moments is not None:
            _keep_given(x, axes, weight, bias, result)
        elif where is None and all(a is None or _is_usual(a) for a in (x, result, weight, bias)):
            _keep_ready(x, axes, weight, bias)
    return _finish(result, target)


def _by_pieces(x: Array, y: Array, request: Request) -> bool:
    """Write y some cells after others, if there are too many; say so."""
    axes, weight, bias, eps, center, given, where = request
    parts = [*pieces.pieces(axes)]
    if parts:
        # What the first piece writes must not be what the others read.
        weight, bias = (a if a is None or apart(a, y) else a.copy() for a in (weight, bias))
        seen = None if where is None else np.broadcast_to(where, x.shape)
        if seen is not None and not apart(seen, y):
            seen = seen.copy()
    for piece in parts:
        w, b = (piece.parameter(a, axes) for a in (weight, bias))
        mask = None if seen is None else piece.of(seen)
        _normalize(piece.of(x), piece.of(y), Request(piece.axes, w, b, eps, center, piece.state(given), mask), False)
    return bool(parts)


def known(axes: Axes, dtype: np.dtype[Any], weight: Array | None, bias: Array | None) -> Ready | None:
    """What `normalize` does, for further calls with these axes, this dtype and these parameters, if they can be short."""
    ready = _READY.get((id(axes), dtype, weight is None, bias is None))
    return None if ready is None else ready[1]


def _keep_given(x: Array, axes: Axes, weight: Array | None, bias: Array | None, result: Array) -> None:
    """Remember the affine step of such arrays."""
    if not all(a is None or _is_usual(a) for a in (x, result, weight, bias)):
        return
    key = id(axes), x.dtype, "given", weight is None and bias is None
    steps = walk(plain(axes) if key[-1] else axes, (x, x))
    if key not in _READY and steps.affine_in_order and steps.cells_in_order:
        remember(_READY, key, (axes, _with_entry(prepare_given, x, x, axes, steps)), _MOST_READY)


def _with_entry(prepare: Callable[..., R], x: Array, y: Array, axes: Axes, steps: Walk) -> R:
    """A fast path with the machine code for x and y."""
    dtypes, arguments = _arguments(flat(x), flat(y), steps, np.empty((STATE_ROWS, steps.cells)), UNIT, 0.0, True)
    return prepare(axes, x.dtype, steps, entry_for(steps.family, dtypes, arguments))


def _is_usual(a: Array) -> bool:
    """Whether an array is of narrow floats in C order."""
    return (a.dtype is _SINGLE or is_half(a.dtype)) and a.flags.c_contiguous and a.flags.aligned


def _keep_ready(x: Array, axes: Axes, weight: Array | None, bias: Array | None) -> None:
    """Remember a call that was right; its arrays stay the caller's."""
    has_parameters = weight is not None or bias is not None
    steps = walk(axes if has_parameters else plain(axes), (x, x))
    if not steps.affine_in_order:
        return
    dtypes, arguments = _arguments(flat(x), flat(x), steps, np.empty((STATE_ROWS, steps.cells)), UNIT, 0.0, True)
    ready = prepare(axes, x.dtype, steps, entry_for(steps.family, dtypes, arguments), weight is not None, bias is not None)
    remember(_READY, (id(axes), x.dtype, weight is None, bias is None), (axes, ready), _MOST_READY)


@_or_standard
def normalize_with_moments(x: Array, request: Request) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalised it."""
    result, target = _outputs(x, None)
    x = readable(x)
    axes = request.axes
    if not x.size:
        return result, _no_data(x, axes)
    used = _normalize(x, target, request)
    return result, moments(x, axes, request.where) if isinstance(used, Scaled) else _moments_of(used, axes, x.dtype)


@_or_standard
def normalize_vjp(x: Array, request: Request) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and a function from its gradient to those of x, weight and bias."""
    result, target = _outputs(x, None)
    x = readable(x)
    axes = request.axes
    used = _normalize(x, target, request) if x.size else _no_data(x, axes)
    if not isinstance(used, Scaled):
        return result, vjp(x, request, used)
    pull = vjp(used.x, request._replace(eps=0.0), used.moments)

    def back(dy: Array) -> Gradients:
        found = pull(dy)
        return found._replace(x=magnitude.scaled(found.x, axes, used.exponent))

    return result, back


def _normalize(x: Array, y: Array, request: Request, new: bool = True) -> Moments | tuple[Walk, Array] | Scaled:
    """Write y, and give back the moments that were used: those given, or the plan and the states of its cells.

    `new` tells that y has been made for this call, and is nobody's memory yet.
    """
    axes, weight, bias, eps, center, given, where = request
    steps = walk(axes if weight is not None or bias is not None else plain(axes), (x, y))
    parameters = parameters_for(steps, weight, bias, y, new)
    threads = threads_for(x.size, steps.cells)
    own = given is None
    if given is None and where is not None:
        given = _sums(x, axes, where)
    if given is not None:
        again = _again(x, axes, where, given.shift, given.m2, eps, center) if own else magnitude.of_given(x, axes, given, eps)
        if again is None:
            state = state_of(given, steps)
            _apply_given(steps, _arguments(flat(x), flat(y), steps, state, parameters, eps, center), threads)
            return given
    else:
        state = np.empty((STATE_ROWS, steps.cells))
        arguments = _arguments(flat(x), flat(y), steps, state, parameters, eps, center)
        # Where the states may not do, nothing that is read again may have been written to.
        is_kept = new or x.dtype != np.float64 or all(a is None or apart(a, y) for a in (x, weight, bias))
        _run(steps, forward(steps, threads) if is_kept else reduction(steps, threads), arguments)
        again = _again(x, axes, None, state[1], state[3], eps, center)
        if again is None:
            if not is_kept:
                _run(steps, (affine_stage(steps, threads),), arguments)
            return steps, state
    _normalize(again.x, y, request._replace(eps=0.0, moments=again.moments, where=None), new)
    return again


def _again(x: Array, axes: Axes, where: Array | None, shift: Array, m2: Array, eps: float, center: bool) -> Scaled | None:
    """x and its moments times powers of two, where these states have not held what the result needs."""
    exponent = _unusual(x, axes, where, shift, m2, eps, center)
    if exponent is None:
        return None
    found = _sums(magnitude.scaled(x, axes, exponent), axes, where)
    return magnitude.with_eps(x, axes, found, eps, exponent)


def _arguments(
    x: Array, y: Array, steps: Walk, state: Array, parameters: tuple[Array, Array], eps: float, center: bool
) -> Arguments:
    """What the launcher takes, but for the tasks."""
    dtypes = x.dtype, y.dtype, parameters[0].dtype
    return dtypes, (x, y, steps.integers, steps.kept, steps.outer, NO_PART, state, *parameters, eps, center)


def _apply_given(steps: Walk, arguments: Arguments, threads: int) -> None:
    """The affine step with states that no reduction has written: they do not say how far x may lie from the mean."""
    _run(steps, (centers(steps),), arguments)
    arguments[1][_STATE][M2] = 0.0
    _run(steps, (affine_stage(steps, threads),), arguments)


def _run(steps: Walk, stages: tuple[Stage, ...], arguments: Arguments) -> None:
    """Run the stages, one after the other."""
    dtypes, given = arguments
    parts = part_shape(steps, stages)
    if parts is not None:
        given = (*given[:_PART], np.empty(parts), *given[_PART + 1 :])
    for stage in stages:
        run(steps.family, dtypes, stage.threads, stage.tasks, stage.number, given)


def _moments_of(used: Moments | tuple[Walk, Array], axes: Axes, dtype: np.dtype[Any]) -> Moments:
    return used if isinstance(used, Moments) else _to_moments(used[1], used[0], axes, dtype)


def _to_moments(state: Array, steps: Walk, axes: Axes, dtype: np.dtype[Any]) -> Moments:
    """A state of the kernels, whose counts are all equal, as Moments."""
    shift, delta, m2 = (steps.to_cells(row, axes) for row in state[[K, DELTA, M2]])
    return Moments(axes.count, shift, delta, m2, keep=axes.keep, ndim=len(axes.shape), dtype=_moments_name(dtype))


def _no_data(x: Array, axes: Axes) -> Moments:
    nothing = np.zeros(axes.kept_shape)
    dtype = _moments_name(x.dtype)
    return Moments(axes.count, nothing, nothing, nothing, keep=axes.keep, ndim=len(axes.shape), dtype=dtype)


def _outputs(x: Array, out: Array | None) -> tuple[Array, Array]:
    """What is handed back and what the kernels write: another array where `out` overlaps x in a different layout."""
    if out is None:
        dtype = x.dtype
        dtype = dtype if dtype is _SINGLE else _result_dtype(dtype)
        result = np.empty_like(x, dtype, subok=False) if x.size < _FEW else empty_like(x, dtype)
        return result, result
    if readable(out) is out and (apart(x, out) or _same_memory(x, out)):
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
def _moments_name(dtype: np.dtype[Any]) -> str:
    return moments_name(dtype.name)


@cache
def _result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    name = result_name(dtype.name)
    return dtype.newbyteorder("=") if name == dtype.name else np.dtype(name)
