"""What a reader gives: arrays that are read a box at a time, or a stream of pieces; and which boxes there are."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Box = tuple[slice, ...]
Piece = tuple[Array, Array | None]  # values, and where they are valid if not everywhere

BOX_BYTES = 2**25  # small enough for any machine, large enough that a kernel call costs nothing beside it
RUN_BYTES = 2**16  # shorter runs of a file cost more to find than to read
MANY_CELLS = 2**14  # of so many kept cells a merge costs as much as the sums, so that boxes keep the reduced axes whole


@dataclass(frozen=True, slots=True)
class Source:
    """One array of a file, or all pictures or rows of it.

    Attributes
    ----------
    name : str
        What an error calls it.
    shape : tuple of int or None
        None for a stream, whose pieces are found while it is read.
    read : callable
        ``read(box)`` gives values, and where they are valid.
    stream : callable
        The pieces of a stream; each has the same axes, and axis 0 counts items: pictures or rows.
    itemsize : int
        Bytes of a value when it is read.
    order : tuple of int
        The axes, slowest in memory first.
    grain : tuple of int
        The shape of a chunk, which is only read whole.
    dims : tuple of str
        Names of the axes, if the file has them.
    pictures : bool
        Whether the pieces of the stream are pictures, of shape (1, height, width, channels).
    """

    name: str
    shape: tuple[int, ...] | None = None
    read: Callable[[Box], Piece] | None = None
    stream: Callable[[], Iterator[Piece]] | None = None
    itemsize: int = 8
    order: tuple[int, ...] = ()
    grain: tuple[int, ...] = ()
    dims: tuple[str, ...] = ()
    pictures: bool = False


def fits(source: Source, memory: int) -> None:
    """Refuse chunks that are larger than the memory that may be used."""
    size = source.itemsize * prod(source.grain)
    if source.grain and 2 * size > memory:
        raise ValueError(
            f"{source.name}: its chunks of {prod(source.grain):,} values ({size / 1e6:,.0f} MB) can only be read whole, "
            f"which needs --memory {ceil(2 * size / 1e6)}MB; got {memory / 1e6:,.0f} MB"
        )


def boxes(source: Source, keep: Sequence[int], slab: Sequence[slice], most: int, whole_items: bool = False) -> Iterator[Box]:
    """The boxes of the kept cells in `slab`: those of one cell follow each other, in the order of the array."""
    shape = source.shape or ()
    low, high = [0] * len(shape), list(shape)
    for a, part in zip(keep, slab, strict=True):
        low[a], high[a] = part.start, part.stop
    sizes = [max(b - a, 1) for a, b in zip(low, high, strict=True)]
    order = source.order or tuple(range(len(shape)))
    grain = list(source.grain or (1,) * len(shape))
    kept = [a for a in order if a in keep]
    reduced = [a for a in order if a not in keep]
    cut = list(order)
    if whole_items:
        cut = [0]
    elif prod(sizes[a] for a in kept) > MANY_CELLS:
        cut = kept + reduced
        run = source.itemsize
        for a in reversed(order):  # grains of the kept axes make runs that are worth finding
            if a in keep and run < RUN_BYTES:
                grain[a] = max(grain[a], min(sizes[a], ceil(RUN_BYTES / run)))
            run *= min(sizes[a], grain[a]) if a in keep and grain[a] < sizes[a] else sizes[a]
    box = box_shape(sizes, source.itemsize, cut, grain, most)
    steps = [range(a, max(b, a + 1), n) for a, b, n in zip(low, high, box, strict=True)]
    for corner in product(*(steps[a] for a in sorted(keep))):
        at = dict(zip(sorted(keep), corner, strict=True))
        for other in product(*(steps[a] for a in range(len(shape)) if a not in keep)):
            at |= dict(zip((a for a in range(len(shape)) if a not in keep), other, strict=True))
            yield tuple(slice(at[a], min(at[a] + box[a], high[a])) for a in range(len(shape)))


def box_shape(sizes: Sequence[int], itemsize: int, cut: Sequence[int], grain: Sequence[int], most: int) -> tuple[int, ...]:
    """The largest box of whole grains within so many bytes, cut along the first axes of `cut` first.

    Examples
    --------
    >>> box_shape((10, 20, 30), 1, (0, 1, 2), (1, 1, 1), 1500)
    (2, 20, 30)
    """
    box = [max(n, 1) for n in sizes]
    for a in cut:
        rest = itemsize * prod(box) // box[a]
        box[a] = min(box[a], max(most // rest // grain[a], 1) * grain[a])
    return tuple(box)


def line(error: BaseException) -> str:
    """The first line of a message: errors about files are one line."""
    text = str(error).strip()
    return (text or type(error).__name__).splitlines()[0][:300]


def numbers(name: str, dtype: Any) -> None:
    """Refuse what has no moments."""
    if np.dtype(dtype).kind not in "biuf":
        raise TypeError(f"{name}: holds {dtype}, but only real numbers have moments")
