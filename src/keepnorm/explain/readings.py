"""What the norms and means of each framework say with their arguments: one table, a function for each kind of argument."""

import ast
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Call(NamedTuple):
    """A call of a framework, its arguments not yet read."""

    library: str
    function: str
    positional: tuple[ast.expr, ...]
    keywords: Mapping[str, ast.expr]


class Reading(NamedTuple):
    """The axes that a call says, as `explain` takes them, and what is to be said of it."""

    keep: tuple[int, ...] | str
    affine: tuple[int, ...] | str | None
    notes: tuple[str, ...]
    sizes: Mapping[str, int] = {}


class CallError(ValueError):
    """What is wrong with a call; the text goes on after the word "call"."""


def library_of(path: Sequence[str], positional: Sequence[ast.expr], keywords: Mapping[str, ast.expr]) -> str:
    """The library of a dotted name, by the names that people import it as; "array" for the method of a variable."""
    for names, library in _ROOTS:
        if not names.isdisjoint(path[:-1]):
            return library
    if path[:-1] in (("nn",), ()):
        return _short(path[-1], positional, keywords)
    return "array"


_ROOTS = (
    ({"keras", "layers"}, "keras"),
    ({"nnx"}, "nnx"),
    ({"flax", "linen"}, "flax"),
    ({"hk", "haiku"}, "haiku"),
    ({"torchvision", "transforms", "v2", "T"}, "torchvision"),
    ({"torch", "F", "functional"}, "torch"),
    ({"np", "numpy", "jnp", "jax", "cp", "cupy", "xp"}, "numpy"),
    ({"tf", "tensorflow"}, "tf"),
    ({"onnx", "op", "opset"}, "onnx"),
    ({"scipy", "stats"}, "scipy"),
    ({"sklearn", "preprocessing"}, "sklearn"),
)


def _short(function: str, positional: Sequence[ast.expr], keywords: Mapping[str, ast.expr]) -> str:
    """The library of `nn.LayerNorm` or `LayerNorm`: what PyTorch and Flax, or Keras and ONNX, both have."""
    if function in _MEANS:
        return "numpy"
    if function in ("LayerNorm", "RMSNorm"):
        return "torch" if positional or "normalized_shape" in keywords else "flax"
    if function == "GroupNorm":
        return "torch" if len(positional) > 1 or "num_channels" in keywords else "flax"
    if positional and isinstance(positional[0], ast.Name) and ("onnx", function) in READERS:
        return "onnx"
    found = (library for library, name in READERS if name == function and library != "array")
    return next(found, "")


def _literal(call: Call, name: str, position: int | None, default: Any = None) -> Any:
    """An argument by one of its names, such as "axis dim", or by its place."""
    for word in name.split():
        if word in call.keywords:
            node = call.keywords[word]
            break
    else:
        if position is None or position >= len(call.positional):
            return default
        node = call.positional[position]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise CallError(f"must give {name.split()[0]} as numbers, since it is not executed") from None


