"""The public functions on kept axes: signature, documentation, validation, and one call downwards.

The named norms, which are these functions with other words for the axes, are in norms.py.
"""

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace
from numpy import ndarray

from keepnorm import policies, roles, validate
from keepnorm.axes import Axes, Keep
from keepnorm.engines.dispatch import in_graph, outside_graph
from keepnorm.gradients import Gradients
from keepnorm.keywords import REQUIRED
from keepnorm.moments import Moments
from keepnorm.policies import Policies

Array = Any


def moments(
    x: Array,
    /,
    keep: Keep = REQUIRED,
    *,
    where: Array | None = None,
    nan_policy: str = "propagate",
    weights: Array | None = None,
    **sizes: Any,
) -> Moments:
    """Count, mean and variance over the axes that are not kept.

    ``mean = sum(x) / n`` and ``var = sum((x - mean)^2) / n`` for each cell of the kept axes.

    Parameters
    ----------
    x : array
        Real numbers: bool, integers, float16, bfloat16, float32 or float64, of any number of axes and any layout.
    keep : int, tuple of int, or str
        The axes that survive. A pattern such as ``"n h w c -> c"`` names them; for an xarray.DataArray a dimension's
        name, or a tuple of names, does too.
    where : array of bool, optional
        Only the values where it is true count. Its shape broadcasts to that of x.
    nan_policy : {"propagate", "omit", "raise"}
        What a NaN does: make its cell NaN, count for nothing, or raise ValueError.
    weights : array, optional
        How often each value counts: real numbers of at least 0, of a shape that broadcasts to that of x. A value of weight 0
        is left out. ``mean = sum(w x) / W`` and ``var = sum(w (x - mean)^2) / W`` with ``W = sum(w)``.
    **sizes : int
        Sizes of axes that a pattern groups, such as ``g=32``.

    Returns
    -------
    Moments
        With ``mean`` and ``var`` of the kept shape, in the library and on the device of x, float32 (float64 for 64-bit
        data), accumulated in float64. Where nothing is counted, ``count`` is 0 and both are NaN.

    Raises
    ------
    TypeError
        If x is no array, or complex; if a keyword such as ``axis=`` does not say what it means.
    ValueError
        If an axis is out of range or named twice, or `where` does not broadcast to x.

    Notes
    -----
    The accuracy is within one unit in the last place of float32, whatever the layout and the size. A NaN or an infinity
    stays in its own cell; the mean of ``[inf, 1]`` is inf. The method is the shifted one-pass algorithm of Chan, Golub and
    LeVeque, The American Statistician 37 (1983), 242-247.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> m = kn.moments(np.array([[1.0, 10.0], [3.0, 30.0]]), keep=1)
    >>> m.count, m.mean, m.var
    (2, array([ 2., 20.]), array([  1., 100.]))
    >>> kn.moments(np.array([1.0, np.nan, 5.0]), (), nan_policy="omit").mean
    array(3.)
    >>> kn.moments(np.array([1.0, 5.0]), (), weights=np.array([3.0, 1.0])).mean
    array(2.)
    """
    if type(x) is not ndarray and in_graph(x):
        from keepnorm.engines.torch.nodes import as_node

        rest = {"where": where, "nan_policy": nan_policy, "weights": weights}
        return as_node(moments, x, keep, **rest, **sizes)
    call = validate.call(roles.general, x, (keep, None), sizes, moments)
    if call.axes is None:
        labels = call.engine.Labels(x, roles.general, (keep, None), sizes)
        more: dict[str, Any] = {"where": labels.mask(where), "nan_policy": nan_policy}
        more["weights"] = labels.mask(weights, "weights")
        labelled: Moments = labels.moments(moments(labels.values, labels.words[0], **more, **sizes))
        return labelled
    if nan_policy != "propagate" or weights is not None:
        said = policies.said(nan_policy, weights)
        if said is not None:
            return policies.moments(x, call, where, said)
    if where is not None:
        where = validate.mask(where, call)
    seen: Moments = call.engine.moments(x, call.axes, where)
    return seen


