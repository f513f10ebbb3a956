"""What must hold before any engine is called: types, dtypes, shapes and axes, from metadata alone.

What the axes and the dtype of a call mean is worked out once for each combination and kept, so that a repeated call
costs one look-up. Nothing here reads a value of an array.
"""

from collections.abc import Callable, Mapping
from math import inf, isfinite
from numbers import Real
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from keepnorm import hints
from keepnorm.axes import Axes, refuse_order
from keepnorm.bounded import remember
from keepnorm.engines import dispatch
from keepnorm.engines.backends import BY_NAME
from keepnorm.keywords import REQUIRED, axes_word, check_sizes, described
from keepnorm.moments import Moments
from keepnorm.places import distinct
from keepnorm.precision import result_name
from keepnorm.request import Request
from keepnorm.roles import general, group
from keepnorm.subclasses import shape_of
from keepnorm.transfer import read
from keepnorm.tuning import REMEMBERED as _MOST_CALLS

Array = Any

# (weight, bias, eps, center, moments, where) of a normalisation, as the caller said them.
Asked: TypeAlias = tuple[Array | None, Array | None, Any, Any, Any, Array | None]


class Call(NamedTuple):
    """What is known of a call before any value: who serves it, the roles of the axes, the shapes of the parameters."""

    engine: ModuleType
    name: str
    axes: Any  # Axes; None for an array with names, which is unwrapped first
    shape: tuple[int, ...]
    affine_shape: tuple[int, ...]
    source_affine_shape: tuple[int, ...]
    kept_shape: tuple[int, ...]
    words: tuple[Any, ...] | None  # (keep, affine) where the function is told so
    result: str
    kind: Any
    dtype: Any
    empty: bool
    ready: list[list[Any]]  # what serves further calls without a weight or a bias, or with them, at once; None for none


_CALLS: dict[Any, Call] = {}


def call(
    build: Callable[..., Axes], x: Array, words: tuple[Any, ...], sizes: Mapping[str, Any], function: Callable[..., Any]
) -> Call:
    """The call of a public function for x and the function's own words for its axes.

    `build` makes the axes from the shape, the words and, for a pattern, the sizes.
    """
    if sizes:
        check_sizes(function, words[0] if build is general else None, sizes)
        return _new(build, x, words, sizes, function)
    # 1, True and 1.0 are one key of a dict, but not all of them are axes: the types belong to the key.
    types = (type(words[0]),) if len(words) == 1 else tuple(map(type, words))
    if tuple in types:
        types += tuple(type(a) for word in words if type(word) is tuple for a in word)
    try:
        key = (build, type(x), x.shape, x.dtype, words, types)
        known = _CALLS.get(key)
    except (AttributeError, TypeError, RuntimeError):  # x is no array, or nested, or a word is a list
        return _new(build, x, words, sizes, function)
    if known is None:
        known = _new(build, x, words, sizes, function)
        if known.axes is not None:
            remember(_CALLS, key, known, _MOST_CALLS)
    return known


def _new(
    build: Callable[..., Axes], x: Array, words: tuple[Any, ...], sizes: Mapping[str, Any], function: Callable[..., Any]
) -> Call:
    if any(word is REQUIRED for word in words):
        missing = "groups" if build is group and words[0] is REQUIRED else axes_word(function)
        raise TypeError(f"{missing}= is missing: nothing is taken for granted; got x with shape {getattr(x, 'shape', None)}")
    name = dispatch.name_of(x)
    result = result_name(dispatch.dtype_name(x.dtype))
    if name == "xarray":  # unwrapped by the caller, who comes back with its data
        return Call(dispatch.load(name), name, None, (), (), (), (), None, result, type(x), x.dtype, False, _nothing())
    shape = _shape(x)
    axes = build(shape, *words, sizes) if build is general else build(shape, *words)
    return Call(
        dispatch.load(name),
        name,
        axes,
        axes.source,
        axes.affine_shape,
        axes.source_affine_shape,
        axes.kept_shape,
        words if build is general else None,
        result,
        type(x),
        x.dtype,
        axes.count == 0 and 0 not in axes.kept_shape,
        _nothing(),
    )


def _nothing() -> list[list[Any]]:
    return [[None, None], [None, None]]


def _shape(x: Array) -> tuple[int, ...]:
    shape = shape_of(x, "x")
    if any(n is None or n != n for n in shape):  # NaN is the size that dask does not know yet
        raise ValueError(f"x must have a known shape: call x.compute_chunk_sizes() first; got {shape}")
    return shape


def request(known: Call, asked: Asked) -> Request:
    """The request of a normalisation, from what the caller asked for.

    Raises
    ------
    TypeError, ValueError
        If a part of it is not what it must be, or the reduced axes are empty and no moments are given.
    """
    weight, bias, eps, center, moments, where = asked
    if weight is not None:
        weight = parameter(weight, "weight", known)
    if bias is not None:
        bias = parameter(bias, "bias", known)
    if where is not None:
        where = mask(where, known)
    if type(eps) is not float or not 0.0 <= eps < inf:
        eps = epsilon(eps)
    if type(center) is not bool:
        flag(center, "center")
    if moments is not None:
        moments = given(moments, known, eps, center)
    elif known.empty:
        refuse_nothing(known)
    return Request(known.axes, weight, bias, eps, center, moments, where)


