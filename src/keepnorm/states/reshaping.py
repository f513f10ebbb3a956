"""A state in another form: for other axes, other units or another array, and as what dask computes.

A state here is anything with the parts of :class:`keepnorm.moments.Moments`.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from array_api_compat import array_namespace, is_dask_array

from keepnorm.axes import as_ints, normal, out_of_order
from keepnorm.keywords import described
from keepnorm.states.merging import real
from keepnorm.subclasses import refuse
from keepnorm.transfer import like

Array = Any
State = Any


# The arrays of a state; the count may be a number.
PARTS = ("count", "shift", "delta", "m2", "exponent", "sum_weights")


class Broadcast(NamedTuple):
    """Mean, variance and standard deviation with a 1 for each reduced axis."""

    mean: Array
    var: Array
    std: Array


def with_each(state: State, change: Callable[[Array], Array]) -> State:
    """A state with every array of it changed."""
    parts = {name: getattr(state, name) for name in PARTS}
    return state.replaced(**{n: part if part is None or isinstance(part, int) else change(part) for n, part in parts.items()})


def broadcast(state: State, x: Any) -> Broadcast:
    """Mean, variance and deviation in the shape that x needs."""
    sizes: Any = None
    if isinstance(x, int) and not isinstance(x, bool):
        ndim = x
    elif hasattr(x, "shape"):
        sizes = tuple(x.shape)
        ndim = len(sizes)
    else:
        raise TypeError(f"broadcast takes the data, or how many axes they have; got {described(x)}")
    if ndim != state.ndim:
        raise ValueError(f"moments of data with {state.ndim} axes do not go with {ndim} axes: moved(keep, ndim) says where")
    if sizes is not None and tuple(sizes[a] for a in state.keep) != state.shape:
        raise ValueError(f"moments of keep={state.keep} with shape {state.shape} do not fit x with shape {sizes}")
    shape = [1] * ndim
    for axis, size in zip(state.keep, state.shape, strict=True):
        shape[axis] = size
    plain = state.replaced(labels=None)
    parts = (plain.mean, plain.var, plain.std)
    return Broadcast(*(array_namespace(part).reshape(part, tuple(shape)) for part in parts))


def moved(state: State, keep: int | Sequence[int], ndim: int) -> State:
    """The same cells, whose axes lie elsewhere."""
    axes = as_ints(keep, "keep")
    if isinstance(ndim, bool) or not isinstance(ndim, int) or ndim < len(axes):
        raise ValueError(f"ndim must be how many axes the data have, at least {len(axes)}; got {described(ndim)}")
    ascending = normal(axes, ndim, "keep", (-1,) * ndim)
    if len(axes) != len(state.keep):
        raise ValueError(f"keep must say where each of the {len(state.keep)} kept axes lies; got {described(keep)}")
    if out_of_order(axes, ndim) is None:
        return state.replaced(keep=ascending, ndim=ndim)
    positive = [a % ndim for a in axes]
    order = tuple(positive.index(a) for a in ascending)
    labels = state.labels and state.labels._replace(dims=tuple(state.labels.dims[i] for i in order))
    turned = with_each(state, lambda part: array_namespace(part).permute_dims(part, order))
    return turned.replaced(keep=ascending, ndim=ndim, labels=labels)


def scaled(state: State, a: Any, b: Any) -> State:
    """The moments of a * x + b."""
    xp = array_namespace(state.m2)
    factors = []
    for name, value in (("a", a), ("b", b)):
        refuse(value, name)
        if isinstance(value, bool) or not (isinstance(value, int | float) or hasattr(value, "dtype")):
            raise TypeError(f"{name} must be a number or an array of the kept shape; got {described(value)}")
        if getattr(value, "shape", ()) not in ((), state.shape):
            raise ValueError(f"{name} must be one number or have shape {state.shape}; got {tuple(value.shape)}")
        factors.append(xp.astype(like(value, state.m2), state.m2.dtype) if getattr(value, "shape", ()) else float(value))
    a, b = factors
    squares = a * a * state.m2
    # What rounding leaves out of the new shift stays in delta.
    product = a * state.shift
    shift = product + b
    rest = (product - (shift - (shift - product))) + (b - (shift - product))
    return state.replaced(shift=shift, delta=a * state.delta + rest, m2=squares)


def pool(state: State, keep: int | Sequence[int]) -> State:
    """The moments of fewer cells, each of all those that differ in the axes that are not kept any more."""
    axes = normal(as_ints(keep, "keep"), state.ndim, "keep", (-1,) * state.ndim)
    if not set(axes) <= set(state.keep):
        raise ValueError(f"keep must be some of the kept axes {state.keep}; got {described(keep)}")
    if state.count is None:
        raise ValueError("moments without a count do not pool: give from_mean_var a count; got count=None")
    over = tuple(i for i, axis in enumerate(state.keep) if axis not in axes)
    if not over:
        return state
    xp = array_namespace(state.m2)
    exponent = None
    if state.exponent is not None:
        exponent = xp.max(state.exponent, axis=over, keepdims=True)
        state = state.at(exponent + xp.zeros_like(state.exponent))
    n = xp.zeros_like(state.m2) + real(state.divisor, state.m2, xp)
    some = n > 0
    none = xp.zeros_like(n)

    def total(values: Array) -> Array:
        return xp.sum(xp.where(some, values, none), axis=over, keepdims=True)

    whole = xp.sum(n, axis=over, keepdims=True)
    divisor = xp.where(whole > 0, whole, xp.ones_like(whole))
    shift = total(n * state.shift) / divisor
    away = (state.shift - shift) + state.delta
    delta = total(n * away) / divisor
    off = away - delta
    finite = xp.isfinite(delta)
    between = xp.where(finite, total(n * xp.where(xp.isfinite(off), off * off, none)), xp.full_like(delta, xp.nan))
    m2 = total(state.m2) + between
    count = state.count
    count = count * prod(state.shape[i] for i in over) if isinstance(count, int) else xp.sum(count, axis=over)
    weights = None if state.sum_weights is None else xp.sum(state.sum_weights, axis=over)
    flat = tuple(size for i, size in enumerate(state.shape) if i not in over)
    shift, delta, m2 = (xp.reshape(part, flat) for part in (shift, delta, m2))
    labels = None
    if state.labels is not None:
        dims = tuple(dim for i, dim in enumerate(state.labels.dims) if i not in over)
        coords = {name: c for name, c in state.labels.coords.items() if set(c.dims) <= set(dims)}
        labels = state.labels._replace(dims=dims, coords=coords)
    pooled = state.replaced(
        count=count, shift=shift, delta=delta, m2=m2, exponent=None, keep=axes, labels=labels, sum_weights=weights
    )
    return pooled if exponent is None else pooled.back(xp.reshape(exponent, flat))


def lazy(state: State, parts: Sequence[str]) -> list[tuple[str, Array]]:
    """The parts of a state that dask has still to compute."""
    return [(name, getattr(state, name)) for name in parts if is_dask_array(getattr(state, name))]


def dask_graph(state: State, parts: Sequence[str]) -> Any:
    """The graphs of all parts in one; None where nothing is lazy."""
    collections = [part for _, part in lazy(state, parts)]
    if not collections:
        return None
    from dask.highlevelgraph import HighLevelGraph

    return HighLevelGraph.merge(*(part.__dask_graph__() for part in collections))


def finished(results: Sequence[Any], state: State, parts: Sequence[str]) -> State:
    """The state that dask has computed, from the blocks of each lazy part."""
    done = {}
    for (name, part), blocks in zip(lazy(state, parts), results, strict=True):
        finalize, arguments = part.__dask_postcompute__()
        done[name] = finalize(blocks, *arguments)
    return state.replaced(**done)


def persisted(graph: Any, state: State, parts: Sequence[str], rename: Any = None) -> State:
    """The state whose parts dask holds in memory."""
    held = {}
    for name, part in lazy(state, parts):
        rebuild, arguments = part.__dask_postpersist__()
        held[name] = rebuild(graph, *arguments) if rename is None else rebuild(graph, *arguments, rename=rename)
    return state.replaced(**held)
