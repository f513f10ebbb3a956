"""dask arrays: lazy in, lazy out. Moments are one tree reduction of the mergeable state; everything else is blockwise.

Chunks go to the engine of what they hold, NumPy or CuPy, each on one thread: dask has the others.
"""

from collections.abc import Callable
from functools import reduce
from math import prod
from operator import add
from typing import Any

from keepnorm.axes import Axes, resolve
from keepnorm.engines import cells, dispatch, standard
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.precision import moments_name, result_name
from keepnorm.request import Request
from keepnorm.subclasses import refuse

Array = Any

_PARTS = {"shift": "float64", "delta": "float64", "m2": "float64", "count": "int64", "exponent": "int64"}


def moments(x: Array, axes: Axes, where: Array | None) -> Moments:
    """Count, mean and variance of each kept cell: every chunk is read once, whatever is asked of the result."""
    return _reduced(x, axes, where, False)


def omitting_moments(x: Array, axes: Axes) -> Moments:
    """The moments of the values that are no NaN."""
    return moments(x, axes, x == x)


def weighted_moments(x: Array, axes: Axes, weights: Array) -> Moments:
    """The moments of values that count as often as their weights say."""
    return _reduced(x, axes, weights, True)


def _reduced(x: Array, axes: Axes, where: Array | None, weighted: bool) -> Moments:
    """The moments of each chunk, merged; `where` is a mask, weights, or None."""
    import dask.array as da
    import numpy as np

    dtype = moments_name(dispatch.dtype_name(x.dtype))
    split = _split(x, axes)
    masks = [] if where is None else [_split(_mask(where, x), axes)]
    ones = tuple(c if a in axes.keep else (1,) * len(c) for a, c in enumerate(split.chunks))
    # The blocks of these two are Moments, not arrays; dask does not look into them.
    nothing = np.empty((0,) * len(ones))
    states = da.map_blocks(_block_moments, split, *masks, keep=axes.keep, weighted=weighted, chunks=ones, meta=nothing)
    if axes.reduce:
        states = da.reduction(
            states,
            _same,
            _merge,
            combine=_merge,
            axis=axes.reduce,
            keepdims=True,
            concatenate=False,
            dtype=nothing.dtype,
            meta=nothing,
        )
    every = tuple(range(len(ones)))
    parts = [
        # The reduced axes have one block each, which arrives in as many lists.
        da.blockwise(_part, axes.keep, states, every, part=part, concatenate=False, meta=np.empty((0,) * len(axes.keep), kind))
        for part, kind in (_PARTS | ({"sum_weights": "float64"} if weighted else {})).items()
    ]
    *state, count, exponent = parts[: len(_PARTS)]
    weights = parts[-1] if weighted else None
    known: dict[str, Any] = {"keep": axes.keep, "ndim": len(axes.shape), "dtype": dtype}
    known |= {"exponent": exponent if dtype == "float64" else None, "sum_weights": weights}
    return Moments(axes.count if where is None else count, *state, **known)


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: None) -> Array:
    """``x * scale + shift``, chunk by chunk."""
    split = _split(x, axes)
    parameters = {"scale": scale, "shift": shift}
    return _blockwise(_block_affine, x, split, axes, {n: (p, axes.affine) for n, p in parameters.items()})


def normalize(x: Array, request: Request, out: None) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias``, chunk by chunk with given moments, or with those of x."""
    axes, weight, bias, eps, center, given, where = request
    given = moments(x, axes, where) if given is None else given
    arrays = {
        "shift": (given.shift, axes.keep),
        "delta": (given.delta, axes.keep),
        "var": (_checked(cells.variance(given), eps if center else 0.0), axes.keep),
        "exponent": (given.exponent, axes.keep),
        "weight": (weight, axes.affine),
        "bias": (bias, axes.affine),
    }
    return _blockwise(_block_normalize, x, _split(x, axes), axes, arrays, eps=eps, center=center)


def normalize_with_moments(x: Array, request: Request) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalise it."""
    seen = moments(x, request.axes, request.where)
    return normalize(x, request._replace(moments=seen), None), seen


