"""Synchronised batch norm: several ranks, each with a part of one batch, normalise as one.

What the ranks must tell each other is small: their moments in the forward pass (`Moments` merge exactly), two sums per
cell in the backward pass. How they do it, with torch.distributed, MPI or threads, is the caller's two functions.
"""

from collections.abc import Callable
from typing import Any, Never

import numpy as np
from array_api_compat import array_namespace

from keepnorm.batchnorm import BatchNorm
from keepnorm.functional import moments, normalize, normalize_vjp
from keepnorm.gradients import Gradients
from keepnorm.keywords import check
from keepnorm.moments import Moments
from keepnorm.transfer import like

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
    return bn(x, training=True, moments=merge(moments(x, bn.keep, where=where)))


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

    ``dx = weight / std * (dy - (sum(dy) + hat * sum(dy * hat)) / n)`` with the sums and n of all ranks.

    Parameters
    ----------
    bn, x, merge, where
        As for `forward`.
    add : callable
        Takes an array of this rank, of shape ``(2, *bn.shape)``, and gives the sum of all ranks'. Called once in every
        backward pass, on every rank.

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
    whole = merge(moments(x, bn.keep, where=where))
    y = bn(x, training=True, moments=whole)
    weight = like(np.ones(bn.shape, bn.dtype) if bn.weight is None else bn.weight, x)
    bias = like(np.zeros(bn.shape, bn.dtype) if bn.bias is None else bn.bias, x)
    _, pull = normalize_vjp(x, bn.keep, weight, bias, eps=bn.eps, moments=whole)

    def back(dy: Array) -> Gradients:
        own = pull(dy)
        xp = array_namespace(own.x)
        sums = add(xp.stack([own.weight, own.bias]))
        count = like(whole.count, x) if hasattr(whole.count, "shape") else whole.count
        rstd = 1 / xp.sqrt(xp.asarray(like(whole.var, x)) + bn.eps)
        share = weight * rstd / count
        # The scaled hat of the whole batch plus an offset: a normalisation with other parameters.
        through = normalize(x, bn.keep, share * sums[0], share * sums[1], eps=bn.eps, moments=whole)
        if where is not None:
            through = xp.where(where, through, xp.zeros_like(through))
        return Gradients(own.x - through, None if bn.weight is None else own.weight, None if bn.bias is None else own.bias)

    return y, back
