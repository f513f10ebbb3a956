"""The inverse of a normalisation with given moments."""

from dataclasses import replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy import ndarray

from keepnorm import roles, validate
from keepnorm.axes import Keep
from keepnorm.engines import cells, standard
from keepnorm.engines.dispatch import in_graph
from keepnorm.keywords import REQUIRED
from keepnorm.moments import Moments
from keepnorm.request import Request
from keepnorm.transfer import like, read

Array = Any


def denormalize(
    y: Array,
    /,
    keep: Keep = REQUIRED,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    affine: Keep | None = None,
    eps: float = 1e-5,
    moments: Moments = REQUIRED,
    **sizes: Any,
) -> Array:
    """The x that :func:`normalize` made y of: ``(y - bias) / weight * sqrt(var + eps) + mean``.

    Parameters
    ----------
    y : array
        A normalised array, of any number of axes and any layout.
    keep, weight, bias, affine, eps, **sizes
        As :func:`normalize` was called.
    moments : Moments
        Those that it normalised with: given ones, or ``keepnorm.moments(x, keep)``.

    Returns
    -------
    array
        Of the shape, the library, the device and the floating dtype of y. Computed in float64 and rounded once.

    Raises
    ------
    TypeError
        If `moments` are missing, and as :func:`normalize`.
    ValueError
        If a weight is 0, which has left nothing of x, and as :func:`normalize`.

    Notes
    -----
    A cell with ``var + eps = 0`` gives its mean, which is what its values were.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> seen = kn.moments(x, keep=1)
    >>> kn.denormalize(kn.normalize(x, 1, moments=seen), 1, moments=seen)
    array([[ 1., 10.],
           [ 3., 30.]])
    """
    if type(y) is not ndarray and in_graph(y):
        from keepnorm.engines.torch.nodes import as_node

        more = {"affine": affine, "eps": eps, "moments": moments}
        return as_node(denormalize, y, keep, weight, bias, **more, **sizes)
    known = validate.call(roles.general, y, (keep, affine), sizes, denormalize)
    if moments is REQUIRED:
        raise TypeError("moments= is missing: denormalize needs those that y was normalised with; got none")
    if known.axes is None:
        labels = known.engine.Labels(y, roles.general, (keep, affine), sizes)
        x = denormalize(
            labels.values,
            labels.words[0],
            labels.parameter(weight, "weight"),
            labels.parameter(bias, "bias"),
            affine=labels.words[1],
            eps=eps,
            moments=labels.state(moments),
            **sizes,
        )
        return labels.wrap(x)
    return undone(y, validate.request(known, (weight, bias, eps, True, moments, None)), known)


def undone(y: Array, request: Request, known: validate.Call) -> Array:
    """What was normalised as the request says.

    Raises
    ------
    ValueError
        If a weight is 0.
    """
    weight = request.weight
    here = None if weight is None else read(weight)
    if here is not None and np.any(here == 0):
        raise ValueError(f"weight must not hold 0, which has left nothing of x; got {int(np.sum(here == 0))} of them")
    if not set(known.axes.affine) <= set(known.axes.keep):
        # The library's own operations; MLX's engine has them run on the processor.
        return getattr(known.engine, "denormalize", standard.denormalize)(y, request)
    scale, shift = _of_cells(y, request)
    return known.engine.affine(y, scale, shift, replace(known.axes, affine=known.axes.keep), None)


def _of_cells(y: Array, request: Request) -> tuple[Array, Array]:
    """What y is multiplied by, and what is added then, in each kept cell."""
    axes, given = request.axes, request.moments
    assert given is not None
    shape = tuple(axes.shape[a] if a in axes.affine else 1 for a in axes.keep)

    def of_cells(parameter: Array) -> Array:
        xp = array_namespace(parameter)
        wide = xp.float64 if cells.has("float64", parameter, xp) else xp.float32
        return xp.reshape(xp.astype(parameter, wide), shape)

    mean, scale = like(given.shift + given.delta, y), like(given.root(request.eps), y)
    if request.weight is not None:
        scale = scale / of_cells(request.weight)
    return scale, mean if request.bias is None else mean - of_cells(request.bias) * scale
