"""Memory for large results, used again: the first write to fresh memory costs as much as computing what is written.

The allocator gives every block of 32 MiB and more back to the system, which clears each page of the next one. Here the memory
of a large result that nobody holds any more is kept for the next, marked as free (MADV_FREE): the system takes its pages
whenever it needs them, and where it did not, the next result finds them as they were. So what is kept is in nobody's way.

The array does not own its memory (``flags.owndata`` is False, as for every view), so that ``ndarray.resize`` refuses it.
"""

import contextlib
import mmap
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Bytes of a result from which on its memory is kept; smaller blocks are kept by the allocator itself.
LARGE = 1 << 25

# Bytes of free memory that are kept, at most; of several pieces the oldest goes first.
KEPT = 1 << 28

# Whole huge pages.
_PAGE = 1 << 21

_FREE = getattr(mmap, "MADV_FREE", None)
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)

# Free memory, the most recently freed last. A result may die at any time and in any thread, also inside the functions below
# when the garbage collector runs, so that no lock may be held: only single operations of a list, each of them atomic, and a
# piece belongs to whoever took it out. A forked child has copies of its own, of the list and of the memory.
_kept: list[mmap.mmap] = []


class _Memory:
    """Memory of one result, for NumPy by its array interface; kept again when the last array on it is gone."""

    __slots__ = ("__array_interface__", "piece")

    def __init__(self, piece: mmap.mmap) -> None:
        self.piece = piece
        address = np.frombuffer(piece, np.uint8).__array_interface__["data"]
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (len(piece),), "data": address}

    def __del__(self) -> None:
        if _keep is not None:  # at the end of the interpreter the names of this module may be gone before the last result
            _keep(self.piece)


def empty_like(x: Array, dtype: np.dtype[Any]) -> Array:
    """An array as ``numpy.empty_like(x, dtype, subok=False)`` makes it: the same shape, and the same order in memory."""
    size = x.size * dtype.itemsize
    if size >= LARGE and _FREE is not None:
        order = _order(x)
        dense = x.transpose(order)
        memory = _memory(size) if dense.flags.c_contiguous else None  # else x has gaps, or steps backwards
        if memory is not None:
            values = np.asarray(memory)[:size].view(dtype).reshape(dense.shape)
            return values.transpose([*map(order.index, range(x.ndim))])
    return np.empty_like(x, dtype, subok=False)


def _order(x: Array) -> list[int]:
    """The axes of x, the one with the largest steps first; axes of length 1 go where NumPy puts them."""
    axes = list(range(x.ndim))
    if x.flags.c_contiguous:
        return axes
    return axes[::-1] if x.flags.f_contiguous else sorted(axes, key=lambda a: -abs(x.strides[a]))


def _memory(size: int) -> _Memory | None:
    """Memory of at least `size` bytes, or None where the system has none of this kind."""
    size = -(-size // _PAGE) * _PAGE
    for piece in reversed(_kept.copy()):
        if size <= len(piece) <= size + size // 8 and _take(piece):
            return _Memory(piece)
    try:
        piece = mmap.mmap(-1, size, flags=_PRIVATE)
    except (OSError, ValueError, OverflowError):
        return None
    if _HUGE is not None:
        with contextlib.suppress(OSError):  # a system without huge pages keeps memory in small ones
            piece.madvise(_HUGE)
    return _Memory(piece)


def _take(piece: mmap.mmap) -> bool:
    """Take a piece out of those that are kept; False if somebody else has."""
    try:
        _kept.remove(piece)  # compares identities first, and no two pieces are equal
    except ValueError:
        return False
    return True


def _keep(piece: mmap.mmap) -> None:
    """Keep a piece that nobody uses any more, if it may be kept, and let the oldest go."""
    if len(piece) > KEPT or _FREE is None:
        return
    try:
        piece.madvise(_FREE)
    except (OSError, ValueError):
        return
    _kept.append(piece)
    while sum(map(len, _kept.copy())) > KEPT:
        try:
            _kept.pop(0)
        except IndexError:
            return
