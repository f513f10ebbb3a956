"""The gradients of moments and of the affine step, by PyTorch's own operations, which it can differentiate again."""

from typing import Any

from keepnorm.axes import Axes
from keepnorm.engines import standard
from keepnorm.powers import times_power

Tensor = Any


def gradient_of_moments(
    x: Tensor, axes: Axes, where: Tensor | None, ddelta: Tensor, dm2: Tensor, exponent: Tensor | None
) -> Tensor:
    """The gradient of x from those of delta, which stands for the mean, and of M2, which is that of x * 2^-exponent."""
    state = standard.moments(x, axes, where)
    mean, ddelta, dm2 = (a.reshape(axes.broadcast_shape) for a in (state.shift + state.delta, ddelta, dm2))
    count = state.count.reshape(axes.broadcast_shape) if hasattr(state.count, "reshape") else state.count
    off = x.double().reshape(axes.shape) - mean
    if exponent is None:
        dx = ddelta / count + 2 * off * dm2
    else:
        down = -exponent.reshape(axes.broadcast_shape)
        dx = ddelta / count + times_power(2 * times_power(off, down) * dm2, down)
    if where is not None:
        dx = dx.masked_fill(~where.broadcast_to(x.shape).reshape(axes.shape), 0.0)
    return dx.reshape(x.shape).to(x.dtype)


def gradients_of_affine(
    dy: Tensor, x: Tensor, scale: Tensor, shift: Tensor | None, axes: Axes, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, scale and shift, of those that are needed."""
    wide = dy.double().reshape(axes.shape)
    others = [a for a in range(len(axes.shape)) if a not in axes.affine]
    dx = dscale = dshift = None
    if needed[0]:
        dx = (wide * scale.double().reshape(axes.affine_broadcast_shape)).reshape(x.shape).to(x.dtype)
    if needed[1]:
        product = wide * x.double().reshape(axes.shape)
        dscale = (product.sum(others) if others else product).reshape(scale.shape).to(scale.dtype)
    if needed[2] and shift is not None:
        dshift = (wide.sum(others) if others else wide).reshape(shift.shape).to(shift.dtype)
    return dx, dscale, dshift
