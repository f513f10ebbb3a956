"""Very many cells are normalised some after others: a state takes 56 bytes, more than two values and their results."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from keepnorm.axes import Axes
from keepnorm.moments import Moments
from keepnorm.tuning import STATES

Array = np.ndarray[Any, Any]


MOST = STATES


class Piece(NamedTuple):
    """A part of one kept axis."""

    axes: Axes
    axis: int
    part: slice

    def of(self, x: Array) -> Array:
        """The piece of an array of the shape of x."""
        return x[(slice(None),) * self.axis + (self.part,)]

    def parameter(self, values: Array | None, axes: Axes) -> Array | None:
        """The piece of a weight or a bias for the whole."""
        return values if values is None else _on(values.reshape(axes.affine_shape), axes.affine, self)

    def state(self, given: Moments | None) -> Moments | None:
        """The piece of given moments of the whole."""
        if given is None:
            return None
        rows = ("count", "shift", "delta", "m2", "exponent")
        parts = {name: getattr(given, name) for name in rows}
        return given.replaced(
            **{name: _on(p, given.keep, self) if hasattr(p, "shape") else p for name, p in parts.items()}, export=None
        )


def _on(values: Array, axes: tuple[int, ...], piece: Piece) -> Array:
    """The piece of an array that lives on some of the axes."""
    return values[tuple(piece.part if a == piece.axis else slice(None) for a in axes)]


def pieces(axes: Axes) -> Iterator[Piece]:
    """The pieces of an array with too many cells; none where its states are held at once, or where a pattern groups axes.

    Every cell is in one piece, and no bit of a result up to float32 depends on which.
    """
    cells = prod(axes.kept_shape)
    if cells <= MOST or axes.shape != axes.source:
        return
    axis = max(axes.keep, key=lambda a: axes.shape[a])
    size = axes.shape[axis]
    step = max(1, MOST * size // cells)
    for start in range(0, size, step):
        part = slice(start, min(start + step, size))
        shape = (*axes.shape[:axis], part.stop - part.start, *axes.shape[axis + 1 :])
        yield Piece(replace(axes, source=shape, shape=shape), axis, part)
