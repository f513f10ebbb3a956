"""The cube of the group normalisation paper, for any shape, as SVG: values of one colour share a mean and a variance.

Neighbouring axes with the same role share an edge of the cube, as height and width do in the paper. A fourth and a fifth
edge are rows and columns of cubes. The size of the picture is bounded whatever the shape.
"""

from collections.abc import Iterator, Sequence
from html import escape
from math import prod
from typing import NamedTuple

from keepnorm.axes import Axes

MOST = 4  # values drawn along an edge
CUBES = 3  # cubes drawn in a row or a column
EDGES = 5  # what is beyond is left out, and said
UNIT = 26  # the side of one value, in pixels
LEAN = (0.55, 0.4)  # how far one step in depth goes to the right and up
LETTER, LINE = 6.8, 15  # of the labels, in pixels


class Edge(NamedTuple):
    """Neighbouring axes of one role, drawn as one."""

    axes: tuple[int, ...]
    size: int
    kept: bool
    affine: bool


def edges(axes: Axes) -> list[Edge]:
    """The axes, with neighbours of the same role as one."""
    found: list[Edge] = []
    for a, n in enumerate(axes.shape):
        role = (a in axes.keep, a in axes.affine)
        if found and found[-1][2:] == role:
            last = found.pop()
            found.append(Edge((*last.axes, a), last.size * n, *role))
        else:
            found.append(Edge((a,), n, *role))
    return found


def svg(axes: Axes, names: Sequence[str] = ()) -> str:
    """The picture as text; it takes the colour of the text around it, so it is right on a light and on a dark page.

    Parameters
    ----------
    axes : Axes
        The role of every axis.
    names : sequence of str, optional
        A name for each axis.
    """
    shown = edges(axes)[-EDGES:] or [Edge((), 1, False, False)]
    outer, inner = shown[:-3], shown[-3:]
    counts = [min(e.size, CUBES) for e in outer] + [min(e.size, MOST) for e in inner]
    rows, columns = (1, 1, *counts[: len(outer)])[-2:]
    x, z, y = _directions(inner)
    nx, nz, ny = (1 if e is None else counts[len(outer) + inner.index(e)] for e in (x, z, y))
    labels = {id(e): _label(e, axes, names) for e in shown}
    left = max((len(line) for line in labels[id(y)]), default=0) * LETTER + 10 if y else 8.0
    if x:
        left = max(left, max(map(len, labels[id(x)])) * LETTER / 2 - nx * UNIT / 2 + 4)
    depth = nz * UNIT if z else 0
    wide, tall = nx * UNIT + depth * LEAN[0], ny * UNIT + depth * LEAN[1]
    pitch = (wide + 18, tall + 18)
    top = LINE * (len(outer) + 1.0) if outer else 8.0

    parts: list[str] = []
    for row in range(rows):
        for column in range(columns):
            at = (left + column * pitch[0], top + row * pitch[1] + depth * LEAN[1])
            place = (row, column)[2 - len(outer) :] if outer else ()
            parts += _cube(shown, place, (nx, nz if z else 0, ny), (x, z, y), at)
    width, height = left + columns * pitch[0] - 18, top + rows * pitch[1] - 18
    bottom = height + LINE
    if x:
        parts += _text(labels[id(x)], left + nx * UNIT / 2, bottom, "middle")
        width = max(width, left + nx * UNIT / 2 + max(map(len, labels[id(x)])) * LETTER / 2)
    if y:
        middle = top + depth * LEAN[1] + ny * UNIT / 2 - (len(labels[id(y)]) - 1) * LINE / 2 + 4
        parts += _text(labels[id(y)], left - 8, middle, "end")
    if z:
        start = left + (columns - 1) * pitch[0] + wide + 6
        parts += _text(labels[id(z)], start, height - depth * LEAN[1] / 2, "start")
        width = max(width, start + max(map(len, labels[id(z)])) * LETTER)
    for number, edge in enumerate(outer):
        which = "across" if number == len(outer) - 1 else "down"
        line = f"cubes {which}: " + ", ".join(labels[id(edge)])
        parts += _text([line], 4, LINE + number * LINE, "start")
        width = max(width, 4 + len(line) * LETTER)
    height = bottom + LINE * (len(labels[id(x)]) if x else 0)
    title = f"An array of shape {axes.shape}, kept axes {axes.keep}: values of one colour share a mean"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'style="max-width:{width * 1.25:.0f}px" font-family="sans-serif" font-size="12" fill="currentColor">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def left_out(axes: Axes) -> str:
    """What the picture does not draw, as a sentence; empty if it draws everything."""
    found = edges(axes)
    said = []
    if any(e.size > MOST for e in found[-3:]) or any(e.size > CUBES for e in found[-EDGES:-3]):
        said.append(f"At most {MOST} values of an edge and {CUBES} cubes in a row are drawn.")
    if len(found) > EDGES:
        said.append(f"Axes 0 to {found[-EDGES].axes[0] - 1} are not drawn: it is the same picture at each of their places.")
    return " ".join(said)


