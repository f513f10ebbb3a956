"""Pictures, with matplotlib, which only this file imports and only when something is drawn."""

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from math import prod
from textwrap import fill
from typing import Any

import numpy as np

from keepnorm.axes import Axes

MOST = 4  # sizes are drawn up to here: the pattern is what matters
SIDE = 64  # values along a side of the grid, at most
LINE = 100  # characters of a line of a title
RGB = ("red", "green", "blue")


def figure(**options: Any) -> Any:
    """An empty figure that needs no display; a notebook shows it.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'drawing needs matplotlib; install it with: python -m pip install "keepnorm[plot]"'
        ) from error
    drawing: Any = Figure(layout="constrained", **options)
    drawing._repr_png_ = partial(_png, drawing)  # what a notebook asks for; only pyplot's figures have it otherwise
    return drawing


def cells(axes: Axes, title: str) -> Any:
    """The array as a grid of values, the first axes down and the last ones across; values of one colour share a mean."""
    ndim = len(axes.shape)
    down = ndim // 2
    sizes = [*_drawn(axes.shape[:down]), *_drawn(axes.shape[down:])]
    rows, columns = prod(sizes[:down]), prod(sizes[down:])
    kept = [n if a in axes.keep else 1 for a, n in enumerate(sizes)]
    several = [a for a, n in enumerate(sizes) if n != 1]  # NumPy has at most 64 axes
    numbers = np.arange(prod(kept)).reshape([kept[a] for a in several])
    grid = np.broadcast_to(numbers, [sizes[a] for a in several]).reshape(rows, columns)
    shown = "" if tuple(sizes) == axes.shape else "\n(sizes drawn: " + ", ".join(map(str, sizes)) + ")"
    said = [title, f"{axes.shape}, keep={axes.keep}", f"values of one colour share a mean{shown}"]
    lines = "\n".join(fill(line, LINE) for line in "\n".join(said).split("\n")).split("\n")
    wide = max(2 + columns * 0.16, 0.5 + max(map(len, lines)) * 0.07)
    drawing = figure(figsize=(wide, 2 + rows * 0.16 + len(lines) * 0.14))
    plane = drawing.subplots()
    # Neighbouring cells get colours far apart: steps of the golden ratio round the colour map.
    plane.imshow(grid * 0.618034 % 1, cmap="turbo", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    plane.set_xticks(np.arange(-0.5, columns, 1), labels=[])
    plane.set_yticks(np.arange(-0.5, rows, 1), labels=[])
    plane.grid(color="white", linewidth=0.5)
    plane.tick_params(length=0)
    plane.set_xlabel(_called(range(down, ndim)))
    plane.set_ylabel(_called(range(down)))
    drawing.suptitle("\n".join(lines), fontsize=8)
    return drawing


def _drawn(shape: Sequence[int]) -> list[int]:
    """How much of each axis is drawn: at most `MOST` of one and `SIDE` of all together."""
    sizes = [min(n, MOST) for n in shape]
    while prod(sizes) > SIDE:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes


def _called(numbers: range) -> str:
    if not numbers:
        return ""
    return f"axis {numbers[0]}" if len(numbers) == 1 else f"axes {numbers[0]} to {numbers[-1]}"


def _png(drawing: Any) -> bytes:
    file = BytesIO()
    drawing.savefig(file, format="png")
    return file.getvalue()


def before_after(photos: Any, normalized: Any) -> Any:
    """Photographs before and after, and what became of each channel's histogram.

    Parameters
    ----------
    photos : array of shape (n, height, width, 3)
        Values 0 to 255.
    normalized : array of the same shape
        Mean 0 and variance 1 in each channel of the whole.
    """
    n = len(photos)
    drawing = figure(figsize=(4 * (n + 1), 6))
    planes = drawing.subplots(2, n + 1)
    for i in range(n):
        planes[0, i].imshow(photos[i].astype(np.uint8))
        planes[0, i].set_title(f"photograph {i + 1}, before")
        # Two standard deviations to each side of 0 are what a picture can show.
        planes[1, i].imshow(np.clip(normalized[i] / 4 + 0.5, 0, 1))
        planes[1, i].set_title("after (black -2, white +2)")
        for row in planes[:, i]:
            row.set_axis_off()
    for row, values, bins, title in (
        (planes[0, n], photos, np.linspace(0, 256, 65), "each channel, before"),
        (planes[1, n], normalized, np.linspace(-3, 3, 65), "after: mean 0, variance 1"),
    ):
        for c, colour in enumerate(RGB):
            row.hist(values[..., c].ravel(), bins=bins, histtype="step", color=colour, label=colour)
        row.set_yticks([])
        row.set_title(title)
    planes[0, n].legend(frameon=False)
    return drawing