def _numbers(value: Any, ndim: int, name: str) -> tuple[int, ...]:
    """Axes counted from 0."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if any(isinstance(a, bool) or not isinstance(a, int) for a in values):
        raise CallError(f"must give {name} as an integer or as several")
    if any(not -ndim <= a < ndim for a in values):
        raise CallError(f"must name axes of x, which has {_many(ndim)}")
    axes = tuple(sorted(a % ndim for a in values))
    if len(set(axes)) < len(axes):
        raise CallError("must name each axis once")
    return axes


def _rest(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a not in axes)


def _listed(axes: Sequence[int]) -> str:
    return ", ".join(map(str, axes)) or "none"


def _many(n: int) -> str:
    return f"{n} axis" if n == 1 else f"{n} axes"


def _names(what: str, title: str, axes: Sequence[int], role: str) -> str:
    one = "axis that is" if len(axes) == 1 else "axes that are"
    return f"{what}= of {title} names the {one} {role}: here {_listed(axes)}."


def _needs(shape: Shape, least: int, title: str) -> None:
    if len(shape) < least:
        raise CallError(f"is of {title}, which needs at least {_many(least)}, and the shape has {len(shape)}")


def _kept(call: Call, shape: Shape, name: str, position: int | None, default: Any, title: str) -> Reading:
    """The argument names what is kept."""
    value = _literal(call, name, position, default)
    axes = () if value is None else _numbers(value, len(shape), name)
    notes = [f"{_names(name, title, axes, 'kept')} Everything else is reduced."]
    if len(axes) > 1 and call.function == "BatchNormalization":
        notes.append(
            "Keras 3 takes one axis only; Keras 2 keeps all of these. Usually meant: batch norm of the channels, axis=-1 (or "
            f"axis=1 for channels first), or layer norm, LayerNormalization(axis={list(axes)}), whose axis is reduced."
        )
    elif "Batch" in call.function:
        notes.append(
            "Usually meant: the axis of the channels, -1 for channels last and 1 for channels first. NumPy's axis= and "
            "LayerNormalization's name what is reduced."
        )
    return Reading(axes, None, tuple(notes))


def _reduced(
    call: Call, shape: Shape, name: str, position: int | None, default: Any, title: str, weights: str = "none"
) -> Reading:
    """The argument names what is reduced; weight and bias live there ("reduced"), on the kept axes, or nowhere ("none")."""
    ndim = len(shape)
    value = _literal(call, name, position, default)
    axes = tuple(range(ndim)) if value is None else _numbers(value, ndim, name)
    kept = _rest(axes, ndim)
    word = name.split()[0]
    notes = [f"{_names(word, title, axes, 'reduced')} Kept: {_listed(kept)}."]
    if value is None:
        notes = [f"{title} without {word}= reduces everything: one number for the whole array."]
    elif axes and kept and weights != "kept":
        notes.append(
            f"If you meant to keep {'axis' if len(axes) == 1 else 'axes'} {_listed(axes)}, as axis= of Keras's "
            f"BatchNormalization would, say {word}={kept[0] if len(kept) == 1 else kept}."
        )
    if weights == "none":
        notes.append(f"{title} has no weight and bias: what is said of them is true of a norm over these axes.")
    return Reading(kept, axes if weights == "reduced" else None, tuple(notes))


def _haiku_batch(call: Call, shape: Shape) -> Reading:
    _needs(shape, 1, "Haiku's BatchNorm")
    return _reduced(call, shape, "axis", 4, list(range(len(shape) - 1)), "Haiku's BatchNorm", "kept")


def _features(call: Call, shape: Shape, title: str) -> Reading:
    """Flax: the reduced axes and those of the weights are two arguments."""
    _needs(shape, 1, title)
    ndim = len(shape)
    axes = _numbers(_literal(call, "reduction_axes", None, -1), ndim, "reduction_axes")
    affine = _numbers(_literal(call, "feature_axes", None, -1), ndim, "feature_axes")
    says = (
        f"{_names('reduction_axes', title, axes, 'reduced')} feature_axes= names those of weight and bias: {_listed(affine)}."
    )
    return Reading(_rest(axes, ndim), affine, (says,))


def _channels(call: Call, shape: Shape, ranks: tuple[int, ...], channel: int, title: str) -> Reading:
    """A batch norm whose kept axis is fixed."""
    _needs(shape, 2, title)
    ndim = len(shape)
    channel %= ndim
    notes = [f"{title} keeps axis {channel}, the channels; everything else is reduced."]
    if title[-2:] in ("1d", "2d", "3d"):
        notes[0] += f" The {title[-2:]} says how many axes follow the channels; all of them are reduced."
    if ranks and ndim not in ranks:
        notes.append(f"PyTorch refuses it: {title} takes {' or '.join(map(str, ranks))} axes; x has {ndim}.")
    try:
        features = _literal(call, "num_features", 0)
    except CallError:  # it has no bearing on the axes
        features = None
    if call.library == "torch" and isinstance(features, int) and features != shape[channel]:
        said = f"PyTorch refuses it: num_features is {features} and axis {channel} of x has size {shape[channel]}."
        if features == shape[-1]:
            said += f" The {features} are on axis {ndim - 1}; for channels last usually meant: x.movedim(-1, 1) before it."
        notes.append(said)
    elif title == "BatchNorm1d" and ndim == 3:
        notes.append(
            "For data in the order (n, length, channel) usually meant: the last axis kept, x.movedim(-1, 1) before it."
        )
    return Reading((channel,), None, tuple(notes))


def _functional(call: Call, shape: Shape) -> Reading:
    return _channels(call._replace(positional=(), keywords={}), shape, (), 1, "F.batch_norm")


def _last_sizes(call: Call, shape: Shape, position: int, title: str) -> Reading:
    """PyTorch's normalized_shape: the last axes, by their sizes."""
    value = _literal(call, "normalized_shape", position)
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(n, int) for n in sizes) or not 0 < len(sizes) <= len(shape):
        raise CallError(f"must give normalized_shape, the sizes of the last axes of x, which has {_many(len(shape))}")
    axes = tuple(range(len(shape) - len(sizes), len(shape)))
    notes = [
        f"normalized_shape of {title} gives the sizes of the last axes: {_listed(axes)} are reduced, and have the weights."
    ]
    there = shape[axes[0] :]
    if sizes != there:
        notes.append(f"PyTorch refuses it: normalized_shape is {sizes} and the last sizes of x are {there}.")
    if len(sizes) == 1 and len(shape) == 4:
        notes.append(
            "For pictures in the order n c h w that is one row of a picture. Usually meant: the channels, with "
            f"x.movedim(1, -1) before it, or each example, {title}({list(shape[1:])})."
        )
    if "RMS" in title:
        notes.append("No mean is subtracted: center=False in keepnorm.")
    return Reading(_rest(axes, len(shape)), axes, tuple(notes))