def _directions(inner: list[Edge]) -> tuple[Edge | None, Edge | None, Edge | None]:
    """Which edge goes to the right, into the depth, and down: as in the paper for three."""
    if len(inner) == 3:
        return inner[0], inner[1], inner[2]
    return (inner[1], None, inner[0]) if len(inner) == 2 else (inner[0], None, None)


def _label(edge: Edge, axes: Axes, names: Sequence[str]) -> list[str]:
    if not edge.axes:
        return ["one value"]
    if names:
        who = " ".join(names[a] for a in edge.axes)
    else:
        who = ("axis " if len(edge.axes) == 1 else "axes ") + ", ".join(map(str, edge.axes))
    sizes = [axes.shape[a] for a in edge.axes]
    size = " x ".join(map(str, sizes)) if len(sizes) < 4 else str(prod(sizes))
    return [f"{who}: {size}", "kept" if edge.kept else "reduced", *(["weight, bias"] if edge.affine else [])]


def _cube(
    shown: list[Edge],
    place: tuple[int, ...],
    counts: tuple[int, int, int],
    directions: tuple[Edge | None, Edge | None, Edge | None],
    at: tuple[float, float],
) -> Iterator[str]:
    """The three faces that are seen, a quadrangle for each value."""
    nx, nz, ny = counts
    left, top = at
    into = (UNIT * LEAN[0], -UNIT * LEAN[1])

    def colour(i: int, j: int, k: int, light: int) -> str:
        index = dict(zip(map(id, shown), place, strict=False)) | {
            id(e): n for e, n in zip(directions, (i, j, k), strict=True) if e
        }
        cell = 0
        for edge in shown:
            if edge.kept:
                cell = cell * (MOST + 1) + index[id(edge)]
        return f"hsl({(210 + cell * 137.508) % 360:.0f},62%,{light}%)"

    def quad(x: float, y: float, a: tuple[float, float], b: tuple[float, float], fill: str) -> str:
        corners = ((0, 0), a, (a[0] + b[0], a[1] + b[1]), b)
        points = " ".join(f"{left + x + p:.1f},{top + y + q:.1f}" for p, q in corners)
        return f'<polygon points="{points}" fill="{fill}" stroke="#fff" stroke-width="1"/>'

    for i in range(nx):
        for k in range(ny):
            yield quad(i * UNIT, k * UNIT, (UNIT, 0), (0, UNIT), colour(i, 0, k, 52))
    for j in range(nz):
        x, y = j * into[0], j * into[1]
        for i in range(nx):
            yield quad(x + i * UNIT, y, (UNIT, 0), into, colour(i, j, 0, 64))
        for k in range(ny):
            yield quad(x + nx * UNIT, y + k * UNIT, into, (0, UNIT), colour(nx - 1, j, k, 40))


def _text(lines: Sequence[str], x: float, y: float, anchor: str) -> Iterator[str]:
    for n, line in enumerate(lines):
        yield f'<text x="{x:.1f}" y="{y + n * LINE:.1f}" text-anchor="{anchor}">{escape(line)}</text>'