def affine(
    x: Array, /, scale: Array, shift: Array | None = None, *, keep: Keep = REQUIRED, out: Array | None = None, **sizes: Any
) -> Array:
    """``x * scale + shift``, with one scale and one shift for each cell of the kept axes.

    Parameters
    ----------
    x : array
        Real numbers, of any number of axes and any layout.
    scale, shift : array of the kept shape
        In the library of x.
    keep : int, tuple of int, or str
        The axes on which scale and shift live.
    out : array, optional
        Where to write: of the shape and the result dtype of x. It may be x.
    **sizes : int
        Sizes of axes that a pattern groups.

    Returns
    -------
    array
        Of the shape of x and its floating dtype; float32 for integers (float64 for 64-bit ones). Computed in float64,
        rounded once; of float16 and bfloat16 in float32, where that is a thousandth of the last place.

    Raises
    ------
    TypeError, ValueError
        As :func:`normalize`.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> kn.affine(np.ones((2, 2)), np.array([2.0, 3.0]), np.array([0.5, 0.0]), keep=1)
    array([[2.5, 3. ],
           [2.5, 3. ]])
    """
    if type(x) is not ndarray and in_graph(x):
        from keepnorm.engines.torch.nodes import as_node

        return as_node(affine, x, scale, shift, keep=keep, out=out, **sizes)
    call = validate.call(roles.general, x, (keep, None), sizes, affine)
    if scale is None:
        raise TypeError("scale must be an array of the kept shape; got None")
    if call.axes is None:
        labels = call.engine.Labels(x, roles.general, (keep, None), sizes)
        arrays = (labels.parameter(scale, "scale"), labels.parameter(shift, "shift"))
        y = affine(labels.values, *arrays, keep=labels.words[0], out=labels.output(out), **sizes)
        return labels.wrap(y, out)
    scale, shift = validate.parameter(scale, "scale", call), validate.parameter(shift, "shift", call)
    return call.engine.affine(x, scale, shift, call.axes, validate.output(out, call))


