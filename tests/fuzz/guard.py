"""Memory between two pages that cannot be touched: a kernel that reads or writes beside an array ends the process."""

import ctypes
import mmap

import numpy as np

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # NumPy 1
    from numpy import byte_bounds

POSSIBLE = hasattr(mmap, "MAP_PRIVATE")


def guarded(x, at_end):
    """A copy of x with its strides, whose first or last byte is next to a page that cannot be touched."""
    low, high = byte_bounds(x) if x.size else (0, 0)
    extent, page = high - low, mmap.PAGESIZE
    inside = max(1, -(-extent // page)) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (start, start + page + inside):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    first = page + (inside - extent if at_end else 0)
    if first % x.dtype.alignment:
        first -= first % x.dtype.alignment
    offset = first + (x.__array_interface__["data"][0] - low if x.size else 0)
    copy = np.ndarray(x.shape, x.dtype, memory, offset, x.strides)
    copy[...] = x
    return copy
