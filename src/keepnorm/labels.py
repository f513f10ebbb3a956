"""Names and coordinates of the kept axes, which the moments of an xarray.DataArray carry.

Cells that have them belong together by the name of their dimension and by their label, wherever they stand.
"""

import json
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

Array = Any

# Kinds of coordinates that a saved state holds; dates and durations as whole numbers.
_SAVED = "biufUmM"


class Coordinate(NamedTuple):
    """One coordinate: what xarray calls a variable."""

    dims: tuple[Hashable, ...]
    values: Array
    attrs: Mapping[Any, Any] = {}


class Order(NamedTuple):
    """How cells come into the order of other labels: the axes, and for each of them the positions to take, None for all."""

    axes: tuple[int, ...]
    positions: tuple[Array | None, ...]

    def apply(self, values: Array) -> Array:
        """An array of one value for each cell, in that order."""
        values = array_namespace(values).permute_dims(values, self.axes)
        for axis, at in enumerate(self.positions):
            if at is not None:
                values = values[(slice(None),) * axis + (at,)]
        return values


class CellLabels(NamedTuple):
    """The labels of the kept axes.

    Attributes
    ----------
    dims : tuple
        The name of each kept axis.
    coords : mapping
        Coordinates on these dimensions, by name; the labels of a dimension are the coordinate of its name.
    """

    dims: tuple[Hashable, ...]
    coords: Mapping[Hashable, Coordinate]

    def order(self, wanted: "CellLabels", what: str) -> Order:
        """How cells with these labels come into the order of others.

        Raises
        ------
        ValueError
            If they have other dimensions or labels.
        """
        if set(self.dims) != set(wanted.dims):
            raise ValueError(f"{what} of the dimensions {self.dims} do not go with the dimensions {wanted.dims}")
        axes = tuple(map(self.dims.index, wanted.dims))
        return Order(axes, tuple(self._positions(dim, wanted, what) for dim in wanted.dims))

    def _positions(self, dim: Hashable, wanted: "CellLabels", what: str) -> Array | None:
        if dim not in self.coords or dim not in wanted.coords:
            return None
        have, want = self.coords[dim].values, wanted.coords[dim].values
        if have.dtype.kind == want.dtype.kind == "M":
            have = have.astype(want.dtype)
        if np.array_equal(have, want):
            return None
        have, want = have.tolist(), want.tolist()
        place = {label: i for i, label in enumerate(have)}
        if len(place) == len(have) == len(want) and place.keys() == set(want):
            return np.array([place[label] for label in want])
        raise ValueError(
            f"{what} have other labels on dimension {dim!r}: {_shown(have, want)} there, but {_shown(want, have)} is needed"
        )

    def with_those_of(self, other: "CellLabels | None") -> "CellLabels":
        """The labels of two merged states: of numbers that hold for all cells, only those that are the same."""
        if other is None:
            return self
        coords = {name: c for name, c in other.coords.items() if name in self.dims}
        for name, c in self.coords.items():
            twin = other.coords.get(name)
            if c.dims or twin is None or np.array_equal(c.values, twin.values):
                coords[name] = c
        return self._replace(coords=coords)

    def attach(self, values: Array) -> Any:
        """An array of one value for each cell as a DataArray; as it is where xarray is not installed."""
        try:
            from xarray import DataArray
        except ModuleNotFoundError:
            return values
        return DataArray(values, dims=self.dims, coords=dict(self.coords))

    def dumps(self) -> str:
        """The labels as text: dimensions, and the coordinates of numbers, words, dates and durations."""
        coords = {
            str(name): [list(c.dims), c.values.dtype.str, _plain(c.values), _attributes(c.attrs)]
            for name, c in self.coords.items()
            if isinstance(c.values, np.ndarray) and (c.values.dtype.kind in _SAVED or _holds_words(c.values))
        }
        return json.dumps({"dims": [str(dim) for dim in self.dims], "coords": coords})


def loads(text: Any, shape: tuple[int, ...]) -> CellLabels:
    """What `CellLabels.dumps` wrote.

    Raises
    ------
    ValueError
        If it is something else, or of cells of another shape.
    """
    try:
        found = json.loads(text)
        dims = tuple(found["dims"])
        coords = {name: Coordinate(tuple(c[0]), _array(c[1], c[2]), dict(c[3])) for name, c in found["coords"].items()}
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"labels must be what to_dict wrote; got a text that cannot be read: {error}") from None
    sizes = dict(zip(dims, shape, strict=False))
    fits = len(sizes) == len(dims) == len(shape)
    if not fits or any(c.values.shape != tuple(map(sizes.get, c.dims)) for c in coords.values()):
        raise ValueError(f"labels must be of cells of shape {shape}; got the dimensions {dims} with {list(coords)}")
    return CellLabels(dims, coords)


def _plain(values: Array) -> Any:
    return (values.astype(np.int64) if values.dtype.kind in "mM" else values).tolist()


def _array(dtype: str, values: Any) -> Array:
    kind = np.dtype(dtype)
    if kind.kind not in _SAVED + "O":
        raise ValueError(f"no coordinate is of {dtype}")
    array = np.array(values, np.int64 if kind.kind in "mM" else kind).astype(kind)
    if kind.kind == "O" and not _holds_words(array):
        raise ValueError("a coordinate of objects holds words")
    return array


def _holds_words(values: Array) -> bool:
    return values.dtype.kind == "O" and all(isinstance(label, str) for label in values.ravel().tolist())


def _attributes(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in attrs.items() if isinstance(value, str | int | float)}


def _shown(these: list[Any], others: list[Any]) -> str:
    """A few of the labels that others lack, or of all if it is not that."""
    few = [label for label in these if label not in others] or these
    return ", ".join(map(str, few[:4])) + (", ..." if len(few) > 4 else "")
