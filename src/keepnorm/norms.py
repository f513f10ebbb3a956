"""The norms that have names: :func:`keepnorm.normalize` with each norm's own words for its axes."""

from typing import Any, Never

from keepnorm import policies, roles
from keepnorm.functional import normalize_roles
from keepnorm.keywords import REQUIRED
from keepnorm.moments import Moments

Array = Any
Axis = int | tuple[int, ...] | str


def batch_norm(
    x: Array,
    /,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel: Axis = REQUIRED,
    eps: float = 1e-5,
    moments: Moments | None = None,
    where: Array | None = None,
    nan_policy: str = "propagate",
    weights: Array | None = None,
    constant: str = "bias",
    fill: float | str | None = None,
    out: Array | None = None,
    **unknown: Never,
) -> Array:
    """Batch normalisation: one mean and one variance for each channel, over everything else.

    ``(x - mean) / sqrt(var + eps) * weight + bias``, the same as ``normalize(x, keep=channel, ...)``.

    Parameters
    ----------
    x : array
        Real numbers, of any number of axes and any layout.
    weight, bias : array of shape (C,), optional
        One value for each channel, in the library of x.
    channel : int or tuple of int
        The axis of the channels: 1 in PyTorch and ONNX, -1 in Keras and Flax. A dimension's name for an xarray.DataArray.
    eps : float, default 1e-5
        Added to the variance.
    moments : Moments, optional
        Running moments for inference, instead of those of x.
    where, nan_policy, weights, constant, fill
        Which values count and how often, what a cell of variance 0 gives, and what the result holds in the place of values
        that do not count: as in :func:`keepnorm.normalize`.
    out : array, optional
        Where to write: of the shape and the result dtype of x. It may be x.

    Returns
    -------
    array
        Of the shape, the library, the device and the floating dtype of x.

    Raises
    ------
    TypeError, ValueError
        As :func:`keepnorm.normalize`.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization", arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> kn.batch_norm(np.array([[1.0, 10.0], [3.0, 30.0]]), channel=1, eps=0)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    asked = weight, bias, eps, True, moments, where
    said = policies.said(nan_policy, weights, constant, fill)
    return normalize_roles(roles.batch, batch_norm, x, (channel,), asked, said, out, unknown)


def instance_norm(
    x: Array,
    /,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    channel: Axis = REQUIRED,
    batch: Axis = 0,
    eps: float = 1e-5,
    where: Array | None = None,
    nan_policy: str = "propagate",
    weights: Array | None = None,
    fill: float | str | None = None,
    out: Array | None = None,
    **unknown: Never,
) -> Array:
    """Instance normalisation: one mean and one variance for each channel of each example.

    ``(x - mean) / sqrt(var + eps) * weight + bias``, the same as ``normalize(x, keep=(batch, channel), affine=channel, ...)``.

    Parameters
    ----------
    x : array
        Real numbers, of at least the batch and the channel axis.
    weight, bias : array of shape (C,), optional
        One value for each channel, in the library of x.
    channel : int or tuple of int
        The axis of the channels.
    batch : int or tuple of int, default 0
        The axis of the examples; ``()`` where there is none.
    eps : float, default 1e-5
        Added to the variance.
    where, nan_policy, weights, fill
        Which values count and how often, and what the result holds in the place of others: as in :func:`keepnorm.normalize`.
    out : array, optional
        Where to write: of the shape and the result dtype of x. It may be x.

    Returns
    -------
    array
        Of the shape, the library, the device and the floating dtype of x.

    Raises
    ------
    TypeError, ValueError
        As :func:`keepnorm.normalize`; ValueError if batch and channel are one axis.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization", arXiv:1607.08022.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> kn.instance_norm(np.array([[[1.0, 3.0]], [[5.0, 9.0]]]), channel=1, eps=0)
    array([[[-1.,  1.]],
    <BLANKLINE>
           [[-1.,  1.]]])
    """
    asked = weight, bias, eps, True, None, where
    said = policies.said(nan_policy, weights, fill=fill)
    return normalize_roles(roles.instance, instance_norm, x, (channel, batch), asked, said, out, unknown)


def layer_norm(
    x: Array,
    /,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axes: Axis = REQUIRED,
    eps: float = 1e-5,
    where: Array | None = None,
    nan_policy: str = "propagate",
    weights: Array | None = None,
    fill: float | str | None = None,
    out: Array | None = None,
    **unknown: Never,
) -> Array:
    """Layer normalisation: `axes` are reduced, every other axis is kept.

    ``(x - mean) / sqrt(var + eps) * weight + bias``, with weight and bias on the reduced axes.

    Parameters
    ----------
    x : array
        Real numbers, of any number of axes and any layout.
    weight, bias : array of the shape of the reduced axes, optional
        In the library of x.
    axes : int or tuple of int
        The axes to reduce: -1 for a transformer's features.
    eps : float, default 1e-5
        Added to the variance.
    where, nan_policy, weights, fill
        Which values count and how often, and what the result holds in the place of others: as in :func:`keepnorm.normalize`.
    out : array, optional
        Where to write: of the shape and the result dtype of x. It may be x.

    Returns
    -------
    array
        Of the shape, the library, the device and the floating dtype of x.

    Raises
    ------
    TypeError, ValueError
        As :func:`keepnorm.normalize`.

    Notes
    -----
    On a CPU, weight and bias are applied to results up to float32 in float32 where that is enough, with what it loses added
    back, else in float64: within 2 units in the last place of ``max(|y|, 1)``, and below one as a rule.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> kn.layer_norm(np.array([[1.0, 3.0], [5.0, 9.0]]), axes=-1, eps=0)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    asked = weight, bias, eps, True, None, where
    said = policies.said(nan_policy, weights, fill=fill)
    return normalize_roles(roles.layer, layer_norm, x, (axes,), asked, said, out, unknown)


