"""xarray.DataArray: names instead of positions; the engine of the data does the work, and the labels come back on.

Dimensions name the axes, weight, bias and masks are matched by their dimensions, and coordinates, attributes and the name
stay. Nothing is aligned: coordinates that differ are an error.
"""

from collections.abc import Callable
from typing import Any

from keepnorm.axes import Axes, refuse_order
from keepnorm.gradients import Gradients
from keepnorm.labels import CellLabels, Coordinate
from keepnorm.moments import Moments
from keepnorm.roles import general
from keepnorm.states.fitting import in_order

Array = Any


class Labels:
    """The labels of a DataArray in one call, and the call's words with positions for names.

    Attributes
    ----------
    values : array
        The data without labels.
    words : tuple
        What was said about the axes, as positions.
    """

    def __init__(self, x: Any, build: Callable[..., Axes], words: tuple[Any, ...], sizes: dict[str, Any]) -> None:
        self.x = x
        self.values = x.data
        pattern = build is general and isinstance(words[0], str) and "->" in words[0]
        self.words = words if pattern else tuple(self._position(word) for word in words)
        shape = tuple(x.shape)
        self.axes = build(shape, *self.words, sizes) if build is general else build(shape, *self.words)
        if not pattern:  # names may come in any order: labelled parameters are transposed, others refused below
            n = len(shape)
            self.words = tuple(tuple(sorted(a % n for a in word)) if isinstance(word, tuple) else word for word in self.words)
        self.affine_dims = tuple(x.dims[a] for a in sorted({self.axes.origin[a] for a in self.axes.affine}))

    def _position(self, word: Any) -> Any:
        """A name's position, also inside a tuple; everything else as it is."""
        if isinstance(word, str):
            if word not in self.x.dims:
                raise ValueError(f"{word!r} is no dimension of x; got the dimensions {self.x.dims}")
            return self.x.dims.index(word)
        return tuple(self._position(part) for part in word) if isinstance(word, tuple | list) else word

    def parameter(self, value: Any, name: str) -> Any:
        """A weight or a bias without labels, its dimensions in the order of those of x."""
        if not _is_labelled(value):
            if value is not None and self.axes.written is not None:
                refuse_order(name, self.axes.written)
            return value
        if set(value.dims) != set(self.affine_dims):
            raise ValueError(f"{name} must have the affine dimensions {self.affine_dims}; got {value.dims}")
        self._same_coordinates(value)
        return value.transpose(*self.affine_dims).data

    def mask(self, where: Any, name: str = "where") -> Any:
        """A mask or weights without labels, with a 1 for each dimension that they do not have."""
        if not _is_labelled(where):
            return where
        if not set(where.dims) <= set(self.x.dims):
            raise ValueError(f"{name} must have dimensions of x, {self.x.dims}; got {where.dims}")
        self._same_coordinates(where)
        present = [d for d in self.x.dims if d in where.dims]
        shape = tuple(where.sizes[d] if d in where.dims else 1 for d in self.x.dims)
        return where.transpose(*present).data.reshape(shape)

    def output(self, out: Any) -> Any:
        """The memory to write into."""
        if _is_labelled(out) and out.dims != self.x.dims:
            raise ValueError(f"out must have the dimensions of x, {self.x.dims}; got {out.dims}")
        return out.data if _is_labelled(out) else out

    def state(self, given: Moments | None) -> Moments | None:
        """Moments without labels, their cells in the order of those of x: matched by dimension and label where they have any.

        Raises
        ------
        ValueError
            If they have labels, and x has other ones.
        """
        if not isinstance(given, Moments):
            return given
        given = in_order(given, self._cells(), self.axes.keep, len(self.axes.shape))
        return given.replaced(export=None, labels=None)

    def wrap(self, y: Array, out: Any = None) -> Any:
        """A result of the shape of x with the labels of x."""
        return self.x.copy(data=y) if out is None else out

    def moments(self, seen: Moments) -> Moments:
        """Moments whose mean and variance come out with the kept dimensions and their coordinates."""
        seen.labels = self._cells()
        return seen

    def _cells(self) -> CellLabels:
        """The labels of the kept axes."""
        x, axes = self.x, self.axes
        split = [axes.origin.count(axes.origin[a]) > 1 for a in axes.keep]
        dims = tuple(
            f"{x.dims[axes.origin[a]]}_{a}" if parted else x.dims[axes.origin[a]]
            for a, parted in zip(axes.keep, split, strict=True)
        )
        coords = {
            name: Coordinate(c.dims, c.values if name in dims else c.variable.data, c.attrs)
            for name, c in x.coords.items()
            if set(c.dims) <= set(dims)
        }
        return CellLabels(dims, coords)

    def vjp(self, vjp: Callable[[Array], Gradients], weight: Any, bias: Any) -> Callable[[Any], Gradients]:
        """The same function of and to labelled arrays."""

        def labelled(dy: Any) -> Gradients:
            gradients = vjp(dy.transpose(*self.x.dims).data if _is_labelled(dy) else dy)
            parameters = (
                p.transpose(*self.affine_dims).copy(data=g).transpose(*p.dims) if _is_labelled(p) else g
                for p, g in ((weight, gradients.weight), (bias, gradients.bias))
            )
            return Gradients(self.wrap(gradients.x), *parameters)

        return labelled

    def _same_coordinates(self, other: Any) -> None:
        from xarray import align

        align(self.x, other, join="exact", copy=False)


def _is_labelled(value: Any) -> bool:
    return hasattr(value, "dims") and hasattr(value, "coords")