def _from_axis(call: Call, shape: Shape, title: str) -> Reading:
    """ONNX: the first axis that is reduced."""
    _needs(shape, 1, title)
    first = _numbers(_literal(call, "axis", None, -1), len(shape), "axis")[0]
    axes = tuple(range(first, len(shape)))
    says = f"axis= of {title} names the first axis that is reduced: here {first}, so {_listed(axes)}."
    return Reading(_rest(axes, len(shape)), axes, (says,))


def _instance(call: Call, shape: Shape, channel: int, title: str, axis: str = "") -> Reading:
    """Each example and channel on its own."""
    _needs(shape, 3, title)
    value = _literal(call, axis, None, channel) if axis else channel
    channel = _numbers(value, len(shape), axis)[0]
    notes = [f"{title} keeps the example and the channel, axes 0 and {channel}; weight and bias live on the channel."]
    if call.library == "torch":
        notes.append("In PyTorch it has weight and bias only with affine=True.")
    return Reading((0, channel), (channel,), tuple(notes))


def _groups(
    call: Call, shape: Shape, name: str, position: int | None, default: int | None, channel: Any, title: str
) -> Reading:
    """Groups of channels; `channel` is the axis, or the name and the place of the argument that says it."""
    _needs(shape, 2, title)
    ndim = len(shape)
    axis = _numbers(channel if isinstance(channel, int) else _literal(call, "axis", channel[1], -1), ndim, "axis")[0]
    groups = _literal(call, name, position, default)
    size = shape[axis]
    if isinstance(groups, bool) or not isinstance(groups, int) or groups == 0:
        raise CallError(f"must give {name} as a whole number")
    groups = size if groups == -1 else groups
    if axis == 0 or groups <= 0 or size % groups:
        raise CallError(f"splits axis {axis} of size {size} into {groups} groups, which does not go")
    split = f"{title} splits axis {axis}, the channels, into {groups} groups of {size // groups}"
    notes = [f"{split}: the example and the group are kept, weight and bias live on the channels."]
    if groups == 1:
        notes.append("One group: everything of an example is reduced, as in layer norm, but with one weight per channel.")
    elif groups == size:
        return Reading((0, axis), (axis,), (*notes, "As many groups as channels: that is instance norm."))
    there = ["n", *(f"a{a}" for a in range(1, ndim))]
    there[axis] = "(g c)"
    return Reading(f"{' '.join(there)} -> n g", "g c", tuple(notes), {"g": groups})


def _colours(call: Call, shape: Shape) -> Reading:
    _needs(shape, 3, call.function)
    channel = len(shape) - 3
    return Reading(
        (channel,),
        None,
        (
            f"transforms.Normalize keeps axis {channel}, the colours, which stand third from the end.",
            "Its mean and std are fixed numbers of the data set, without weight and bias; batch norm takes the batch's.",
        ),
    )


def _columns(call: Call, shape: Shape) -> Reading:
    if len(shape) != 2:
        raise CallError(f"is of {call.function}, which takes a table of 2 axes, and the shape has {len(shape)}")
    return Reading((1,), None, (f"{call.function} keeps the columns, axis 1; the rows are reduced.",))


