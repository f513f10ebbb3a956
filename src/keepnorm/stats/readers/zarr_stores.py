"""Zarr, version 2 and 3, here or behind an address; packing and gaps by the CF conventions."""

import os
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from keepnorm.stats.options import Options
from keepnorm.stats.readers.packed import decode
from keepnorm.stats.readers.source import Box, Piece, Source, line, numbers
from keepnorm.stats.readers.table import need

_BAD = (
    KeyError,
    TypeError,
    ValueError,
    OSError,
    RecursionError,
    AttributeError,
    OverflowError,
    MemoryError,
    ZeroDivisionError,
)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a store."""
    return path.is_dir() and (path.suffix == ".zarr" or any((path / f).exists() for f in ("zarr.json", ".zarray", ".zgroup")))


def open_zarr(path: Path | str, member: str, options: Options, _cleanup: ExitStack) -> list[Source]:
    """The array of a store, or one array of its group."""
    zarr = need("zarr", "zarr", path)
    try:
        array = zarr.open(str(path), mode="r")
        if isinstance(array, zarr.Group):
            names = sorted(array.array_keys())
            coordinates = {n for n in names if len(names) > 1 and array[n].ndim == 1 and n in _dims(array, names)}
            names = [n for n in names if n not in coordinates]
            member = member or (names[0] if len(names) == 1 else "")
            if member:
                array = array[member]
    except _BAD as error:
        raise ValueError(f"{path}: not a zarr store: {line(error)}") from error
    if isinstance(array, zarr.Group):
        found = ", ".join(names[:9]) or "(none)"
        raise ValueError(f"{path}: holds the arrays {found}; name one, as in {path}/{(*names, 'x')[0]}")
    name = f"{path}:{member}" if member else str(path)
    numbers(name, array.dtype)
    attributes = dict(array.attrs)
    if "_FillValue" in attributes and isinstance(attributes["_FillValue"], str):
        del attributes["_FillValue"]  # encoded by xarray; it is the fill value of the array then
        attributes["_FillValue"] = array.fill_value
    named = "_ARRAY_DIMENSIONS" in attributes  # xarray writes the mark of gaps as the fill value
    if array.metadata.zarr_format == 2 and named and array.fill_value is not None:
        attributes.setdefault("_FillValue", array.fill_value)
    if any(c < 1 for c in array.chunks):
        raise ValueError(f"{name}: damaged: chunks of {tuple(array.chunks)}")
    grain = tuple(min(c, max(n, 1)) for c, n in zip(getattr(array, "shards", None) or array.chunks, array.shape, strict=True))
    if isinstance(path, Path):
        _stored(array, path / array.path if array.path else path, name, attributes)
    read = partial(_read, array, name, attributes, options.nodata)
    dims = tuple(attributes.get("_ARRAY_DIMENSIONS") or getattr(array.metadata, "dimension_names", None) or ())
    return [Source(name, tuple(array.shape), read, itemsize=max(array.dtype.itemsize, 1), grain=grain, dims=dims)]


def _dims(group: Any, names: list[str]) -> set[str]:
    found: set[str] = set()
    for n in names:
        found |= set(group[n].attrs.get("_ARRAY_DIMENSIONS") or getattr(group[n].metadata, "dimension_names", None) or ())
    return found


def _stored(array: Any, path: Path, name: str, attributes: dict[str, Any]) -> None:
    """Refuse to read emptiness: a few hundred bytes can declare a petabyte.

    Files are counted, since zarr's own count asks for every chunk that could be there.
    """
    if "_FillValue" in attributes or prod(array.shape) < 1 << 34:
        return
    files = sum(len(names) for _, _, names in os.walk(path))
    chunks = prod(-(-n // c) for n, c in zip(array.shape, getattr(array, "shards", None) or array.chunks, strict=True))
    if files * 1000 < chunks:
        raise ValueError(
            f"{name}: declares {prod(array.shape):,} values in {chunks:,} chunks, but the store holds {files:,} files; "
            "missing chunks would count as the fill value"
        )


def _read(array: Any, name: str, attributes: dict[str, Any], nodata: object, box: Box) -> Piece:
    try:
        raw = np.asarray(array[box])
    except (RuntimeError, *_BAD) as error:  # a damaged chunk, as its codec reports it
        raise ValueError(f"{name}: a chunk cannot be read: {line(error)}") from error
    return decode(raw, attributes, nodata)
