"""PyTorch operators: the CPU kernels as single nodes of a graph, for torch.compile, torch.export and make_fx.

The functions are those of an engine, for tensors that a tracer sees; where the graph runs, the operators meet plain tensors.
An operator takes tensors and numbers alone, so that the roles of the axes go as one list of integers, and given moments as
one tensor: shift, delta, variance and, where they have a unit, its exponent.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from keepnorm.axes import Axes
from keepnorm.engines import cells, standard
from keepnorm.engines.dispatch import dtype_name, load
from keepnorm.engines.torch.formulas import gradient_of_moments, gradients_of_affine
from keepnorm.engines.torch.tensors import as_tensor, output, raw, raw_moments, with_count
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name
from keepnorm.request import Request


def moments(x: Tensor, axes: Axes, where: Tensor | None) -> Moments:
    """Count, mean and variance of each kept cell, differentiable where x is."""
    return _opened(_moments(x, where, _numbers(axes)), x, axes, where)


def affine(x: Tensor, scale: Tensor, shift: Tensor | None, axes: Axes, out: Tensor | None) -> Tensor:
    """``x * scale + shift``."""
    return _into(out, _affine(x, scale, shift, _numbers(axes)))


def normalize(x: Tensor, request: Request, out: Tensor | None) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    return _into(out, _normalize(x, *_asked(request)))


def normalize_with_moments(x: Tensor, request: Request) -> tuple[Tensor, Moments]:
    """The normalised tensor and the moments that normalised it; only the tensor is differentiable."""
    weight, bias, where, _, *rest = _asked(request)
    y, *state = _normalize_with_moments(x, weight, bias, where, *rest[:2])
    return y, _opened(state, x, request.axes, where)


def _into(out: Tensor | None, y: Tensor) -> Tensor:
    return y if out is None else out.copy_(y)


def _numbers(axes: Axes) -> list[int]:
    """The roles of the axes as one list: how many axes and kept axes there are, shape, origin, kept and affine axes."""
    return [len(axes.shape), len(axes.keep), *axes.shape, *axes.origin, *axes.keep, *axes.affine]


def _axes(x: Tensor, numbers: Sequence[int]) -> Axes:
    ndim, kept, *rest = numbers
    shape, origin, keep, affine = rest[:ndim], rest[ndim : 2 * ndim], rest[2 * ndim : 2 * ndim + kept], rest[2 * ndim + kept :]
    return Axes(tuple(x.shape), tuple(shape), tuple(keep), tuple(affine), tuple(origin))


def _asked(request: Request) -> tuple[Any, ...]:
    """A request as the operators take it."""
    axes, weight, bias, eps, center, given, where = request
    return weight, bias, where, None if given is None else _closed(given), _numbers(axes), eps, center


def _request(
    x: Tensor, weight: Any, bias: Any, where: Any, given: Any, numbers: Sequence[int], eps: float, center: bool
) -> Request:
    """The request that `_asked` took apart."""
    axes = _axes(x, numbers)
    state = None
    if given is not None:
        shift, delta, var, *unit = given.unbind()
        exponent = _some(unit[0].long()) if unit else None
        state = Moments(None, shift, delta, var, keep=axes.keep, ndim=len(axes.shape), exponent=exponent)
    return Request(axes, weight, bias, eps, center, state, where)


def _some(exponent: Tensor) -> Tensor | None:
    """The exponents of cells, if there are any: as the kernels say it."""
    return exponent if exponent.numel() and bool(exponent.any()) else None


def _closed(given: Moments) -> Tensor:
    """Given moments as one tensor."""
    parts = (given.shift, given.delta, cells.variance(given), *(() if given.exponent is None else (given.exponent,)))
    return torch.stack([as_tensor(part).double() for part in parts])


def _opened(state: Sequence[Tensor], x: Tensor, axes: Axes, where: Tensor | None) -> Moments:
    """What an operator gives of moments, as Moments."""
    shift, delta, m2, count, exponent = state
    known: dict[str, Any] = {"keep": axes.keep, "ndim": len(axes.shape), "dtype": moments_name(dtype_name(x.dtype))}
    unit = exponent if x.dtype is torch.float64 else None
    return with_count(Moments(axes.count if where is None else count, shift, delta, m2, exponent=unit, **known))


def _state(found: Moments, x: Tensor, where: Tensor | None) -> tuple[Tensor, ...]:
    """Moments of the kernels as an operator gives them: an array of integers is empty where it says nothing."""
    count, exponent = (x.new_empty(0, dtype=torch.int64) for _ in range(2))
    if where is not None:
        count = torch.as_tensor(found.count).broadcast_to(found.shape).clone()
    if x.dtype is torch.float64:
        unit = found.exponent
        exponent = torch.zeros(found.shape, dtype=torch.int64) if unit is None else as_tensor(unit).long()
    # Copies: the three are rows of one array, and an operator gives tensors with memory of their own.
    return *(as_tensor(a).clone() for a in (found.shift, found.delta, found.m2)), count, exponent


def _state_of_fakes(x: Tensor, axes: Axes, where: Tensor | None) -> tuple[Tensor, ...]:
    shape = axes.kept_shape
    parts = (x.new_empty(shape, dtype=torch.float64) for _ in range(3))
    wholes = ((where is not None), x.dtype is torch.float64)
    return *parts, *(x.new_empty(shape if there else 0, dtype=torch.int64) for there in wholes)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=_result(x), requires_grad=False)


def _result(x: Tensor) -> torch.dtype:
    found: torch.dtype = x.dtype if x.is_floating_point() else getattr(torch, result_name(dtype_name(x.dtype)))
    return found


def _output(x: Tensor) -> Tensor:
    """Memory for the result, with the strides that a graph was promised."""
    y: Tensor = output(x)
    promised = torch.empty_like(x, device="meta")
    return y if y.stride() == promised.stride() else torch.empty_like(x, dtype=y.dtype)


def _promised(found: Any, like: Tensor) -> Tensor:
    """A gradient with the strides that a graph was promised."""
    gradient: Tensor = as_tensor(found)
    promised = torch.empty_like(like, device="meta")
    return gradient if gradient.stride() == promised.stride() else _like(like).copy_(gradient)


@custom_op("keepnorm::moments", mutates_args=())
def _moments(x: Tensor, where: Tensor | None, axes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = load("host").moments(raw(x), _axes(x, axes), raw(where))
    return _state(found, x, where)


@custom_op("keepnorm::affine", mutates_args=())
def _affine(x: Tensor, scale: Tensor, shift: Tensor | None, axes: Sequence[int]) -> Tensor:
    y = _output(x)
    load("host").affine(raw(x), raw(scale), raw(shift), _axes(x, axes), raw(y))
    return y


@custom_op("keepnorm::normalize", mutates_args=())
def _normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    given: Tensor | None,
    axes: Sequence[int],
    eps: float,
    center: bool,
) -> Tensor:
    y = _output(x)
    request = _request(x, weight, bias, where, given, axes, eps, center)
    load("host").normalize(raw(x), request.converted(raw, raw_moments), raw(y))
    return y


@custom_op("keepnorm::normalize_with_moments", mutates_args=())
def _normalize_with_moments(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, axes: Sequence[int], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    request = _request(x, weight, bias, where, None, axes, eps, True)
    y, found = load("host").normalize_with_moments(raw(x), request.converted(raw, raw_moments))
    return _promised(y, x), *_state(found, x, where)


@custom_op("keepnorm::normalize_backward", mutates_args=())
def _normalize_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    where: Tensor | None,
    given: Tensor | None,
    axes: Sequence[int],
    eps: float,
    center: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    request = _request(x, weight, bias, where, given, axes, eps, center)
    _, pull = load("host").normalize_vjp(raw(x), request.converted(raw, raw_moments))
    dx, *others = pull(raw(dy))
    return _promised(dx, x), *(x.new_empty(0) if g is None else as_tensor(g).clone() for g in others)


@_moments.register_fake
def _(x: Tensor, where: Tensor | None, axes: Sequence[int]) -> Any:
    return _state_of_fakes(x, _axes(x, axes), where)


@_affine.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor | None, axes: Sequence[int]) -> Tensor:
    return _like(x)


@_normalize.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _like(x)


@_normalize_with_moments.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, where: Tensor | None, axes: Sequence[int], eps: float) -> Any:
    return _like(x), *_state_of_fakes(x, _axes(x, axes), where)


@_normalize_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *_: Any) -> Any:
    return _like(x), *(x.new_empty(0) if a is None else a.new_empty(a.shape, dtype=a.dtype) for a in (weight, bias))


def _save_normalize(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, where, *rest = inputs
    given, *numbers = rest if len(inputs) == 8 else (None, *rest, True)
    ctx.save_for_backward(x, weight, bias, where, given)
    ctx.rest, ctx.inputs = numbers, len(inputs)


def _differentiate_normalize(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    x, *parts = ctx.saved_tensors
    weight, bias = parts[:2]
    if torch.is_grad_enabled():  # the gradient itself is to be differentiated
        gradients = standard.normalize_vjp(x, _request(x, *parts, *ctx.rest))[1](dy)
    else:
        gradients = Gradients(*_normalize_backward(dy, x, *parts, *ctx.rest))
    there = (x, weight, bias)
    needed = (
        g if need and a is not None else None for g, need, a in zip(gradients, ctx.needs_input_grad, there, strict=False)
    )
    return (*needed, *(None,) * (ctx.inputs - 3))


@custom_op("keepnorm::moments_backward", mutates_args=())
def _moments_backward(
    ddelta: Tensor, dm2: Tensor, x: Tensor, where: Tensor | None, exponent: Tensor, axes: Sequence[int]
) -> Tensor:
    return _promised(gradient_of_moments(x, _axes(x, axes), where, ddelta, dm2, _some(exponent)), x)


@_moments_backward.register_fake
def _(ddelta: Tensor, dm2: Tensor, x: Tensor, where: Tensor | None, exponent: Tensor, axes: Sequence[int]) -> Tensor:
    return _like(x)


@custom_op("keepnorm::affine_backward", mutates_args=())
def _affine_backward(
    dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor | None, axes: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    needed = (True, True, shift is not None)
    dx, dscale, dshift = gradients_of_affine(dy, x, scale, shift, _axes(x, axes), needed)
    return _promised(dx, x), *(x.new_empty(0) if g is None else g.contiguous() for g in (dscale, dshift))


@_affine_backward.register_fake
def _(dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor | None, axes: Sequence[int]) -> Any:
    return _like(x), *(x.new_empty(0) if a is None else a.new_empty(a.shape) for a in (scale, shift))


def _save_moments(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, where, ctx.numbers = inputs
    ctx.save_for_backward(x, where, output[4])


def _differentiate_moments(ctx: Any, _: Tensor, ddelta: Tensor, dm2: Tensor, *others: Any) -> tuple[Any, ...]:
    x, where, exponent = ctx.saved_tensors
    if torch.is_grad_enabled():
        unit = exponent if exponent.numel() else None
        return gradient_of_moments(x, _axes(x, ctx.numbers), where, ddelta, dm2, unit), None, None
    return _moments_backward(ddelta, dm2, x, where, exponent, ctx.numbers), None, None


def _save_affine(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, scale, shift, ctx.numbers = inputs
    ctx.save_for_backward(x, scale, shift)


def _differentiate_affine(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, scale, shift = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *gradients_of_affine(dy, x, scale, shift, _axes(x, ctx.numbers), ctx.needs_input_grad), None
    found = _affine_backward(dy, x, scale, shift, ctx.numbers)
    return *(g if need else None for g, need in zip(found, ctx.needs_input_grad, strict=False)), None


_normalize.register_autograd(_differentiate_normalize, setup_context=_save_normalize)
_normalize_with_moments.register_autograd(_differentiate_normalize, setup_context=_save_normalize)
_moments.register_autograd(_differentiate_moments, setup_context=_save_moments)
_affine.register_autograd(_differentiate_affine, setup_context=_save_affine)