def group_norm(
    x: Array,
    /,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    groups: int = REQUIRED,
    channel: int | str = REQUIRED,
    batch: Axis = 0,
    eps: float = 1e-5,
    where: Array | None = None,
    nan_policy: str = "propagate",
    weights: Array | None = None,
    fill: float | str | None = None,
    out: Array | None = None,
    **unknown: Never,
) -> Array:
    """Group normalisation: one mean and one variance for each block of channels of each example.

    ``(x - mean) / sqrt(var + eps) * weight + bias``, the same as
    ``normalize(x, "n (g c) h w -> n g", affine="g c", g=groups, ...)`` for channels on axis 1.

    Parameters
    ----------
    x : array
        Real numbers, of at least the batch and the channel axis.
    weight, bias : array of shape (C,), optional
        One value for each channel, in the library of x.
    groups : int
        How many blocks of neighbouring channels there are; it divides the number of channels.
    channel : int
        The axis of the channels.
    batch : int or tuple of int, default 0
        The axis of the examples; ``()`` where there is none.
    eps : float, default 1e-5
        Added to the variance.
    where, nan_policy, weights, fill
        Which values count and how often, and what the result holds in the place of others: as in :func:`keepnorm.normalize`.
    out : array, optional
        Where to write: of the shape and the result dtype of x. It may be x.

    Returns
    -------
    array
        Of the shape, the library, the device and the floating dtype of x.

    Raises
    ------
    TypeError, ValueError
        As :func:`keepnorm.normalize`; ValueError if `groups` does not divide the number of channels.

    References
    ----------
    Y. Wu, K. He, "Group Normalization", arXiv:1803.08494.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> kn.group_norm(np.array([[1.0, 3.0, 5.0, 9.0]]), groups=2, channel=1, eps=0)
    array([[-1.,  1., -1.,  1.]])
    """
    asked = weight, bias, eps, True, None, where
    said = policies.said(nan_policy, weights, fill=fill)
    return normalize_roles(roles.group, group_norm, x, (groups, channel, batch), asked, said, out, unknown)


def rms_norm(
    x: Array,
    /,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    axes: Axis = REQUIRED,
    eps: float = 1e-5,
    where: Array | None = None,
    nan_policy: str = "propagate",
    weights: Array | None = None,
    fill: float | str | None = None,
    out: Array | None = None,
    **unknown: Never,
) -> Array:
    """Root mean square normalisation: `axes` are reduced, and no mean is subtracted.

    ``x / sqrt(mean(x^2) + eps) * weight + bias``, with weight and bias on the reduced axes.

    Parameters
    ----------
    x : array
        Real numbers, of any number of axes and any layout.
    weight, bias : array of the shape of the reduced axes, optional
        In the library of x.
    axes : int or tuple of int
        The axes to reduce: -1 for a transformer's features.
    eps : float, default 1e-5
        Added to the mean square.
    where, nan_policy, weights, fill
        Which values count and how often, and what the result holds in the place of others: as in :func:`keepnorm.normalize`.
    out : array, optional
        Where to write: of the shape and the result dtype of x. It may be x.

    Returns
    -------
    array
        Of the shape, the library, the device and the floating dtype of x.

    Raises
    ------
    TypeError, ValueError
        As :func:`keepnorm.normalize`.

    References
    ----------
    B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> kn.rms_norm(np.array([[3.0, -3.0], [2.0, 2.0]]), axes=-1, eps=0)
    array([[ 1., -1.],
           [ 1.,  1.]])
    """
    asked = weight, bias, eps, False, None, where
    said = policies.said(nan_policy, weights, fill=fill)
    return normalize_roles(roles.layer, rms_norm, x, (axes,), asked, said, out, unknown)
