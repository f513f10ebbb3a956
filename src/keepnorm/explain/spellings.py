"""The same normalisation as each framework spells it: what its axis arguments must be, as code that runs on x.

Each entry of the table is tested by running it. Where a framework's layer cannot express the roles, the code computes
mean and variance by hand, which every framework can.
"""

from collections.abc import Callable

from keepnorm.axes import Axes

EPS = "1e-5"  # as it is written in the code


def spellings(axes: Axes) -> dict[str, str]:
    """The code of each framework; none where nothing is reduced, since frameworks disagree on an empty list of axes."""
    if not axes.reduce:
        return {}
    return {name: spell(axes) for name, spell in _FRAMEWORKS.items()}


def kind_of(axes: Axes) -> str:
    """The name of the normalisation that has these roles."""
    ndim, keep, reduce, affine = len(axes.shape), axes.keep, axes.reduce, axes.affine
    if not reduce:
        return "all kept"
    if axes.shape != axes.source:
        grouped = ndim == len(axes.source) + 1 and len(keep) == 2 and keep[0] == 0 and affine == (keep[1], keep[1] + 1)
        # Frameworks count groups in order, so the group must be the outer part of the channel axis.
        return "group" if grouped and axes.origin[keep[1]] == axes.origin[keep[1] + 1] else "general"
    if affine == reduce and reduce == tuple(range(ndim - len(reduce), ndim)):
        return "layer"
    if not keep:
        return "all reduced"
    if len(keep) == 1 and affine == keep and ndim > 1:
        return "batch"
    if len(keep) == 2 and keep[0] == 0 and affine in (keep, keep[1:]) and ndim > 2:
        return "instance"
    return "general"


def _channel(axes: Axes) -> int:
    """The axis of x that holds the channels of batch, instance and group norm."""
    return axes.origin[axes.keep[-1]]


def _by_hand(axes: Axes, moments: str, library: str) -> str:
    """Mean and variance, then the affine step; a pattern that splits axes is a reshape before and after."""
    step = f"(x - mean) / {library}.sqrt(var + {EPS})"
    if axes.shape == axes.source:
        return f"{moments}\ny = {step}"
    return f"shape = x.shape; x = {library}.reshape(x, {axes.shape})\n{moments}\ny = {library}.reshape({step}, shape)"


def _numpy(axes: Axes, library: str = "np") -> str:
    reduced = axes.reduce
    return _by_hand(axes, f"mean = x.mean({reduced}, keepdims=True); var = x.var({reduced}, keepdims=True)", library)


def _keras(axes: Axes) -> str:
    kind = kind_of(axes)
    if kind == "batch":
        return f"y = keras.layers.BatchNormalization(axis={_channel(axes)}, epsilon={EPS})(x, training=True)"
    if kind == "layer":
        return f"y = keras.layers.LayerNormalization(axis={list(axes.reduce)}, epsilon={EPS})(x)"
    if kind in ("instance", "group"):
        groups = -1 if kind == "instance" else axes.shape[axes.keep[1]]
        return f"y = keras.layers.GroupNormalization(groups={groups}, axis={_channel(axes)}, epsilon={EPS})(x)"
    return _by_hand(axes, f"mean, var = keras.ops.moments(x, {list(axes.reduce)}, keepdims=True)", "keras.ops")


def _torch(axes: Axes) -> str:
    kind, ndim = kind_of(axes), len(axes.source)
    if kind == "layer":
        return f"y = torch.nn.LayerNorm({list(axes.affine_shape)}, eps={EPS})(x)"
    layer = {
        "batch": f"BatchNorm{max(ndim - 2, 1)}d" if ndim <= 5 else "",
        "instance": f"InstanceNorm{ndim - 2}d" if ndim <= 5 else "",
        "group": "GroupNorm",
    }.get(kind, "")
    if not layer:
        moments = f"var, mean = torch.var_mean(x, {axes.reduce}, correction=0, keepdim=True)"
        return _by_hand(axes, moments, "torch")
    channel = _channel(axes)
    groups = f"{axes.shape[axes.keep[1]]}, " if kind == "group" else ""
    module = f"torch.nn.{layer}({groups}{axes.source[channel]}, eps={EPS})"
    if channel == 1:
        return f"y = {module}(x)"
    return f"y = {module}(x.movedim({channel}, 1)).movedim(1, {channel})  # its channels are dimension 1"


def _flax(axes: Axes) -> str:
    kind = kind_of(axes)
    if axes.affine == axes.keep and axes.shape == axes.source and axes.keep:
        layer = f"flax.linen.BatchNorm(use_running_average=False, axis={_axis(axes.keep)}, epsilon={EPS})"
    elif kind == "group":
        layer = f"flax.linen.GroupNorm(num_groups={axes.shape[axes.keep[1]]}, epsilon={EPS})"
        channel = _channel(axes)
        if channel != len(axes.source) - 1:
            swapped = f"swapaxes({channel}, -1)"
            return f"y = {layer}.init_with_output(key, x.{swapped})[0].{swapped}  # its channels are last"
    elif axes.shape == axes.source and axes.affine:
        layer = f"flax.linen.LayerNorm(reduction_axes={axes.reduce}, feature_axes={axes.affine}, epsilon={EPS})"
    else:
        return _numpy(axes, "jax.numpy")
    return f"y = {layer}.init_with_output(key, x)[0]"


def _onnx(axes: Axes) -> str:
    kind = kind_of(axes)
    if kind == "layer":
        return f"Y = LayerNormalization(X, Scale, B, axis={axes.reduce[0]}, epsilon={EPS})"
    groups = axes.shape[axes.keep[-1]] if kind == "group" else 0
    operator = {
        "batch": f"BatchNormalization(X, scale, B, input_mean, input_var, training_mode=1, epsilon={EPS})",
        "instance": f"InstanceNormalization(X, scale, B, epsilon={EPS})",
        "group": f"GroupNormalization(X, scale, bias, num_groups={groups}, epsilon={EPS})",
    }.get(kind)
    if operator is None:
        reshape = "" if axes.shape == axes.source else f"X = Reshape(X, {list(axes.shape)}); "
        reduced = list(axes.reduce)
        return f"{reshape}D = X - ReduceMean(X, axes={reduced})\nY = D / Sqrt(ReduceMean(D * D, axes={reduced}) + {EPS})" + (
            ", then Reshape back" if reshape else ""
        )
    channel = _channel(axes)
    if channel == 1:
        return f"Y = {operator}"
    there = [a for a in range(len(axes.source)) if a != channel]
    there.insert(1, channel)
    back = [there.index(a) for a in range(len(there))]
    return f"X = Transpose(X, perm={there})  # its channels are dimension 1\nY = Transpose({operator}, perm={back})"


def _tensorflow(axes: Axes) -> str:
    moments = f"mean, var = tf.nn.moments(x, axes={list(axes.reduce)}, keepdims=True)"
    if axes.shape != axes.source:
        return _by_hand(axes, moments, "tf")
    return f"{moments}\ny = tf.nn.batch_normalization(x, mean, var, None, None, {EPS})"


def _axis(axes: tuple[int, ...]) -> str:
    return str(axes[0]) if len(axes) == 1 else str(axes)


_FRAMEWORKS: dict[str, Callable[[Axes], str]] = {
    "NumPy": _numpy,
    "Keras": _keras,
    "PyTorch": _torch,
    "Flax": _flax,
    "ONNX": _onnx,
    "tf.nn.moments": _tensorflow,
}
