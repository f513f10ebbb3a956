"""States beside each other: the same cells in the same order, and in the same library."""

from typing import Any, TypeVar

import numpy as np
from array_api_compat import array_namespace, is_dask_array

from keepnorm.labels import CellLabels
from keepnorm.states.reshaping import with_each
from keepnorm.states.state import State
from keepnorm.transfer import like, read, to_numpy

Array = Any
S = TypeVar("S", bound=State)


def fitted(state: S, home: State) -> S:
    """A state with its cells in the order of another one's, where both have labels.

    Raises
    ------
    ValueError
        If their cells are not the same.
    """
    if state.labels is not None and home.labels is not None:
        state = in_order(state, home.labels, home.keep, home.ndim)
    if (home.keep, home.ndim, home.shape) != (state.keep, state.ndim, state.shape):
        raise ValueError(
            f"moments of different cells do not merge; got keep={home.keep} of {home.ndim} axes with shape {home.shape} "
            f"and keep={state.keep} of {state.ndim} axes with shape {state.shape}"
        )
    return state


def in_order(state: S, wanted: CellLabels, keep: tuple[int, ...], ndim: int) -> S:
    """A state with labels, its cells in the order of others; `keep` and `ndim` are where those stand in their data."""
    if state.labels is None:
        return state
    order = state.labels.order(wanted, "moments")
    coords = {name: c for name, c in state.labels.coords.items() if not c.dims or name in wanted.dims}
    there = CellLabels(wanted.dims, coords | {d: wanted.coords[d] for d in wanted.dims if d in wanted.coords})
    changed: S = with_each(state, order.apply).replaced(keep=keep, ndim=ndim, labels=there)
    return changed


def moved(state: S, home: State) -> S:
    """A state in the library and on the device of another one."""
    if type(state.shift) is type(home.shift) and is_numpy(state.shift):
        return state
    if not is_numpy(state.shift) and not is_numpy(home.shift) and read(state.shift) is None:
        array_namespace(state.shift, home.shift)  # what cannot be read must be of one library
    changed: S = with_each(state, lambda part: like(part, home.shift))
    return changed


def on_numpy(state: S) -> S:
    """A state on NumPy, computed at once where it is lazy."""
    changed: S = with_each(computed(state), to_numpy)
    return changed


def computed(state: S) -> S:
    """A state whose arrays hold values: those of dask, in one go."""
    if not is_dask_array(state.shift):
        return state
    import dask

    done: S = dask.compute(state)[0]
    return done


def is_numpy(values: Array) -> bool:
    return isinstance(values, np.ndarray | np.generic)