def normalize_vjp(
    x: Array, request: Request, add: Callable[[Array], Array] | None = None, weights: Array | None = None
) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and the lazy function from its gradient to those of x, weight and bias."""
    y = normalize(x, request, None)
    where = None if request.where is None else _mask(request.where, x)
    spread = None if weights is None else _mask(weights, x)
    weight, bias = (p if p is None else _as_dask(p) for p in (request.weight, request.bias))
    lazy = request._replace(weight=weight, bias=bias, where=where)

    def vjp(dy: Array) -> Gradients:
        return standard.normalize_vjp(x, lazy, add, spread)[1](_as_dask(dy))

    return y, vjp


def _checked(var: Array, eps: float) -> Array:
    """Variances, NaN where one below 0 leaves nothing above 0: a lazy one cannot be refused."""
    import dask.array as da

    return da.where((var < 0) & ~(var + eps > 0), float("nan"), var)


def _as_dask(values: Any, name: str = "a weight, a bias or dy") -> Array:
    import dask.array as da

    array = da.asarray(values)
    refuse(array._meta, name)
    return array


def _mask(where: Any, x: Array) -> Array:
    """A mask of the shape and with the chunks of x."""
    import dask.array as da

    return da.broadcast_to(_as_dask(where, "where"), x.shape).rechunk(x.chunks)


def _blockwise(
    function: Callable[..., Array],
    x: Array,
    split: Array,
    axes: Axes,
    arrays: dict[str, tuple[Array | None, tuple[int, ...]]],
    **rest: Any,
) -> Array:
    """Call `function` for each chunk of x, with the parts of the other arrays that belong to it."""
    import dask.array as da
    import numpy as np

    present = {name: pair for name, pair in arrays.items() if pair[0] is not None}
    aligned = [_spread(values, split, on) for values, on in present.values()]
    name = result_name(dispatch.dtype_name(x.dtype))
    dtype = x.dtype.newbyteorder("=") if x.dtype.name == name else np.dtype(name)
    meta = split._meta.astype(dtype)
    y = da.map_blocks(
        _block, split, *aligned, function=function, names=tuple(present), keep=axes.keep, affine=axes.affine, meta=meta, **rest
    )
    return _join(y, x, axes)


def _spread(values: Array, x: Array, on: tuple[int, ...]) -> Array:
    """An array that lives on some axes of x, chunked as x is there, with a 1 for every other axis."""
    shape = tuple(n if a in on else 1 for a, n in enumerate(x.shape))
    chunks = tuple(c if a in on else (1,) for a, c in enumerate(x.chunks))
    return _as_dask(values).reshape(shape).rechunk(chunks)


def _block(x: Array, *arrays: Array, function: Any, names: Any, keep: Any, affine: Any, **rest: Any) -> Array:
    axes = resolve(x.shape, keep, affine)
    with _one_thread():
        return function(x, axes, **dict(zip(names, arrays, strict=True)), **rest)


def _block_affine(x: Array, axes: Axes, scale: Array, shift: Array | None = None) -> Array:
    scale, shift = (a if a is None else a.reshape(axes.affine_shape) for a in (scale, shift))
    return dispatch.engine_of(x).affine(x, scale, shift, axes, None)


def _block_normalize(
    x: Array,
    axes: Axes,
    shift: Array,
    delta: Array,
    var: Array,
    exponent: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float,
    center: bool,
) -> Array:
    shift, delta, var, exponent = (a if a is None else a.reshape(axes.kept_shape) for a in (shift, delta, var, exponent))
    given = Moments(None, shift, delta, var, exponent=exponent, keep=axes.keep, ndim=x.ndim)
    weight, bias = (a if a is None else a.reshape(axes.affine_shape) for a in (weight, bias))
    return dispatch.engine_of(x).normalize(x, Request(axes, weight, bias, eps, center, given), None)


def _block_moments(x: Array, where: Array | None = None, *, keep: tuple[int, ...], weighted: bool = False) -> Moments:
    engine, axes = dispatch.engine_of(x), resolve(x.shape, keep)
    with _one_thread():
        found: Moments = engine.weighted_moments(x, axes, where) if weighted else engine.moments(x, axes, where)
    return found


def _one_thread() -> Any:
    from keepnorm.kernels.jit.threads import threads

    return threads(1)


def _same(state: Moments, axis: Any, keepdims: bool) -> Moments:
    return state


def _merge(states: Any, axis: Any, keepdims: bool) -> Moments:
    """Merge what dask hands over as nested lists, always in the order of the chunks."""
    return reduce(add, _flat(states))


def _flat(states: Any) -> list[Moments]:
    return [m for part in states for m in _flat(part)] if isinstance(states, list) else [states]


def _part(states: Any, part: str) -> Array:
    import numpy as np

    (state,) = _flat(states)
    values = getattr(state, part)
    return np.zeros(state.shape, np.int64) if values is None else values


def _split(x: Array, axes: Axes) -> Array:
    """x in `axes.shape`; only an axis that a pattern groups is rechunked, and only if a chunk cuts a group."""
    refuse(x._meta, "x")
    if axes.shape == tuple(x.shape):
        return x
    import dask.array as da

    parts = _parts(axes)
    x = x.rechunk({a: _whole(x.chunks[a], prod(p[1:])) for a, p in enumerate(parts) if len(p) > 1})
    chunks = []
    for c, p in zip(x.chunks, parts, strict=True):
        chunks += [tuple(n // prod(p[1:]) for n in c), *((n,) for n in p[1:])]
    new = [i for i in range(len(axes.shape)) if axes.origin[i] in axes.origin[:i]]
    meta = x._meta.reshape((0,) * len(axes.shape))
    return da.map_blocks(_split_block, x, parts=parts, chunks=tuple(chunks), new_axis=new, meta=meta)


def _join(y: Array, x: Array, axes: Axes) -> Array:
    """y of `axes.shape` in the shape of x."""
    if axes.shape == tuple(x.shape):
        return y
    import dask.array as da

    parts = _parts(axes)
    first = [i for i in range(len(axes.shape)) if axes.origin[i] not in axes.origin[:i]]
    chunks = tuple(tuple(n * prod(p[1:]) for n in y.chunks[i]) for i, p in zip(first, parts, strict=True))
    drop = [i for i in range(len(axes.shape)) if i not in first]
    meta = y._meta.reshape((0,) * len(parts))
    return da.map_blocks(_join_block, y, parts=parts, chunks=chunks, drop_axis=drop, meta=meta)


def _parts(axes: Axes) -> tuple[tuple[int, ...], ...]:
    """For each axis of x, the sizes that it is split into."""
    return tuple(
        tuple(n for n, source in zip(axes.shape, axes.origin, strict=True) if source == a) for a in range(len(axes.source))
    )


def _whole(chunks: tuple[int, ...], group: int) -> tuple[int, ...] | int:
    """Chunks that cut no group: as they are if they don't, else of about the size of the largest."""
    if all(n % group == 0 for n in chunks):
        return chunks
    return group * max(1, max(chunks) // group)


def _split_block(x: Array, parts: Any) -> Array:
    shape: list[int] = []
    for n, p in zip(x.shape, parts, strict=True):
        shape += [n // prod(p[1:]), *p[1:]]
    return x.reshape(shape)


def _join_block(y: Array, parts: Any) -> Array:
    shape, at = [], 0
    for p in parts:
        shape.append(prod(y.shape[at : at + len(p)]))
        at += len(p)
    return y.reshape(shape)