_MEANS = ("mean", "var", "std")
READERS: dict[tuple[str, str], Callable[[Call, Shape], Reading]] = {
    **{
        ("torch", f"{lazy}BatchNorm{d}d"): partial(_channels, ranks=ranks, channel=1, title=f"BatchNorm{d}d")
        for lazy in ("", "Lazy")
        for d, ranks in ((1, (2, 3)), (2, (4,)), (3, (5,)))
    },
    ("torch", "SyncBatchNorm"): partial(_channels, ranks=(), channel=1, title="SyncBatchNorm"),
    ("torch", "batch_norm"): _functional,
    **{("torch", f"InstanceNorm{d}d"): partial(_instance, channel=1, title=f"InstanceNorm{d}d") for d in (1, 2, 3)},
    ("torch", "instance_norm"): partial(_instance, channel=1, title="F.instance_norm"),
    ("torch", "LayerNorm"): partial(_last_sizes, position=0, title="LayerNorm"),
    ("torch", "RMSNorm"): partial(_last_sizes, position=0, title="RMSNorm"),
    ("torch", "layer_norm"): partial(_last_sizes, position=1, title="F.layer_norm"),
    ("torch", "rms_norm"): partial(_last_sizes, position=1, title="F.rms_norm"),
    ("torch", "GroupNorm"): partial(_groups, name="num_groups", position=0, default=None, channel=1, title="GroupNorm"),
    ("torch", "group_norm"): partial(_groups, name="num_groups", position=1, default=None, channel=1, title="F.group_norm"),
    **{
        ("torch", name): partial(_reduced, name="dim axis", position=1, default=None, title=f"torch.{name}")
        for name in (*_MEANS, "var_mean", "std_mean", "nanmean")
    },
    ("torchvision", "Normalize"): _colours,
    ("keras", "BatchNormalization"): partial(_kept, name="axis", position=0, default=-1, title="Keras's BatchNormalization"),
    ("keras", "Normalization"): partial(_kept, name="axis", position=0, default=-1, title="Keras's Normalization"),
    **{
        ("keras", name): partial(_reduced, name="axis", position=0, default=-1, title=f"Keras's {name}", weights="reduced")
        for name in ("LayerNormalization", "RMSNormalization")
    },
    ("keras", "GroupNormalization"): partial(
        _groups, name="groups", position=0, default=32, channel=("axis", 1), title="Keras's GroupNormalization"
    ),
    **{
        ("keras", name): partial(_reduced, name="axes axis", position=1, default=None, title=f"Keras's {name}")
        for name in (*_MEANS, "moments")
    },
    ("flax", "BatchNorm"): partial(_kept, name="axis", position=1, default=-1, title="Flax's BatchNorm"),
    ("nnx", "BatchNorm"): partial(_kept, name="axis", position=None, default=-1, title="Flax's nnx.BatchNorm"),
    **{
        (library, name): partial(_features, title=f"Flax's {name}")
        for library in ("flax", "nnx")
        for name in ("LayerNorm", "RMSNorm")
    },
    **{
        (library, "GroupNorm"): partial(
            _groups, name="num_groups", position=place, default=32, channel=-1, title="Flax's GroupNorm"
        )
        for library, place in (("flax", 0), ("nnx", 1))
    },
    **{
        (library, "InstanceNorm"): partial(_instance, channel=-1, title="Flax's InstanceNorm", axis="feature_axes")
        for library in ("flax", "nnx")
    },
    ("haiku", "BatchNorm"): _haiku_batch,
    ("haiku", "LayerNorm"): partial(
        _reduced, name="axis", position=0, default=-1, title="Haiku's LayerNorm", weights="reduced"
    ),
    ("onnx", "BatchNormalization"): partial(_channels, ranks=(), channel=1, title="ONNX's BatchNormalization"),
    ("onnx", "InstanceNormalization"): partial(_instance, channel=1, title="ONNX's InstanceNormalization"),
    ("onnx", "GroupNormalization"): partial(
        _groups, name="num_groups", position=None, default=None, channel=1, title="ONNX's GroupNormalization"
    ),
    ("onnx", "LayerNormalization"): partial(_from_axis, title="ONNX's LayerNormalization"),
    ("onnx", "RMSNormalization"): partial(_from_axis, title="ONNX's RMSNormalization"),
    ("onnx", "MeanVarianceNormalization"): partial(
        _reduced, name="axes", position=None, default=[0, 2, 3], title="ONNX's MeanVarianceNormalization"
    ),
    ("onnx", "ReduceMean"): partial(_reduced, name="axes", position=None, default=None, title="ONNX's ReduceMean"),
    **{
        ("tf", name): partial(_reduced, name="axes axis", position=1, default=None, title=f"TensorFlow's {name}")
        for name in ("moments", "reduce_mean", "reduce_variance", "reduce_std")
    },
    **{
        ("numpy", name): partial(_reduced, name="axis", position=1, default=None, title=f"NumPy's {name}")
        for name in (*_MEANS, "average", "nanmean", "nanvar", "nanstd")
    },
    ("numpy", "standardize"): partial(_reduced, name="axis", position=1, default=-1, title="JAX's standardize"),
    **{("array", name): partial(_reduced, name="axis dim", position=0, default=None, title=f"x.{name}") for name in _MEANS},
    ("scipy", "zscore"): partial(_reduced, name="axis", position=1, default=0, title="SciPy's zscore"),
    ("sklearn", "StandardScaler"): _columns,
    ("sklearn", "scale"): partial(_reduced, name="axis", position=1, default=0, title="scikit-learn's scale"),
}
