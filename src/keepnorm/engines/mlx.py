"""MLX arrays: the standard engine on the processor, where MLX has float64. MLX differentiates, compiles and vectorises it."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from keepnorm.axes import Axes
from keepnorm.engines import standard
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.request import Request

Array = Any
P = ParamSpec("P")
R = TypeVar("R")


def _on_the_processor(function: Callable[P, R]) -> Callable[P, R]:
    """The same function with its operations on the CPU's stream: a GPU of Apple's has no float64."""

    @wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> R:
        import mlx.core as mx

        with mx.stream(mx.cpu):
            return function(*arguments, **options)

    return called


@_on_the_processor
def moments(x: Array, axes: Axes, where: Array | None) -> Moments:
    """Count, mean and variance of each kept cell."""
    return standard.moments(x, axes, where)


@_on_the_processor
def omitting_moments(x: Array, axes: Axes) -> Moments:
    """The moments of the values that are no NaN."""
    return standard.omitting_moments(x, axes)


@_on_the_processor
def weighted_moments(x: Array, axes: Axes, weights: Array) -> Moments:
    """The moments of values that count as often as their weights say."""
    return standard.weighted_moments(x, axes, weights)


@_on_the_processor
def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: Array | None) -> Array:
    """``x * scale + shift``."""
    return standard.affine(x, scale, shift, axes, out)


@_on_the_processor
def normalize(x: Array, request: Request, out: Array | None) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    return standard.normalize(x, request, out)


@_on_the_processor
def denormalize(y: Array, request: Request) -> Array:
    """``(y - bias) / weight * sqrt(var + eps) + mean``."""
    return standard.denormalize(y, request)


@_on_the_processor
def normalize_with_moments(x: Array, request: Request) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalised it."""
    return standard.normalize_with_moments(x, request)


@_on_the_processor
def normalize_vjp(x: Array, request: Request) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and the function from its gradient to those of x, weight and bias."""
    y, vjp = standard.normalize_vjp(x, request)
    return y, _on_the_processor(vjp)
