"""Gaps and packing: which stored values are no data, and which numbers the others stand for (the CF conventions' rules)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keepnorm.stats.readers.source import Array, Piece


def decode(raw: Array, attributes: Mapping[str, Any], nodata: object = "auto") -> Piece:
    """``raw * scale_factor + add_offset`` in float64, and where raw is neither ``_FillValue`` nor ``missing_value``.

    Examples
    --------
    >>> decode(np.array([1, -9, 3]), {"scale_factor": 0.5, "_FillValue": -9})
    (array([ 0.5, -4.5,  1.5]), array([ True, False,  True]))
    """
    if str(attributes.get("_Unsigned", "")).lower() == "true" and raw.dtype.kind == "i":
        raw = raw.view(raw.dtype.str.replace("i", "u"))
    where = None
    if nodata == "auto":
        for name in ("_FillValue", "missing_value"):
            for fill in np.atleast_1d(attributes.get(name, ())):
                if np.dtype(type(fill)).kind in "biufc" or np.asarray(fill).dtype.kind in "biuf":
                    where = valid(raw, float(fill) if raw.dtype.kind == "f" else fill, where)
        low, high = _range(attributes)
        if low is not None:
            inside = raw >= low
            where = inside if where is None else where & inside
        if high is not None:
            inside = raw <= high
            where = inside if where is None else where & inside
    scale, offset = (np.asarray(attributes.get(n, d)).ravel()[0] for n, d in (("scale_factor", 1), ("add_offset", 0)))
    if scale == 1 and offset == 0:
        return raw, where
    return raw * np.float64(scale) + np.float64(offset), where


def valid(values: Array, fill: Any, where: Array | None = None) -> Array:
    """Where values are not `fill`, which may be NaN."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            fill = values.dtype.type(fill)
    found = ~np.isnan(values) if fill != fill else values != fill
    return found if where is None else where & found


def _range(attributes: Mapping[str, Any]) -> tuple[Any, Any]:
    if "valid_range" in attributes:
        both = np.asarray(attributes["valid_range"]).ravel()
        return (both[0], both[1]) if both.size == 2 else (None, None)
    low, high = (np.asarray(attributes[n]).ravel()[0] if n in attributes else None for n in ("valid_min", "valid_max"))
    return low, high
