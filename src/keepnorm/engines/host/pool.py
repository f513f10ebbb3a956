"""Memory for large results, used again: the first write to fresh memory costs as much as computing what is written.

The allocator gives every block of 32 MiB and more back to the system, and smaller ones where they end its heap; the system
clears each page of the next one. Here the memory of a large result that nobody holds any more is kept for the next. The last
WARM bytes stay as they are, as the allocator's would; what is older is marked as free (MADV_FREE): the system takes its pages
whenever it needs them, and where it did not, the next result finds them as they were. So what is kept is in nobody's way.

The array does not own its memory (``flags.owndata`` is False, as for every view), so that ``ndarray.resize`` refuses it.
"""

import contextlib
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

from keepnorm.machine import memory_bytes
from keepnorm.tuning import POOL_FREE as KEPT
from keepnorm.tuning import POOL_SHARE, POOL_WARM
from keepnorm.tuning import POOLED as LARGE

Array = np.ndarray[Any, Any]

# Bytes that are kept as they are, less where memory is scarce; of several pieces the oldest goes first.
WARM = min(POOL_WARM, memory_bytes() // POOL_SHARE)

# Whole huge pages.
_PAGE = 1 << 21

_FREE = getattr(mmap, "MADV_FREE", None)
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)

# Memory that is kept as it is, and memory marked as free, the most recent last. A result may die at any time and in any
# thread, also inside the functions below when the garbage collector runs, so that no lock may be held: only single operations
# of a list, each of them atomic, and a piece belongs to whoever took it out. A forked child has copies of its own, of the
# lists and of the memory.
_warm: list[mmap.mmap] = []
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
    for pieces in (_warm, _kept):
        for piece in reversed(pieces.copy()):
            if size <= len(piece) <= size + size // 8 and _take(piece, pieces):
                return _Memory(piece)
    try:
        piece = mmap.mmap(-1, size, flags=_PRIVATE)
    except (OSError, ValueError, OverflowError):
        return None
    if _HUGE is not None:
        with contextlib.suppress(OSError):  # a system without huge pages keeps memory in small ones
            piece.madvise(_HUGE)
    return _Memory(piece)


def _take(piece: mmap.mmap, pieces: list[mmap.mmap]) -> bool:
    """Take a piece out of a list; False if somebody else has."""
    try:
        pieces.remove(piece)  # compares identities first, and no two pieces are equal
    except ValueError:
        return False
    return True


def _keep(piece: mmap.mmap) -> None:
    """Keep a piece that nobody uses any more, if it may be kept, and mark what has been kept for longest as free."""
    if len(piece) > KEPT or _FREE is None:
        return
    _warm.append(piece)
    for oldest in _beyond(WARM, _warm):
        try:
            oldest.madvise(_FREE)
        except (OSError, ValueError):
            continue
        _kept.append(oldest)
    for _ in _beyond(KEPT, _kept):
        pass  # nobody has it any more: its memory is the system's


def _beyond(size: int, pieces: list[mmap.mmap]) -> Iterator[mmap.mmap]:
    """Take the oldest pieces out of a list, until the rest has `size` bytes at most."""
    while sum(map(len, pieces.copy())) > size:
        try:
            yield pieces.pop(0)
        except IndexError:
            return
