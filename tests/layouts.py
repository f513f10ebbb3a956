"""The same values in every arrangement of memory that an array can have."""

import numpy as np


def _stored_as(x, order):
    """The values of x, in memory as if its axes came in `order`."""
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


def _padded(x):
    """A window into a larger array: no axis is contiguous with the next."""
    room = np.zeros([n + 3 for n in x.shape], x.dtype)
    window = room[tuple(slice(1, n + 1) for n in x.shape)]
    window[...] = x
    return window


def _stepped(x):
    """Every second value along every axis of a larger array."""
    room = np.zeros([2 * n for n in x.shape], x.dtype)
    window = room[tuple(slice(0, 2 * n, 2) for n in x.shape)]
    window[...] = x
    return window


def _unaligned_rows(x):
    """Rows of odd pitch: axis 0 has a stride that no power of two divides."""
    room = np.zeros((x.shape[0], *x.shape[1:-1], x.shape[-1] + 1) if x.ndim > 1 else (x.shape[0] + 1,), x.dtype)
    window = room[..., : x.shape[-1]]
    window[...] = x
    return window


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "transposed": lambda x: _stored_as(x, [*range(1, x.ndim), 0]),
    "swapped": lambda x: _stored_as(x, [*range(x.ndim - 2), *range(x.ndim)[: -3 if x.ndim > 1 else None : -1]]),
    "first two swapped": lambda x: _stored_as(x, [1, 0, *range(2, x.ndim)]) if x.ndim > 1 else x.copy(),
    "channels last": lambda x: _stored_as(x, [0, *range(2, x.ndim), 1]) if x.ndim > 1 else x.copy(),
    "negative": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "all negative": lambda x: np.ascontiguousarray(np.flip(x))[tuple(slice(None, None, -1) for _ in x.shape)],
    "padded": _padded,
    "stepped": _stepped,
    "odd rows": _unaligned_rows,
}


def layouts(x):
    """(name, array) for every layout; each array equals x."""
    for name, store in LAYOUTS.items():
        stored = store(x)
        assert stored.shape == x.shape, name
        yield name, stored


def broadcasts(x):
    """(name, array, array of the same values in C order) with one or all strides zero: rows of x that repeat."""
    for axis in range(x.ndim):
        first = np.take(x, [0], axis)
        repeated = np.broadcast_to(first, x.shape)
        yield f"broadcast along {axis}", repeated, np.ascontiguousarray(repeated)
    single = np.broadcast_to(x[(slice(0, 1),) * x.ndim], x.shape)
    yield "broadcast along all", single, np.ascontiguousarray(single)
