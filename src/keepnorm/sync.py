"""Synchronised batch norm: several ranks, each with a part of one batch, normalise as one.

What the ranks must tell each other is small: their moments in the forward pass (`Moments` merge exactly), two sums per
cell in the backward pass. How they do it, with torch.distributed, MPI or threads, is the caller's two functions.
"""

from collections.abc import Callable
from typing import Any, Never

from keepnorm import validate
from keepnorm.batchnorm import BatchNorm
from keepnorm.engines import dispatch
from keepnorm.engines.dispatch import eager
from keepnorm.functional import moments
from keepnorm.gradients import Gradients
from keepnorm.keywords import check, show
from keepnorm.moments import Moments
from keepnorm.request import Request

Array = Any


def forward(
    bn: BatchNorm, x: Array, /, merge: Callable[[Moments], Moments], *, where: Array | None = None, **unknown: Never
) -> Array:
    """One training step on this rank's part of the batch; every rank's running moments become the same.

    Parameters
    ----------
    bn : BatchNorm
        This rank's copy.
    x : array
        This rank's part. The parts may differ in size.
    merge : callable
        Takes this rank's Moments and gives the merged ones of all ranks, in the same order on every rank.
    where : array of bool, optional
        Which values of this part count.

    Returns
    -------
    array
        As for a call of `bn`.

    Raises
    ------
    TypeError, ValueError
        As a call of `bn`.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> from keepnorm import sync
    >>> parts = np.array([[1.0], [2.0]]), np.array([[6.0]])
    >>> whole = kn.moments(parts[0], keep=-1) + kn.moments(parts[1], keep=-1)
    >>> sync.forward(kn.BatchNorm(1, keep=-1), parts[1], lambda own: whole).round(3)
    array([[1.389]])
    """
    check(forward, unknown)
    return bn(x, training=True, moments=merge(moments(x, bn.keep, where=where, **bn.sizes)))


@eager
def vjp(
    bn: BatchNorm,
    x: Array,
    /,
    merge: Callable[[Moments], Moments],
    add: Callable[[Array], Array],
    *,
    where: Array | None = None,
    **unknown: Never,
) -> tuple[Array, Callable[[Array], Gradients]]:
    """`forward`, and the function that takes the gradient of its output back through the whole batch's moments.

    ``dx = (g - (sum(g) + hat * sum(g * hat)) / n) / std`` with ``g = dy * weight`` and the sums and n of all ranks.

    Parameters
    ----------
    bn, x, merge, where
        As for `forward`.
    add : callable
        Takes an array of this rank, of shape ``(2, *bn.shape)`` and in float64 where its library has it, and gives the sum
        of all ranks'. Called once in every backward pass, on every rank.

    Returns
    -------
    y : array
    vjp : callable
        ``vjp(dy)`` gives ``Gradients(x, weight, bias)``; those of weight and bias are this rank's share, as data-parallel
        training adds them up by itself.

    Raises
    ------
    TypeError, ValueError
        As a call of `bn`.
    """
    check(vjp, unknown)
    whole = merge(moments(x, bn.keep, where=where, **bn.sizes))
    y = bn(x, training=True, moments=whole)
    known, axes = bn._call(x)
    request = Request(axes, *bn._parameters(x, known), bn.eps, True, whole, validate.mask(where, known))
    # The sums of all ranks go into one formula, in float64: results of the dtype of x would cancel.
    _, back = dispatch.elementary(x).normalize_vjp(x, request, add)
    return y, lambda dy: back(validate.cotangent(dy, known))


show(forward, vjp)