def parameter(value: Any, name: str, known: Call) -> Any:
    """A weight, a bias, a scale or a shift, in the shape of the affine axes.

    Raises
    ------
    TypeError
        If it is no array of the library of x, or does not hold real numbers.
    ValueError
        If its shape is not that of the affine axes.
    """
    if value is None:
        return None
    if type(value) is not known.kind or value.dtype is not known.dtype:
        value = _of_library(value, name, known)
        result_name_of(value, name)
    if known.axes.written is not None:
        refuse_order(name, known.axes.written)
    shape = value.shape if type(value) is np.ndarray else shape_of(value, name)
    if shape == known.affine_shape:
        return value
    if shape == known.source_affine_shape:
        return value.reshape(known.affine_shape) if hasattr(value, "reshape") else _reshape(value, known.affine_shape)
    axes = known.axes
    needed = known.source_affine_shape
    affine = tuple(sorted({axes.origin[a] for a in axes.affine}))
    hint = hints.for_parameter(name, shape, axes, known.words if name in ("weight", "bias") else None)
    raise ValueError(
        f"{name} has shape {shape}, but the affine axes {affine} of x with shape {known.shape} need {needed}{hint}"
    )


def result_name_of(value: Array, name: str) -> str:
    """The result dtype of a parameter, with the parameter's name in the error."""
    dtype = dispatch.dtype_name(value.dtype)
    try:
        return result_name(dtype)
    except TypeError:
        raise TypeError(f"{name} must hold real numbers; got {dtype}") from None


def mask(where: Any, known: Call) -> Any:
    """A mask: bool, of a shape that broadcasts to that of x."""
    if where is None:
        return None
    where = _of_library(where, "where", known)
    if dispatch.dtype_name(where.dtype) != "bool":
        raise TypeError(f"where must hold bool; got {dispatch.dtype_name(where.dtype)}")
    shape = shape_of(where, "where")
    if len(shape) > len(known.shape) or any(
        n not in (1, size) for n, size in zip(reversed(shape), reversed(known.shape), strict=False)
    ):
        hint = hints.for_mask(shape, known.shape)
        raise ValueError(f"where must broadcast to the shape of x, {known.shape}; got shape {shape}{hint}")
    return where


def weights(values: Any, known: Call) -> Any:
    """Weights of values: real numbers of at least 0, of a shape that broadcasts to that of x.

    Raises
    ------
    TypeError
        If they are no array of the library of x, or do not hold real numbers.
    ValueError
        If the shape does not fit, or a weight that can be read is below 0, infinite or NaN.
    """
    values = _of_library(values, "weights", known)
    result_name_of(values, "weights")
    shape = shape_of(values, "weights")
    if len(shape) > len(known.shape) or any(
        n not in (1, size) for n, size in zip(reversed(shape), reversed(known.shape), strict=False)
    ):
        raise ValueError(f"weights must broadcast to the shape of x, {known.shape}; got shape {shape}")
    here = read(values)
    if here is not None and here.size and here.dtype.kind != "b" and not (here.min() >= 0 and here.max() < inf):
        wrong = here[~((here >= 0) & (here < inf))]
        raise ValueError(f"weights must be finite and at least 0; got {wrong.ravel()[0]}")
    return values


def output(out: Any, known: Call) -> Any:
    """An array to write into: of the library, the shape and the result dtype of x, and writable."""
    if out is None:
        return None
    if not BY_NAME[known.name].writable:
        raise TypeError(f"out= needs an array that can be written to, and none of {known.name} can; got {type(out).__name__}")
    if type(out) is not known.kind and _of_library(out, "out", known) is not out:
        raise TypeError(f"out must be an array of the library of x, {_library(known.kind)}; got {_library(type(out))}")
    shape = shape_of(out, "out")
    if shape != known.shape:
        raise ValueError(f"out must have the shape of x, {known.shape}; got {shape}")
    if dispatch.dtype_name(out.dtype) != known.result:
        raise TypeError(f"out must have dtype {known.result}, the result's; got {dispatch.dtype_name(out.dtype)}")
    flags = getattr(out, "flags", None)
    if flags is not None and not getattr(flags, "writeable", True):
        raise ValueError(f"out must be writable; got a read-only array of shape {shape}")
    if not _has_own_places(out, shape, known):
        strides = out.stride() if known.name == "torch" else out.strides
        raise ValueError(f"out must have a place of its own for every value; got the strides {strides}")
    return out


def _has_own_places(out: Array, shape: tuple[int, ...], known: Call) -> bool:
    """Whether no two values of `out` share memory; true where there are no strides to see."""
    if known.name == "torch":
        return str(out.layout) != "torch.strided" or out.is_contiguous() or distinct(shape, out.stride(), 1)
    return getattr(getattr(out, "flags", None), "c_contiguous", True) or distinct(shape, out.strides, out.itemsize)


