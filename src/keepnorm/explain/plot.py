"""Pictures, with matplotlib, which only this file imports and only when something is drawn."""

from math import prod
from typing import Any

import numpy as np

from keepnorm.axes import Axes

MOST = 4  # sizes are drawn up to here: the pattern is what matters
RGB = ("red", "green", "blue")


def figure(**options: Any) -> Any:
    """An empty figure that needs no display.

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
    return Figure(layout="constrained", **options)


def cells(axes: Axes, title: str) -> Any:
    """The array as a grid of values, the first axes down and the last ones across; values of one colour share a mean."""
    sizes = [min(n, MOST) for n in axes.shape]
    across = (len(sizes) + 1) // 2
    down = len(sizes) - across
    kept = [n if a in axes.keep else 1 for a, n in enumerate(sizes)]
    grid = np.broadcast_to(np.arange(prod(kept)).reshape(kept), sizes).reshape(prod(sizes[:down]), prod(sizes[down:]))
    drawing = figure(figsize=(2 + grid.shape[1] * 0.16, 2 + grid.shape[0] * 0.16))
    plane = drawing.subplots()
    # Neighbouring cells get colours far apart: steps of the golden ratio round the colour map.
    plane.imshow(grid * 0.618034 % 1, cmap="turbo", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    plane.set_xticks(np.arange(-0.5, grid.shape[1], 1), labels=[])
    plane.set_yticks(np.arange(-0.5, grid.shape[0], 1), labels=[])
    plane.grid(color="white", linewidth=0.5)
    plane.tick_params(length=0)
    plane.set_xlabel("axes " + ", ".join(map(str, range(down, len(sizes)))))
    plane.set_ylabel("axes " + ", ".join(map(str, range(down))))
    shown = "" if tuple(sizes) == axes.shape else f" (sizes drawn up to {MOST})"
    plane.set_title(f"{title}\n{axes.shape}, keep={axes.keep}: values of one colour share a mean{shown}", fontsize=8)
    return drawing


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
