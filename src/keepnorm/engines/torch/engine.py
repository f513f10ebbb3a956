"""PyTorch tensors: the CPU kernels on their memory, or the CUDA kernels on theirs, with gradients of our own.

A tensor that is not plain memory (compiled, traced, batched by vmap, fake, meta, on another device) goes through the
standard engine, whose operations PyTorch sees one by one.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from keepnorm.axes import Axes
from keepnorm.engines import standard
from keepnorm.engines.torch.tensors import (
    as_tensor,
    kernels_of,
    needs_gradient,
    output,
    raw,
    raw_moments,
    refuse_out,
    serves_graph,
    tensor_moments,
    tensors_of,
    with_count,
    with_state,
    written,
)
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.request import Request

Tensor = Any


def moments(x: Tensor, axes: Axes, where: Tensor | None) -> Moments:
    """Count, mean and variance of each kept cell, differentiable where x is."""
    kernels = kernels_of(x, where)
    if kernels is None:
        watched = _watched(x, where)
        return watched.moments(x, axes, where) if watched is not None else with_count(standard.moments(x, axes, where))
    if needs_gradient(x):
        seen: list[Moments] = []
        shift, delta, m2 = _functions().Measure.apply(x, axes, where, seen)
        return with_state(seen[0], shift, delta, m2, seen[0].count)
    return tensor_moments(kernels.moments(raw(x), axes, raw(where)))


def omitting_moments(x: Tensor, axes: Axes) -> Moments:
    """The moments of the values that are no NaN."""
    kernels = kernels_of(x)
    if kernels is None or needs_gradient(x):
        return moments(x, axes, x == x)
    return tensor_moments(kernels.omitting_moments(raw(x), axes))


def weighted_moments(x: Tensor, axes: Axes, weights: Tensor) -> Moments:
    """The moments of values that count as often as their weights say, differentiable where x is."""
    kernels = kernels_of(x, weights)
    if kernels is None or needs_gradient(x):
        return with_count(standard.weighted_moments(x, axes, weights))
    return tensor_moments(kernels.weighted_moments(raw(x), axes, raw(weights)))


def affine(x: Tensor, scale: Tensor, shift: Tensor | None, axes: Axes, out: Tensor | None) -> Tensor:
    """``x * scale + shift``."""
    differentiates = needs_gradient(x, scale, shift)
    refuse_out(out, differentiates)
    kernels = kernels_of(x, scale, shift, out)
    if kernels is None:
        return (_watched(x, scale, shift, out) or standard).affine(x, scale, shift, axes, out)
    if differentiates:
        return _functions().Affine.apply(x, scale, shift, axes)
    y = output(x) if out is None and not x.is_cuda else out
    given = raw(x), raw(scale), raw(shift), axes
    if y is None:
        return kernels.affine(*given)  # its engine makes the result itself
    kernels.affine(*given, raw(y))
    return y if out is None else written(out)


def normalize(x: Tensor, request: Request, out: Tensor | None) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    differentiates = needs_gradient(x, request.weight, request.bias)
    refuse_out(out, differentiates)
    kernels = kernels_of(x, out, *request.arrays, *tensors_of(request.moments))
    if kernels is None:
        watched = _watched(x, out, *request.arrays, *tensors_of(request.moments))
        return (watched or standard).normalize(x, request, out)
    if differentiates:
        return _functions().Normalize.apply(x, request.weight, request.bias, kernels, request)
    y = output(x) if out is None and not x.is_cuda else out
    given = raw(x), request.converted(raw, raw_moments)
    if y is None:
        return kernels.normalize(*given, None)  # its engine makes the result itself
    kernels.normalize(*given, raw(y))
    return y if out is None else written(out)


def normalize_with_moments(x: Tensor, request: Request) -> tuple[Tensor, Moments]:
    """The normalised tensor and the moments that normalised it; only the tensor is differentiable."""
    kernels = kernels_of(x, *request.arrays)
    if kernels is None:
        both: tuple[Tensor, Moments] = (_watched(x, *request.arrays) or standard).normalize_with_moments(x, request)
        return both
    if needs_gradient(x, request.weight, request.bias):
        seen = tensor_moments(kernels.moments(raw(x), request.axes, raw(request.where)))
        return _functions().Normalize.apply(x, request.weight, request.bias, kernels, request), seen
    y, state = kernels.normalize_with_moments(raw(x), request.converted(raw, raw_moments))
    return as_tensor(y), tensor_moments(state)


def normalize_vjp(x: Tensor, request: Request) -> tuple[Tensor, Callable[[Tensor], Gradients]]:
    """The normalised tensor, and the function from its gradient to those of x, weight and bias."""
    kernels = kernels_of(x, *request.arrays, *tensors_of(request.moments))
    refuse_changed = _watch(x=x, weight=request.weight, where=request.where)
    if kernels is None or needs_gradient(x, request.weight, request.bias):
        y, pull = standard.normalize_vjp(x, request)
        return y, lambda dy: (refuse_changed(), pull(dy))[1]
    y, raw_vjp = kernels.normalize_vjp(raw(x), request.converted(raw, raw_moments))

    def vjp(dy: Tensor) -> Gradients:
        refuse_changed()
        if kernels_of(dy) is not kernels or needs_gradient(dy):
            return standard.normalize_vjp(x, request)[1](dy)
        return Gradients(*(None if g is None else as_tensor(g) for g in raw_vjp(raw(dy))))

    return as_tensor(y), vjp


def _watch(**tensors: Tensor | None) -> Callable[[], None]:
    """What refuses to go on once one of these tensors has been written to, as autograd does; inference tensors do not tell."""
    seen = [(name, t, t._version) for name, t in tensors.items() if isinstance(t, torch.Tensor) and not t.is_inference()]

    def refuse_changed() -> None:
        for name, tensor, version in seen:
            if tensor._version != version:
                raise RuntimeError(
                    f"{name} has been modified by an inplace operation since normalize_vjp, which needs it as it was: "
                    f"pass {name}.clone(), or change it after vjp; got version {tensor._version}, needed {version}"
                )

    return refuse_changed


def _watched(*tensors: Any) -> Any:
    """What serves tensors that no kernel can take now: the operators in a graph, or None for PyTorch's own operations."""
    if not serves_graph(*tensors):
        return None
    from keepnorm.engines.torch import operators

    return operators


@cache
def _functions() -> Any:
    """The autograd functions: forward through the kernels; backward through them too, or through PyTorch if it is
    to be differentiated again.
    """
    from keepnorm.engines.torch import autograd

    return autograd.functions()