def epsilon(eps: Any) -> float:
    """A finite real number of at least 0."""
    if isinstance(eps, bool) or not isinstance(eps, Real):
        raise TypeError(f"eps must be a real number; got {described(eps)}")
    value = float(eps)
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"eps must be finite and at least 0; got {described(eps)}")
    return value


def flag(value: Any, name: str) -> bool:
    """True or False, and nothing that only looks like it."""
    if value is not True and value is not False:
        raise TypeError(f"{name} must be True or False; got {'none' if value is REQUIRED else described(value)}")
    return value


def given(moments: Moments, known: Call, eps: float, center: bool) -> Moments:
    """Moments to normalise with: one mean and one variance for each kept cell of x, of which a root can be taken."""
    if not isinstance(moments, Moments):
        raise TypeError(f"moments must be keepnorm.Moments, such as Moments.from_mean_var makes; got {type(moments).__name__}")
    if type(moments.shift).__module__ != "numpy":  # a NumPy state, which is small, goes with every library
        _of_library(moments.shift, "moments", known)
    if tuple(moments.shift.shape) != known.kept_shape:
        raise ValueError(
            f"moments have shape {moments.shape}, but the kept axes {known.axes.keep} of x with shape {known.shape} "
            f"need {known.kept_shape}"
        )
    if moments.ndim == len(known.axes.shape) and moments.keep != known.axes.keep:
        raise ValueError(f"moments are of keep={moments.keep}; got keep={known.axes.keep} of x with shape {known.shape}")
    if moments.sum_weights is not None:
        moments = moments.without_count()
    m2 = moments.m2 if type(moments.m2) is np.ndarray else read(moments.m2)
    if m2 is not None and (m2 < 0).any():
        count = 1 if moments.count is None else moments.count if isinstance(moments.count, int) else read(moments.count)
        square = 0.0 if center else (read(moments.shift) + read(moments.delta)) ** 2
        rooted(m2 / count + square, eps, "var" if center else "the mean square")
    return moments


def rooted(var: Array, eps: float, name: str) -> Array:
    """A stored variance, if ``var + eps`` has a root that is not 0, or var is 0; it comes back as it is.

    Networks are published with variances some 1e-6 below 0, which an eps makes good. Only what lies in this process's memory
    is read; of the rest such a cell gives NaN.

    Raises
    ------
    ValueError
        If a variance is below 0, and eps does not make it positive.
    """
    here = read(var)
    if here is not None and (wrong := (here < 0) & (here + eps <= 0)).any():
        cell = tuple(map(int, np.argwhere(wrong)[0]))
        raise ValueError(f"{name} + eps must not be below 0: with eps={eps}, cell {cell} has {here[cell]}")
    return var


def cotangent(dy: Array, known: Call) -> Array:
    """The gradient of a result: an array of the library and the shape of x."""
    if type(dy) is not known.kind or dy.dtype != known.dtype:
        dy = _of_library(dy, "dy", known)
        result_name_of(dy, "dy")
    shape = shape_of(dy, "dy")
    if shape != known.shape:
        raise ValueError(f"dy must have the shape of x, {known.shape}; got {shape}")
    return dy


def refuse_nothing(known: Call) -> NoReturn:
    """Refuse to normalise with the moments of nothing."""
    raise ValueError(
        f"x has nothing to take a mean of: its reduced axes {known.axes.reduce} are empty; got shape {known.shape}"
    )


def _of_library(value: Any, name: str, known: Call) -> Any:
    """The value if its library is that of x; which copy to make is not ours to choose, so no other is taken.

    JAX and dask take NumPy's arrays for their own, and so do we; a JAX array on the CPU is NumPy's memory. A number that NumPy
    took out of an array is one without axes again.
    """
    if type(value) is known.kind:
        return value
    takes = BY_NAME[known.name].takes
    if isinstance(value, np.generic) and (known.name == "host" or "host" in takes):
        return np.asarray(value)
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise TypeError(f"{name} must be an array of the library of x, {_library(known.kind)}; got {type(value).__name__}")
    try:
        engine = dispatch.name_of(value, name)
    except TypeError:
        if isinstance(value, known.kind):  # a subclass whose meaning would be lost
            raise
        engine = ""
    if engine == known.name and (engine != "standard" or _library(type(value)) == _library(known.kind)):
        return value
    if engine in takes:
        return value
    if engine == "jax" and known.name == "host" and dispatch.load("jax").is_concrete(value):
        return np.asarray(value)
    got = f"{_library(type(value))}.{type(value).__name__}"
    raise TypeError(f"{name} must be an array of the library of x, {_library(known.kind)}; got {got}")


def _library(kind: type) -> str:
    root = kind.__module__.partition(".")[0]
    return "jax" if root == "jaxlib" else root


def _reshape(value: Array, shape: tuple[int, ...]) -> Array:
    from array_api_compat import array_namespace

    return array_namespace(value).reshape(value, shape)
