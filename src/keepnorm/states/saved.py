"""Saved states: written to files, and read back from what numpy, json, msgpack and zarr make of numbers, words and lists."""

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from math import isfinite, prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from keepnorm.atomic import written
from keepnorm.keywords import described

Array = np.ndarray[Any, Any]
R = TypeVar("R")

# The version of the files that `write` makes; a file without one is of the first.
VERSION = 1

# What stands for a float that JSON has not.
_WORDS = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


def write(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state to .npz or .json; what was there stays until it is whole."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".npz", ".json"):
        raise ValueError(f"path must end in .npz or .json; got {os.fspath(path)!r}")
    state = {"version": VERSION} | dict(state)
    with written(path) as beside:
        if suffix == ".npz":
            with beside.open("wb") as file:
                arrays: dict[str, Any] = {name: np.asarray(value) for name, value in state.items() if value is not None}
                np.savez(file, **arrays)
        else:
            beside.write_text(json.dumps(_spelled(state), allow_nan=False) + "\n")


def load(path: str | os.PathLike[str], made: Callable[[Mapping[str, Any]], R]) -> R:
    """What `made` makes of the state in a file.

    Raises
    ------
    ValueError
        If the file holds something else, or is of a later version.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".npz", ".json"):
        raise ValueError(f"path must end in .npz or .json; got {os.fspath(path)!r}")
    try:
        if suffix == ".npz":
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                state: dict[str, Any] = dict(arrays)
        else:
            state = _read_words(json.loads(Path(path).read_text()))
        version = integer(state.pop("version", 1), "version")
        if version > VERSION:
            raise ValueError(f"it is of version {version}, and this release reads up to {VERSION}")
        state.setdefault("count", None)
        state.setdefault("shape", list(np.shape(state["shift"])))
        return made(state)
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a file of moments: {error}") from error


def _spelled(value: Any) -> Any:
    """A state as JSON takes it: floats that it has not as words."""
    if isinstance(value, dict):
        return {name: _spelled(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_spelled(part) for part in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def _read_words(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state that `_spelled` spelled; null is NaN or an infinity that an answer of `keepnorm stats` did not spell."""

    def back(value: Any) -> Any:
        if isinstance(value, list):
            return [back(part) for part in value]
        return _WORDS.get(value, value) if isinstance(value, str) else float("nan") if value is None else value

    return {name: back(value) if name in ("shift", "delta", "m2", "sum_weights") else value for name, value in state.items()}


def entries(state: Mapping[Any, Any], needed: set[str], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a state says, by name; keys may be bytes, as some readers of msgpack hand them out.

    Raises
    ------
    TypeError
        If it is no mapping.
    ValueError
        If something needed is missing.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"a saved state must be a mapping, such as to_dict() gives; got {described(state)}")
    keys = {key.decode() if isinstance(key, bytes) else key: key for key in state}
    if missing := needed - set(keys):
        raise ValueError(f"state lacks {sorted(missing)}; got the keys {sorted(map(str, keys))}")
    return {name: state[keys[name]] for name in (*needed, *optional) if name in keys}


def plain(value: Any) -> Any:
    """A number, a word or None, which may be in an array without axes."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    return value.decode() if isinstance(value, bytes) else value


def integer(value: Any, name: str) -> int:
    """A whole number of at least 0."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be a whole number; got {described(value)}")
    if number < 0:
        raise ValueError(f"{name} must be at least 0; got {number}")
    return number


def integers(value: Any, name: str) -> tuple[int, ...]:
    """A list of whole numbers of at least 0."""
    if not isinstance(value, list | tuple | np.ndarray) or np.ndim(value) != 1:
        raise TypeError(f"{name} must be a list of whole numbers; got {described(value)}")
    return tuple(integer(item, name) for item in value)


def axes(value: Any, name: str, ndim: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Kept axes of data with `ndim` axes: ascending, one for each size of a kept shape."""
    found = integers(value, name)
    if len(found) != len(shape) or list(found) != sorted({a for a in found if a < ndim}):
        raise ValueError(f"{name} must be ascending axes below ndim={ndim}, one for each size of {shape}; got {found}")
    return found


def word(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """One of some words."""
    found = plain(value)
    if not isinstance(found, str) or found not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {described(value)}")
    return found


def numbers(value: Any, name: str, shape: tuple[int, ...]) -> Array:
    """An array of real numbers of a shape, in float64 and in memory of its own."""
    return np.array(_array(value, name, shape, "fiu"), np.float64).reshape(shape)


def count(value: Any, name: str, shape: tuple[int, ...]) -> int | Array | None:
    """A whole number of at least 0, or one for each cell, or None."""
    number = plain(value)
    if number is None:
        return None
    if isinstance(number, bool | int | float | str):
        return integer(number, name)
    counts = _array(value, name, shape, "iu")
    if counts.size and not 0 <= counts.min() <= counts.max() <= np.iinfo(np.int64).max:
        raise ValueError(f"{name} must be between 0 and 2^63 - 1 in every cell; got {counts.min()} to {counts.max()}")
    return np.array(counts, np.int64).reshape(shape)


def whole(value: Any, name: str, shape: tuple[int, ...]) -> Array:
    """A whole number for each cell, of either sign."""
    return np.array(_array(value, name, shape, "i"), np.int64).reshape(shape)


def _array(value: Any, name: str, shape: tuple[int, ...], kinds: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise ValueError(f"{name} must have shape {shape}; got lists of different lengths") from None
    if array.size and array.dtype.kind not in kinds:
        kind = "whole numbers" if kinds == "iu" else "numbers"
        raise TypeError(f"{name} must hold {kind}; got {described(value)} of {array.dtype}")
    # A list cannot say how long the axes behind an empty one are.
    if array.shape != shape and not array.size == 0 == prod(shape):
        raise ValueError(f"{name} must have shape {shape}; got {array.shape}")
    return array