def normalize(
    x: Array,
    /,
    keep: Keep = REQUIRED,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    affine: Keep | None = None,
    eps: float = 1e-5,
    center: bool = True,
    moments: Moments | None = None,
    where: Array | None = None,
    nan_policy: str = "propagate",
    weights: Array | None = None,
    constant: str = "bias",
    fill: float | str | None = None,
    out: Array | None = None,
    **sizes: Any,
) -> Array:
    """Normalise x over the axes that are not kept: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Parameters
    ----------
    x : array
        Real numbers: bool, integers, float16, bfloat16, float32 or float64, of any number of axes and any layout.
    keep : int, tuple of int, or str
        The axes that survive the reduction: one mean and one variance for each of their cells. A pattern such as
        ``"n h w c -> c"`` names them; for an xarray.DataArray a dimension's name, or a tuple of names, does too.
    weight, bias : array of the affine shape, optional
        The learned scale and offset, in the library of x, their axes in the order in which x has them.
    affine : int, tuple of int, or str, optional
        The axes on which weight and bias live; the kept axes if None.
    eps : float, default 1e-5
        Added to the variance.
    center : bool, default True
        If False, the mean is not subtracted and the root mean square divides: ``x / sqrt(mean(x^2) + eps) * weight + bias``.
    moments : Moments, optional
        Mean and variance to normalise with, such as running ones, instead of those of x; `where` then has no effect.
    where : array of bool, optional
        Only the values where it is true count in the moments. Every value is normalised. Its shape broadcasts to that of x.
    nan_policy : {"propagate", "omit", "raise"}
        What a NaN does: make its cell NaN, count for nothing, or raise ValueError. It stays NaN in the result.
    weights : array, optional
        How often each value counts in the moments, as in :func:`moments`.
    constant : {"bias", "center", "nan", "error"}
        What a cell of variance 0 gives: the bias if its values are the mean; with "center" it is divided by 1, as
        scikit-learn does, which tells a difference from given moments; NaN; or ValueError.
    fill : float or "input", optional
        What the result holds where `where` or `nan_policy` leaves a value out: a number, or the value itself.
    out : array, optional
        Where to write: of the shape and the result dtype of x. It may be x.
    **sizes : int
        Sizes of axes that a pattern groups, such as ``g=32``.

    Returns
    -------
    array
        Of the shape of x, in its library, on its device, in its floating dtype; float32 for integers (float64 for 64-bit
        ones).

    Raises
    ------
    TypeError
        If x is no array, or complex; if weight, bias, where or out are of another library, or a keyword such as ``axis=``
        does not say what it means.
    ValueError
        If an axis, a shape or eps does not fit, if `out` cannot be written to, or if the reduced axes are empty.

    Notes
    -----
    One value per cell has variance 0, so that the result is the bias. A constant has variance exactly 0. The result is
    within 2 units in the last place of ``max(|y|, 1)`` of the float64 result, at any offset of the data. (Mean and scale of
    results up to float32 have 28 bits, so that they are the same in every layout: of this, ``(|weight| + |y - bias|) / 64``
    units, which counts for weights in the dozens.) S. Ioffe, C. Szegedy, "Batch Normalization", arXiv:1502.03167.

    On a CPU, a result of 4 MiB and more lies in memory that the next one uses again when nobody holds this one any more. It
    is an array like any other, but for ``flags.owndata``: it cannot be resized in place,
    neither by ``ndarray.resize`` nor by PyTorch's ``resize_``; a copy of it can.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> kn.normalize(np.array([[1.0, 10.0], [3.0, 30.0]]), keep=1, eps=0)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    asked = weight, bias, eps, center, moments, where
    said = policies.said(nan_policy, weights, constant, fill)
    return normalize_roles(roles.general, normalize, x, (keep, affine), asked, said, out, sizes)


def normalize_vjp(
    x: Array,
    /,
    keep: Keep = REQUIRED,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    affine: Keep | None = None,
    eps: float = 1e-5,
    center: bool = True,
    moments: Moments | None = None,
    where: Array | None = None,
    nan_policy: str = "propagate",
    weights: Array | None = None,
    constant: str = "bias",
    fill: float | str | None = None,
    **sizes: Any,
) -> tuple[Array, Callable[[Array], Gradients]]:
    """:func:`normalize`, and the function that takes the gradient of its result to those of x, weight and bias.

    With ``hat = (x - mean) * rstd``, ``rstd = 1 / sqrt(var + eps)`` and ``g = dy * weight``::

        dx = rstd * (g - mean(g) - hat * mean(g * hat))        # moments given: rstd * g
        dweight = sum(dy * hat)                                # over the axes that are not affine
        dbias = sum(dy)

    Every value is normalised, so that the sums go over masked-out values too: but not over those that are not finite, which
    take no part in any gradient but their own. That is ``rstd * g``, as of every masked-out value. Where rstd is 0, since
    ``var + eps`` is 0 or infinite, so are dx and hat.

    Parameters
    ----------
    x, keep, weight, bias, affine, eps, center, moments, where, nan_policy, weights, constant, fill, **sizes
        As in :func:`normalize`. The weights have no gradient; with them a value's share of what flows through the moments is
        its weight. Where the result is filled in, its gradient is dy for "input", and 0 for a number.

    Returns
    -------
    y : array
        What :func:`normalize` gives.
    vjp : function
        ``vjp(dy)`` with dy of the shape of x gives ``Gradients(x, weight, bias)``; None for a parameter that was not given.

    Raises
    ------
    TypeError, ValueError
        As :func:`normalize`; ValueError if dy has not the shape of x.
    RuntimeError
        If x, weight or where is a PyTorch tensor that has been written to since, as autograd raises.

    Notes
    -----
    ``vjp`` reads x, weight and where again: leave them as they are until it has been called. NumPy, CuPy and array API arrays
    do not tell whether they have been written to; what ``vjp`` gives then is no gradient of y.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> y, vjp = kn.normalize_vjp(np.array([[1.0, 10.0], [3.0, 30.0]]), 1, bias=np.zeros(2), eps=0)
    >>> vjp(np.ones((2, 2))).bias
    array([2., 2.])
    """
    if type(x) is not ndarray and in_graph(x):
        rest: dict[str, Any] = {"affine": affine, "eps": eps, "center": center, "moments": moments, "where": where}
        rest |= {"nan_policy": nan_policy, "weights": weights, "constant": constant, "fill": fill}
        return outside_graph(normalize_vjp)(x, keep, weight, bias, **rest, **sizes)
    call = validate.call(roles.general, x, (keep, affine), sizes, normalize_vjp)
    if call.axes is None:
        labels = call.engine.Labels(x, roles.general, (keep, affine), sizes)
        y, vjp = normalize_vjp(
            labels.values,
            labels.words[0],
            labels.parameter(weight, "weight"),
            labels.parameter(bias, "bias"),
            affine=labels.words[1],
            eps=eps,
            center=center,
            moments=labels.state(moments),
            where=labels.mask(where),
            nan_policy=nan_policy,
            weights=labels.mask(weights, "weights"),
            constant=constant,
            fill=fill,
            **sizes,
        )
        return labels.wrap(y), labels.vjp(vjp, weight, bias)
    asked = weight, bias, eps, center, moments, where
    said = policies.said(nan_policy, weights, constant, fill)
    if said is None:
        y, vjp = call.engine.normalize_vjp(x, validate.request(call, asked))
    else:
        y, vjp = policies.normalize_vjp(x, call, asked, said)
    as_asked = all(a is None or tuple(a.shape) == call.affine_shape for a in (weight, bias))

    def checked(dy: Array) -> Gradients:
        if type(dy) is not ndarray and in_graph(dy):
            outside: Gradients = outside_graph(checked)(dy)
            return outside
        gradients: Gradients = vjp(validate.cotangent(dy, call))
        if as_asked:
            return gradients
        # A parameter of grouped axes may have come in the shape of x's own axis: its gradient goes back in that shape.
        return Gradients(gradients.x, *map(_in_shape_of, gradients[1:], (weight, bias)))

    return y, checked


def _in_shape_of(gradient: Array | None, parameter: Array | None) -> Array | None:
    if gradient is None or parameter is None or gradient.shape == parameter.shape:
        return gradient
    return array_namespace(gradient).reshape(gradient, tuple(parameter.shape))


def normalize_roles(
    build: Callable[..., Axes],
    norm: Callable[..., Array],
    x: Array,
    words: tuple[Any, ...],
    asked: validate.Asked,
    said: Policies | None,
    out: Array | None,
    sizes: dict[str, Any],
) -> Array:
    """What every `norm` is: `build` gives the axes their roles from the norm's own words for them."""
    if type(x) is not ndarray and in_graph(x):
        from keepnorm.engines.torch.nodes import as_node

        return as_node(normalize_roles, build, norm, x, words, asked, said, out, sizes)
    call = validate.call(build, x, words, sizes, norm)
    weight, bias, eps, center, moments, where = asked
    if call.axes is None:
        labels = call.engine.Labels(x, build, words, sizes)
        parameters = labels.parameter(weight, "weight"), labels.parameter(bias, "bias")
        asked = *parameters, eps, center, labels.state(moments), labels.mask(where)
        if said is not None:
            said = said._replace(weights=labels.mask(said.weights, "weights"))
        y = normalize_roles(build, norm, labels.values, labels.words, asked, said, labels.output(out), sizes)
        return labels.wrap(y, out)
    if said is not None:
        return policies.normalize(x, call, asked, said, out)
    ready = call.ready[weight is None][bias is None] if moments is None and where is None else None
    if ready is not None:
        y = ready(x, weight, bias, eps, center, out)
        if y is not None:
            return y
    request = validate.request(call, asked)
    if out is not None:
        out = validate.output(out, call)
    y = call.engine.normalize(x, request, out)
    if ready is None and moments is None and where is None and call.name == "host":
        call.ready[weight is None][bias is None] = call.engine.known(call.axes, x.dtype, weight, bias)
    return y
