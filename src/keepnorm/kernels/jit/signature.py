"""What the machine code of a kernel depends on: the dtypes and the ranks of its arrays, and the types of its numbers."""

from typing import Any, TypeAlias

from numpy import dtype, ndarray

Layout: TypeAlias = tuple[tuple[dtype[Any], int] | type, ...]

# The ranks of the arrays that the kernels of a family take, in order; those of rank 1 may come as arrays of any rank.
_FORWARD = (1, 1, 1, 2, 2, 3, 2, 1, 1)
_BACKWARD = (1, 1, 1, 1, 2, 2, 3, 2, 2, 1, 2, 2)
RANKS = {
    "rows": _FORWARD,
    "columns": _FORWARD,
    "rows_elementwise": _FORWARD,
    "columns_elementwise": _FORWARD,
    "masked": _FORWARD[:-2],
    "rows_backward": _BACKWARD,
    "columns_backward": _BACKWARD,
}


def layout_of(family: str, arguments: tuple[Any, ...]) -> Layout:
    """The layout of the arguments that a kernel takes after its range."""
    ranks = iter(RANKS[family])
    return tuple((a.dtype, next(ranks)) if isinstance(a, ndarray) else _kind(a) for a in arguments)


def _kind(value: Any) -> type:
    """Of a number: bool, int or float, whichever comes first."""
    return next(kind for kind in (bool, int, float) if isinstance(value, kind))
