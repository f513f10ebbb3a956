"""What batch and instance norms share: normalising with the moments of the data or with running ones, and their update."""

from typing import Any

import torch

from keepnorm import validate
from keepnorm.engines.dispatch import in_graph
from keepnorm.functional import normalize
from keepnorm.moments import Moments
from keepnorm.roles import general

Tensor = Any


def with_own(
    x: Tensor, keep: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float, where: Tensor | None
) -> tuple[Tensor, ...]:
    """x normalised with its own moments, its mean and its sample variance in float64, and with a mask what it counts.

    Weight and bias live on axis 1. The variance of one value is 0.
    """
    if in_graph(x):
        from keepnorm.engines.torch.nodes import as_node

        inside: tuple[Tensor, ...] = as_node(with_own, x, keep, weight, bias, eps, where)
        return inside
    known = validate.call(general, x, (keep, 1), {}, normalize)
    request = validate.request(known, (weight, bias, eps, True, None, where))
    y, seen = known.engine.normalize_with_moments(x, request)
    count = seen.count
    if where is None:
        var = seen.spread_over(known.axes.count - 1 if known.axes.count != 1 else 1)
        return y, (seen.shift + seen.delta).detach(), var.detach()
    var = seen.spread_over(torch.clamp(count - 1, min=1))
    return y, (seen.shift + seen.delta).detach(), var.detach(), count


def with_running(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x normalised with running moments of axis 1."""
    if in_graph(x):
        from keepnorm.engines.torch.nodes import as_node

        return as_node(with_running, x, mean, var, weight, bias, eps)
    return normalize(x, 1, weight, bias, eps=eps, moments=Moments.from_mean_var(mean, var, keep=1, ndim=x.ndim))


def update(running: tuple[Tensor, Tensor], share: Any, mean: Tensor, var: Tensor, count: Tensor | None) -> None:
    """``running = (1 - share) * running + share * batch`` in float64, rounded once; without values it stays."""
    with torch.no_grad():
        for buffer, batch in zip(running, (mean, var), strict=True):
            old = buffer.double()
            new = (1 - share) * old + share * batch
            buffer.copy_(new if count is None else torch.where(count > 0, new, old))
