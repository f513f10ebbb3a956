"""Gradients for PyTorch: autograd functions whose forward and backward are the kernels'.

Where the backward itself is to be differentiated, or its cotangent is batched, it runs on PyTorch's operations instead, so
that every higher derivative is right.
"""

from types import SimpleNamespace
from typing import Any

from keepnorm.axes import Axes
from keepnorm.engines import standard
from keepnorm.engines.torch.tensors import as_tensor, kernels_of, output, raw, raw_moments, tensor_moments
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.powers import times_power
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
            axes = ctx.axes
            state = standard.moments(x, axes, where)
            mean, ddelta, dm2 = (a.reshape(axes.broadcast_shape) for a in (state.shift + state.delta, ddelta, dm2))
            count = state.count if isinstance(state.count, int) else state.count.reshape(axes.broadcast_shape)
            off = x.double().reshape(axes.shape) - mean
            if ctx.exponent is None:
                dx = ddelta / count + 2 * off * dm2
            else:  # M2 is that of x * 2^-exponent
                down = -ctx.exponent.reshape(axes.broadcast_shape)
                dx = ddelta / count + times_power(2 * times_power(off, down) * dm2, down)
            if where is not None:
                dx = torch.where(where.broadcast_to(x.shape).reshape(axes.shape), dx, 0.0)
            return dx.reshape(x.shape).to(x.dtype), None, None, None

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
            axes = ctx.axes
            wide = dy.double().reshape(axes.shape)
            others = [a for a in range(len(axes.shape)) if a not in axes.affine]
            dx = dscale = dshift = None
            if ctx.needs_input_grad[0]:
                dx = (wide * scale.double().reshape(axes.affine_broadcast_shape)).reshape(x.shape).to(x.dtype)
            if ctx.needs_input_grad[1]:
                product = wide * x.double().reshape(axes.shape)
                dscale = (product.sum(others) if others else product).reshape(scale.shape).to(scale.dtype)
            if ctx.needs_input_grad[2]:
                dshift = (wide.sum(others) if others else wide).reshape(shift.shape).to(shift.dtype)
            return dx, dscale, dshift, None

    return SimpleNamespace(Normalize=Normalize, Measure=Measure, Affine=Affine)
