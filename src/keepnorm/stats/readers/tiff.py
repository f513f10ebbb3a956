"""TIFF by tifffile: all pages, bands and depths; no-data, scale and offset of GeoTIFF."""

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keepnorm.stats.options import Options
from keepnorm.stats.readers.images import check_pixels
from keepnorm.stats.readers.modes import converted
from keepnorm.stats.readers.packed import valid
from keepnorm.stats.readers.source import Array, Piece, Source, line, numbers
from keepnorm.stats.readers.table import need

_NODATA, _METADATA = 42113, 42112  # GDAL's tags
_ITEM = re.compile(r'<Item name="(SCALE|OFFSET)" sample="(\d+)"[^>]*>([^<]+)</Item>')
# tifffile meets damaged tags with errors of any kind.
_DAMAGED: tuple[type[Exception], ...] = (
    *(ValueError, OSError, RuntimeError, struct.error, zlib.error, IndexError, KeyError, TypeError, EOFError, MemoryError),
    *(AttributeError, AssertionError, OverflowError, ArithmeticError),
)


def open_tiff(path: Path, _member: str, options: Options, _cleanup: ExitStack) -> list[Source]:
    """All pages of a TIFF file."""
    need("tifffile", "tiff", path)
    return [Source(str(path), stream=partial(_pages, path, options), pictures=True)]


def _pages(path: Path, options: Options) -> Iterator[Piece]:
    import tifffile

    name = str(path)
    if options.resize or options.center_crop:
        raise ValueError(f"{name}: --resize and --center-crop take 8-bit pictures, not TIFF")
    try:
        with tifffile.TiffFile(path) as file:
            pages = [p for p in file.pages if not int(getattr(p, "subfiletype", 0) or 0) & 5]  # neither previews nor masks
            if not pages:
                raise ValueError("no page")
            series = file.series[0]
            if len(file.pages) == 1 and series.size > pages[0].size:  # ImageJ and tifffile: one page stands for a stack
                yield from _page(pages[0], series.asarray(), series.axes, name, options)
                return
            for page in pages:
                check_pixels(page.shape[:2] if len(page.shape) > 1 else (page.shape[0], 1), name, options)
                numbers(name, page.dtype)
                if page.size * page.dtype.itemsize > options.bytes // 2:
                    size = page.size * page.dtype.itemsize
                    raise ValueError(f"a page of {size / 1e6:,.0f} MB needs --memory {2 * size // 10**6 + 1}MB")
                yield from _page(page, page.asarray(), page.axes, name, options)
    except _DAMAGED as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: not a TIFF file that can be read: {line(error)}") from error


def _page(page: Any, values: Array, axes: str, name: str, options: Options) -> Iterator[Piece]:
    """Items first, bands last, whatever the order in the file."""
    if "S" in axes:
        values = np.moveaxis(values, axes.index("S"), -1)
        axes = axes.replace("S", "") + "S"
    else:
        values = values[..., None]
    values = values.reshape(-1, *values.shape[-3:])
    if page.photometric == 3 and page.colormap is not None:  # palette
        values = (np.asarray(page.colormap).T >> 8).astype(np.uint8)[values[..., 0]]
    elif page.photometric == 0 and values.dtype.kind in "ub":  # white is zero
        values = ~values if page.bitspersample in (1, 8, 16, 32) else (1 << page.bitspersample) - 1 - values
    elif page.photometric == 5 and options.mode is not None:
        raise ValueError(f"{name}: holds CMYK pixels, which --mode cannot convert: leave it out for 4 bands")
    where: Array | None = None
    if options.nodata == "auto" and _NODATA in page.tags:
        text = str(page.tags[_NODATA].value).strip("\0 ")
        try:
            where = valid(values, float(text) if values.dtype.kind == "f" or "." in text else int(text))
        except (ValueError, OverflowError):
            where = None if text else where
    values = _unpacked(values, page)
    if options.mode is not None:
        values = converted(values, options.mode, name)
        if where is not None:
            where = np.asarray(where.all(-1, keepdims=True))
    for i in range(len(values)):
        one = None if where is None else np.broadcast_to(where[i : i + 1], values[i : i + 1].shape)
        yield values[i : i + 1], one


def _unpacked(values: Array, page: Any) -> Array:
    items = _ITEM.findall(str(page.tags[_METADATA].value)) if _METADATA in page.tags else []
    if not items:
        return values
    scale, offset = np.ones(values.shape[-1]), np.zeros(values.shape[-1])
    for kind, band, number in items:
        if int(band) < values.shape[-1]:
            (scale if kind == "SCALE" else offset)[int(band)] = float(number)
    return values * scale + offset
