"""Batch norms in trained networks: folded into the layer before, inserted without changing the output, counted."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Never

import numpy as np

from keepnorm.axes import Keep, as_ints, resolve
from keepnorm.batchnorm import BatchNorm
from keepnorm.functional import affine, moments
from keepnorm.keywords import REQUIRED, check, check_sizes, parameters, refuse, show
from keepnorm.moments import Moments
from keepnorm.running import Running
from keepnorm.transfer import like, to_numpy

Array = Any


def fold_into(
    kernel: Array, bias: Array | None, bn: BatchNorm | tuple[Array, Array], /, *, keep: Keep = REQUIRED, **sizes: int
) -> tuple[Array, Array]:
    """The kernel and the bias of the layer before a batch norm, with the batch norm's inference in them.

    ``kernel' = kernel * scale`` on its output channels and ``bias' = bias * scale + shift``, in float64 and rounded once:
    ``bn(layer(x))`` is then ``layer'(x)``.

    Parameters
    ----------
    kernel : array
        Of a dense or a convolution layer, in any layout and library.
    bias : array of one value for each output channel, or None
    bn : BatchNorm, or (scale, shift)
        With as many cells as there are output channels.
    keep : int, or pattern
        The kernel's output channels: ``"i o -> o"`` (dense in Keras and Flax), ``"o i -> o"`` (Linear in PyTorch),
        ``"h w i o -> o"`` (convolution in Keras and Flax), ``"o i h w -> o"`` (PyTorch, ONNX), ``"h w c m -> c m"`` (depthwise
        in Keras), ``"(g i) o h w -> g o"`` with ``g=groups`` (transposed in PyTorch). An int is an axis of the kernel.
    **sizes : int
        Sizes of axes that a pattern groups.

    Returns
    -------
    kernel, bias : array
        In the kernel's library and dtype.

    Raises
    ------
    TypeError
        If `bn` is neither.
    ValueError
        If the number of output channels is not that of the batch norm or of the bias.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> bn = kn.porting.insert(np.array([[1.0, 2.0], [5.0, 6.0]]), keep=-1)
    >>> bn.weight, bn.bias = np.array([4.0, 2.0]), None  # y = (x - mean) * [2, 1] or nearly so, as the deviation is 2
    >>> kernel, bias = kn.porting.fold_into(np.ones((3, 2)), None, bn, keep="i o -> o")
    >>> kernel[0].round(4), bias.round(4)
    (array([2., 1.]), array([-6., -4.]))
    """
    check_sizes(fold_into, keep, sizes)
    check(fold_into, {}, keep=keep)
    if isinstance(bn, BatchNorm):
        scale, shift = bn.fold(dtype="float64")
    elif isinstance(bn, tuple) and len(bn) == 2:
        scale, shift = (to_numpy(a).astype(np.float64) for a in bn)
    else:
        raise TypeError(f"bn must be a BatchNorm or the two arrays that fold() gives; got {type(bn).__name__}")
    axes = resolve(tuple(kernel.shape), keep, None, sizes)
    channels = int(np.prod(axes.kept_shape))
    if scale.size != channels or shift.size != channels:
        raise ValueError(
            f"keep={keep!r} of a kernel with shape {tuple(kernel.shape)} gives {channels} output channels; "
            f"got a batch norm with {scale.size}"
        )
    if bias is not None and int(np.prod(tuple(bias.shape))) != channels:
        raise ValueError(f"bias must have one value for each of the {channels} output channels; got shape {tuple(bias.shape)}")
    folded = affine(kernel, like(scale.reshape(axes.kept_shape), kernel), keep=keep, **sizes)
    if bias is not None:
        shift = to_numpy(bias).astype(np.float64).reshape(shift.shape) * scale + shift
        shift = shift.reshape(tuple(bias.shape))
    return folded, _as(shift, folded)


def insert(
    data: Array | Moments,
    /,
    *,
    keep: Keep | None = None,
    eps: float = 1e-5,
    decay: float | None = 0.9,
    correction: int = 1,
    **policies: Any,
) -> BatchNorm:
    """A batch norm for a trained network that changes nothing: weight and bias undo what its moments do.

    ``weight = sqrt(var + eps)`` and ``bias = mean`` with the moments of the data at that place, which are the running
    moments, too: the output is x at inference, and also in training on the same data as one batch.

    Parameters
    ----------
    data : array, or Moments
        What the layer before gives for (many of) the training data; or its moments, such as an Accumulator's.
    keep : int, tuple of int, or pattern
        The axes of the channels; those of the Moments if None.
    eps, decay, correction
        As for `BatchNorm`. The running variance starts as the population's whatever the correction, as the output demands.
    **policies
        Further arguments of `BatchNorm`.

    Returns
    -------
    BatchNorm

    Raises
    ------
    TypeError
        If data are an array and `keep` is not given.
    ValueError
        If there are no values.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> x = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 60.0]])
    >>> kn.porting.insert(x, keep=-1)(x, training=False).round(4)
    array([[ 1., 10.],
           [ 2., 20.],
           [ 6., 60.]])
    """
    if unknown := {name: value for name, value in policies.items() if name not in parameters(BatchNorm)}:
        refuse(insert, unknown, BatchNorm)
    if isinstance(data, Moments):
        found = data
    elif keep is None:
        raise TypeError("keep= is missing: say the axes of the channels, such as keep=-1; got an array and no keep")
    else:
        found = moments(data, keep)
    mean, var = to_numpy(found.mean), to_numpy(found.var)
    if np.isnan(mean).any() or np.isnan(var).any():
        raise ValueError("insert needs data without NaN, and at least one value per cell; got a mean or a variance of NaN")
    bn = BatchNorm(
        found.shape,
        keep=found.keep if keep is None else keep,
        eps=eps,
        decay=decay,
        correction=correction,
        affine=False,
        dtype="float64" if found.dtype == "float64" else "float32",
        **policies,
    )
    bn.weight = np.sqrt(var.astype(np.float64) + bn.eps).astype(bn.dtype)
    bn.bias = mean.copy()
    bn.state = Running(mean.copy(), var.copy(), 1.0, 1, found.count, found.keep, found.ndim)
    return bn


class ParameterCount(NamedTuple):
    """How many numbers a batch norm has, in the words of Keras's summary."""

    total: int
    trainable: int
    non_trainable: int


def parameter_count(bn: BatchNorm | int | Sequence[int], /, **unknown: Never) -> ParameterCount:
    """The parameters that Keras prints for a batch norm: weight and bias are trained, the running mean and variance are not.

    Parameters
    ----------
    bn : BatchNorm, or int or tuple of int
        Or the sizes of its kept axes, for one with weight and bias.

    Returns
    -------
    ParameterCount

    Examples
    --------
    >>> import keepnorm as kn
    >>> kn.porting.parameter_count(50)
    ParameterCount(total=200, trainable=100, non_trainable=100)
    """
    check(parameter_count, unknown)
    if isinstance(bn, BatchNorm):
        cells = int(np.prod(bn.shape))
        learned = (bn.weight is not None) + (bn.bias is not None)
    else:
        cells, learned = int(np.prod(as_ints(bn, "bn"))), 2
    return ParameterCount((learned + 2) * cells, learned * cells, 2 * cells)


def _as(values: Array, x: Array) -> Array:
    """NumPy values in the library and the dtype of x."""
    from array_api_compat import array_namespace

    moved = like(values, x)
    return array_namespace(x).astype(array_namespace(x).asarray(moved), x.dtype)


show(fold_into, insert, parameter_count)
