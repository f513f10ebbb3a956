"""Keywords that nothing here takes: what each of them means in other libraries, and what it is called here.

All public functions and classes look into the one table of this file, and only when they have got such a keyword.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import Parameter, isclass, isfunction, signature
from typing import Any, NamedTuple, NoReturn

from numpy import generic

# Stands for an argument that was not given, so that an unknown keyword meets its own error before Python's.
REQUIRED: Any = ...


class Word(NamedTuple):
    """A word of this library."""

    meaning: str
    elsewhere: str  # what to do where a function does not take it


class Row(NamedTuple):
    """Words of other libraries for one thing."""

    words: str
    ours: str  # the first of these that the function takes is what is meant
    note: str = ""


_OF_NORMS = "keepnorm.normalize and the named norms take it"
OURS = {
    "keep": Word(
        "the axes that survive; everything else is reduced",
        "the kept axes are said once, where the object is made, as in keepnorm.BatchNorm(64, keep=1)",
    ),
    "axes": Word("the axes that are reduced; everything else is kept", "keepnorm.layer_norm takes axes="),
    "channel": Word("the axis of the channels, which is kept", "keepnorm.batch_norm takes channel="),
    "groups": Word(
        "how many blocks the channels are split into",
        "keepnorm.group_norm takes groups=; keep='n (g c) h w -> n g' with g=32 says the same",
    ),
    "eps": Word("what is added to the variance", f"eps= is added where one normalises: {_OF_NORMS}"),
    "weight": Word("the learned scale", f"weight= is the learned scale: {_OF_NORMS}"),
    "bias": Word("the learned offset", f"bias= is the learned offset: {_OF_NORMS}"),
    "scale": Word("what x is multiplied by", "keepnorm.affine takes scale="),
    "shift": Word("what is added", "keepnorm.affine takes shift="),
    "affine": Word(
        "the axes of weight and bias; of keepnorm.BatchNorm whether it has them", "keepnorm.normalize takes affine="
    ),
    "where": Word("a bool array, True where a value counts", "keepnorm.normalize(x, keep, where=...) takes a mask"),
    "weights": Word(
        "how often each value counts: numbers of at least 0 that broadcast to x",
        "keepnorm.moments(x, keep, weights=...) and keepnorm.normalize take them",
    ),
    "nan_policy": Word(
        'what a NaN does: "propagate", "omit" or "raise"', 'keepnorm.moments and keepnorm.normalize take nan_policy="omit"'
    ),
    "fill": Word("what the result holds where a value is left out", "keepnorm.normalize takes fill="),
    "constant": Word(
        'what a cell of variance 0 gives: "bias", "center", "nan" or "error"', "keepnorm.normalize takes constant="
    ),
    "moments": Word(
        "as keepnorm.Moments.from_mean_var(mean, var, keep=1, ndim=4) makes them",
        "keepnorm.normalize(x, keep, moments=...) takes given ones",
    ),
    "center": Word("False: no mean is subtracted", "keepnorm.normalize takes center=; keepnorm.rms_norm subtracts no mean"),
    "out": Word("the array to write into: out=x is in place", "keepnorm.normalize(x, keep, out=x) is in place"),
    "decay": Word(
        "the share of the old running value that stays",
        "running moments belong to keepnorm.BatchNorm(64, keep=1, decay=0.9)",
    ),
    "training": Word(
        "True: the moments of the batch; False: the running ones",
        "a keepnorm.BatchNorm takes it at each call, bn(x, training=True); functions take the running ones as moments=",
    ),
    "correction": Word(
        "0 for the population, 1 for the sample variance",
        "keepnorm.moments(x, keep).variance(correction=1) is the sample variance; a batch is normalised with the population's",
    ),
    "count": Word("how many values each cell was taken from", "moments count by themselves"),
    "shape": Word("the sizes of the kept axes", "sizes are read from x"),
    "n": Word("how many threads", "`with keepnorm.threads(2):` says how many threads"),
}

_AMBIGUOUS = (
    "np.mean, torch and Keras LayerNormalization reduce such an axis, Keras BatchNormalization keeps it. "
    "Say {ours}= with {meaning}"
)
_TABLE = (
    Row("axis dim dims axes reduction_axes feature_axes reduce", "keep axes channel"),
    Row("keep kept keep_axes", "keep channel axes"),
    Row("channel channels channel_axis channel_dim", "channel keep axes"),
    Row("data_format channels_last channels_first", "channel keep axes", "-1 is channels last, 1 is channels first"),
    Row("normalized_shape", "axes keep", "axes, not their sizes: the last ones are normalized_shape"),
    Row("groups num_groups n_groups ngroups", "groups"),
    Row("eps epsilon variance_epsilon layer_norm_eps layer_norm_epsilon rms_norm_eps norm_eps", "eps"),
    Row("weight gamma scale multiplier", "weight scale"),
    Row("bias beta offset shift", "bias shift"),
    Row("weights sample_weight fweights aweights", "weights"),
    Row("affine elementwise_affine use_scale use_bias create_scale create_offset", "affine", "weight and bias are optional"),
    Row("where mask", "where"),
    Row("nan_policy skipna ignore_nan omit_nan", "nan_policy where", 'nan_policy="omit" leaves NaN out'),
    Row("fill fill_value masked_value", "fill"),
    Row("constant zero_variance handle_zeros_in_scale", "constant"),
    Row("moments running_mean running_var moving_mean moving_variance input_mean input_var mean var variance", "moments"),
    Row("center centered subtract_mean", "center"),
    Row("dtype", "", "the result has the dtype of x: convert x before or the result after"),
    Row("out inplace overwrite_x", "out"),
    Row("keepdims keepdim", "", "mean and var come without the reduced axes; keepnorm.normalize puts them back by itself"),
    Row("decay momentum", "decay"),
    Row("training train is_training training_mode", "training"),
    Row("use_running_average use_global_stats inference deterministic", "training", "training= is its opposite"),
    Row("track_running_stats", "", "keepnorm.batch_norm tracks nothing, keepnorm.BatchNorm always does"),
    Row("ddof correction unbiased", "correction"),
    Row("count nobs num_samples", "count"),
    Row("shape num_features features num_channels", "shape"),
    Row("num_threads n_jobs n_threads", "n"),
    Row("device", "", "the result is on the device of x: move x before or the result after"),
    Row("process_group axis_name", "", "keepnorm.sync merges the moments of several ranks"),
)
ROWS = {word: row for row in _TABLE for word in row.words.split()}

_AXES = _TABLE[0].words.split()

# Where a function means something else by it.
_FLAG = "BatchNorm takes affine=, False for neither weight nor bias; bn.weight = None or bn.bias = None takes one away"
_OF_A_STATE = "it is in no state; keepnorm.dialects.arguments(dialect, bn) gives eps and momentum in the dialect's words"
EXCEPTIONS = {
    **{("BatchNorm", word): _FLAG for word in ("scale", "center", "weight", "bias", *ROWS["affine"].words.split())},
    **{("dump", word): _OF_A_STATE for word in ("momentum", "decay", *ROWS["eps"].words.split())},
    ("load", "decay"): "load takes momentum=, in the dialect's own meaning",
}


def refuse(function: Callable[..., Any], unknown: Mapping[str, Any], *others: Callable[..., Any]) -> NoReturn:
    """Name what the first unknown keyword means here; `function` hands some of its keywords on to `others`."""
    name, value = next(iter(unknown.items()))
    taken = [parameter for f in (function, *others) for parameter in parameters(f)]
    called = _called(function)
    got = f"{name}={described(value)}"
    for one in function.__mro__ if isclass(function) else (function,):
        if (one.__name__, name) in EXCEPTIONS:
            raise TypeError(f"unexpected keyword {got}: {EXCEPTIONS[one.__name__, name]}")
    if name in _AXES and (ours := axes_word(function)):
        meaning = _AMBIGUOUS.format(ours=ours, meaning=OURS[ours].meaning)
        raise TypeError(f"{got} is ambiguous: {meaning}")
    if name == "momentum":
        where = "decay=" if "decay" in taken else "decay= to keepnorm.BatchNorm"
        raise TypeError(
            f"{got} is ambiguous: it is the old share in Keras and Flax, decay=momentum here, and the new share in PyTorch, "
            f"decay=1 - momentum. Say {where}, or load a state through keepnorm.dialects"
        )
    if name in ROWS:
        raise TypeError(f"unexpected keyword {got}: {_meaning(ROWS[name], called, taken)}")
    raise TypeError(f"unexpected keyword {got}: {_nearest(name, function, called, taken)}")


def check(function: Callable[..., Any], unknown: Mapping[str, Any], **needed: Any) -> None:
    """Refuse unknown keywords, and the lack of those that are needed."""
    if unknown:
        refuse(function, unknown)
    for name, value in needed.items():
        if value is REQUIRED:
            meaning = f", {OURS[name].meaning}" if name in OURS else ""
            raise TypeError(f"{name}= is missing: {_called(function)} needs {name}={meaning}; got none")


def check_sizes(function: Callable[..., Any], keep: Any, sizes: Mapping[str, Any]) -> None:
    """Refuse every keyword that is not the size of an axis which the pattern `keep` names."""
    names = _names(keep) if isinstance(keep, str) else frozenset()
    if not names.issuperset(sizes):
        refuse(function, {name: size for name, size in sizes.items() if name not in names})


def axes_word(function: Callable[..., Any]) -> str:
    """The word by which a function is told its axes; empty if it is not told."""
    return next((word for word in ("keep", "axes", "channel") if word in parameters(function)), "")


def parameters(function: Callable[..., Any]) -> list[str]:
    """The names that may be given to a function, or to a class and those that it passes keywords on to."""
    functions: list[Any] = [function]
    if isclass(function):
        functions = [vars(kind)["__init__"] for kind in function.__mro__ if "__init__" in vars(kind)]
    taken: list[str] = []
    for one in functions:
        found = signature(one).parameters.values()
        taken += [p.name for p in found if p.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
        if not any(p.kind is Parameter.VAR_KEYWORD and p.name != "unknown" for p in found):
            break
    return [name for name in dict.fromkeys(taken) if name != "self"]


def show(*things: Any) -> None:
    """Let help() and the documentation show what is taken: no default that stands for a missing argument, no `unknown`.

    `things` are functions, and classes with their methods.
    """
    for thing in things:
        for function in _functions(thing):
            found = signature(function)
            shown = [
                p.replace(default=Parameter.empty) if p.default is REQUIRED else p
                for p in found.parameters.values()
                if not (p.kind is Parameter.VAR_KEYWORD and p.name == "unknown")
            ]
            if shown != list(found.parameters.values()):
                function.__signature__ = found.replace(parameters=shown)


def _functions(thing: Any) -> list[Any]:
    """A function, or the functions of a class."""
    if not isclass(thing):
        return [thing] if isfunction(thing) else []
    return [f for f in (getattr(value, "__func__", value) for value in vars(thing).values()) if isfunction(f)]


def described(value: Any) -> str:
    """A value in an error: numbers, words and short sequences as they are written, of everything else what it is."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | generic):
        text = repr(value)
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        text = f"{_kind(value)} of {value.dtype}, shape {tuple(value.shape)}"
    elif isinstance(value, tuple | list):
        plain = len(value) <= 8 and all(v is None or isinstance(v, bool | int | float | str | generic) for v in value)
        text = repr(value) if plain else f"{_kind(value)} of length {len(value)}"
    else:
        text = _kind(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _meaning(row: Row, called: str, taken: list[str]) -> str:
    words = row.ours.split()
    if not words:
        return row.note
    own = next((word for word in words if word in taken), None)
    said = OURS[words[0]].elsewhere if own is None else f"{called} takes {own}=, {OURS[own].meaning}"
    return f"{said} ({row.note})" if row.note else said


def _nearest(name: str, function: Callable[..., Any], called: str, taken: list[str]) -> str:
    """What a misspelt word may be."""
    from difflib import get_close_matches

    for near in get_close_matches(name.lower(), [*taken, *ROWS], n=1, cutoff=0.7):
        if near in taken:
            return f"did you mean {near}=?"
        return f"did you mean {near}=? {_meaning(ROWS[near], called, taken)}"
    if any(p.kind is Parameter.VAR_KEYWORD and p.name == "sizes" for p in signature(function).parameters.values()):
        return "a size such as g=32 is taken only with a pattern that names it, such as keep='n (g c) h w -> n g'"
    return f"{called} takes {', '.join(taken) or 'none'}"


def _called(function: Callable[..., Any]) -> str:
    """What an error calls a function."""
    name = function.__qualname__
    return f"a call of {name.removesuffix('.__call__')}" if name.endswith(".__call__") else name


def _kind(value: Any) -> str:
    kind = type(value)
    root = kind.__module__.partition(".")[0]
    return kind.__qualname__ if root == "builtins" else f"{root}.{kind.__qualname__}"


@lru_cache(maxsize=256)
def _names(pattern: str) -> frozenset[str]:
    """The names of a pattern."""
    return frozenset(re.findall(r"[A-Za-z_]\w*", pattern)) if "->" in pattern else frozenset()
