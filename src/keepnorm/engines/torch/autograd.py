"""Gradients for PyTorch: autograd functions whose forward and backward are the kernels'.

Where the backward itself is to be differentiated, or its cotangent is batched, it runs on PyTorch's operations instead, so
that every higher derivative is right.
"""

from types import SimpleNamespace
from typing import Any

from keepnorm.axes import Axes
from keepnorm.engines import standard
from keepnorm.engines.torch.formulas import gradient_of_moments, gradients_of_affine
from keepnorm.engines.torch.tensors import as_tensor, kernels_of, output, raw, raw_moments, tensor_moments
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.request import Engine, Request

Tensor = Any


def _on(x: Tensor) -> Any:
    """The kernels for the memory of x, which is plain: what is not never comes here."""
    return kernels_of(x)


def functions() -> Any:
    """The autograd functions Normalize, Measure and Affine, made at the first gradient, when PyTorch is there."""
    import torch

    class Normalize(torch.autograd.Function):
        """y of (x, weight, bias)."""

        @staticmethod
        def forward(
            ctx: Any,
            x: Tensor,
            weight: Tensor | None,
            bias: Tensor | None,
            kernels: Engine,
            request: Request,
        ) -> Tensor:
            y, ctx.vjp = kernels.normalize_vjp(raw(x), request.converted(raw, raw_moments))
            ctx.save_for_backward(x, weight, bias, request.where)
            ctx.request = request._replace(weight=None, bias=None, where=None)  # tensors belong to autograd
            return as_tensor(y)

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
            x, weight, bias, where = ctx.saved_tensors  # also refuses tensors that were written to since
            if torch.is_grad_enabled() or kernels_of(dy) is None:
                request = ctx.request._replace(weight=weight, bias=bias, where=where)
                gradients = standard.normalize_vjp(x, request)[1](dy)
            else:
                gradients = Gradients(*(None if g is None else as_tensor(g) for g in ctx.vjp(raw(dy))))
            needed = (g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False))
            return (*needed, None, None)

    class Measure(torch.autograd.Function):
        """(K, delta, M2) of x. K is a constant: what depends on x is the mean, whose gradient delta carries."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, axes: Axes, where: Tensor | None, seen: list[Moments]) -> tuple[Tensor, ...]:
            found = tensor_moments(_on(x).moments(raw(x), axes, raw(where)))
            seen.append(found)
            ctx.save_for_backward(x, where)
            ctx.axes, ctx.exponent = axes, found.exponent
            ctx.mark_non_differentiable(found.shift)
            return found.shift, found.delta, found.m2

        @staticmethod
        def backward(ctx: Any, _: Tensor, ddelta: Tensor, dm2: Tensor) -> tuple[Any, ...]:
            x, where = ctx.saved_tensors
            return gradient_of_moments(x, ctx.axes, where, ddelta, dm2, ctx.exponent), None, None, None

    class Affine(torch.autograd.Function):
        """x * scale + shift of (x, scale, shift)."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor | None, axes: Axes) -> Tensor:
            ctx.save_for_backward(x, scale, shift)
            ctx.axes = axes
            y = output(x)
            _on(x).affine(raw(x), raw(scale), raw(shift), axes, raw(y))
            return y

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
            x, scale, shift = ctx.saved_tensors
            return *gradients_of_affine(dy, x, scale, shift, ctx.axes, ctx.needs_input_grad), None

    return SimpleNamespace(Normalize=Normalize, Measure=Measure, Affine=Affine)
