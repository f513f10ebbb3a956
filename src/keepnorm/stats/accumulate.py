"""Moments of files of any size: boxes that share a kept cell merge, the others lie side by side."""

from collections.abc import Callable, Iterable

import numpy as np

from keepnorm.accumulator import Accumulator
from keepnorm.axes import Keep, resolve
from keepnorm.moments import Moments
from keepnorm.stats.readers.files import Source


def measure(sources: Iterable[Source], keep: Keep, step: Callable[[], object] = lambda: None) -> Moments:
    """The moments of all sources together.

    Parameters
    ----------
    sources : iterable of Source
        At least one; their kept cells must match.
    keep : int, tuple of int, or pattern
        The axes that survive. Images have the axes (1, height, width, channels).
    step : callable
        Called after each box, for a progress bar.

    Raises
    ------
    ValueError
        If `keep` does not fit a source, the kept cells of two sources differ, or `keep` would hold images apart.
    """
    total: Moments | None = None
    images = 0
    for source in sources:
        images += source.shape is None
        found = _one(source, keep, step)
        if images > 1 and 0 in found.keep:
            raise ValueError(f"keep={keep!r} keeps axis 0, which counts the images, but stats pools them: keep other axes")
        try:
            total = found if total is None else total.merge(found)
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from error
    if total is None:
        raise ValueError("there is nothing to read; got no path")
    return total


def _one(source: Source, keep: Keep, step: Callable[[], object]) -> Moments:
    whole = source.read(()) if source.shape is None else None
    shape = whole.shape if whole is not None else source.shape or ()
    cells: dict[tuple[tuple[int, int], ...], Accumulator] = {}
    try:
        axes = resolve(shape, keep)
        if axes.shape != axes.source:
            raise ValueError(f"keep={keep!r} splits an axis; stats takes patterns without parentheses")
        for box in source.boxes():
            values = source.read(box) if whole is None else whole
            corner = tuple((box[a].start, box[a].stop) if box else (0, shape[a]) for a in axes.keep)
            cells.setdefault(corner, Accumulator(axes.keep)).update(values)
            step()
    except (ValueError, TypeError) as error:
        text = str(error)
        raise type(error)(text if text.startswith(source.name) else f"{source.name}: {text}") from error
    return _side_by_side({corner: cell.moments for corner, cell in cells.items()}, axes.kept_shape)


def _side_by_side(parts: dict[tuple[tuple[int, int], ...], Moments], kept_shape: tuple[int, ...]) -> Moments:
    """One Moments from those of the parts of the kept axes; every cell of a source has the same count."""
    first = next(iter(parts.values()))
    if len(parts) == 1:
        return first
    shift, delta, m2 = (np.empty(kept_shape) for _ in range(3))
    exponent = np.zeros(kept_shape, np.int64)
    for corner, part in parts.items():
        place = tuple(slice(start, stop) for start, stop in corner)
        shift[place], delta[place], m2[place] = part.shift, part.delta, part.m2
        exponent[place] = 0 if part.exponent is None else part.exponent
    return first.replaced(shift=shift, delta=delta, m2=m2, exponent=exponent if exponent.any() else None)
