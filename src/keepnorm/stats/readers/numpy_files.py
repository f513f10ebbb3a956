""".npy and .npz: the header is checked against the file before anything else, and values are read, never mapped.

A mapped file that is cut while it is read ends the process with a bus error; a read tells.
"""

import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from keepnorm.stats.options import Options
from keepnorm.stats.readers.source import Array, Box, Piece, Source, line, numbers

_MAGIC = b"\x93NUMPY"
_HEADER = (
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    EOFError,
    RecursionError,
    OverflowError,
    tokenize.TokenError,
    MemoryError,
)
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError, OSError)


def open_npy(path: Path, _member: str, _options: Options, cleanup: ExitStack) -> list[Source]:
    """The array of a .npy file."""
    return [_source(cleanup.enter_context(path.open("rb")), str(path))]


def open_npz(path: Path, member: str, _options: Options, cleanup: ExitStack) -> list[Source]:
    """One array of a .npz file, unpacked into a file that has no name, so that nothing is left of it."""
    import lzma

    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
            if not member and len(names) == 1:
                member = names[0]
            if member not in names:
                found = ", ".join(names[:9]) or "(none)"
                raise ValueError(f"{path}: holds the arrays {found}; name one, as in {path}:{(*names, 'x')[0]}")
            plain = cleanup.enter_context(TemporaryFile(prefix="keepnorm-"))  # noqa: SIM115
            with archive.open(f"{member}.npy") as packed:
                _unpack(packed, plain, f"{path}:{member}")
    except (*_DAMAGED, lzma.LZMAError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a .npz file that can be read: {line(error)}") from error
    return [_source(plain, f"{path}:{member}")]


def _unpack(packed: IO[bytes], plain: IO[bytes], name: str) -> None:
    """As many bytes as the header of the array promises, and no more: a bomb promises little and holds much."""
    start = packed.read(1 << 16)
    plain.write(start)
    plain.seek(0)
    offset, shape, dtype, _ = _header(plain, name)
    promised = offset + prod(shape) * dtype.itemsize
    plain.seek(0, os.SEEK_END)
    while len(start) and plain.tell() <= promised:
        start = packed.read(1 << 20)
        plain.write(start)
    if plain.tell() != promised:
        kind = "more" if plain.tell() > promised else "fewer"
        raise ValueError(f"{name}: holds {kind} bytes than its header promises ({promised:,})")
    plain.flush()


def _header(file: IO[bytes], name: str) -> tuple[int, tuple[int, ...], np.dtype[Any], bool]:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError(f"{name}: not a .npy file: it does not start as one")
    file.seek(0)
    try:
        with warnings.catch_warnings(action="ignore"):
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of the format is not read")
            shape, fortran, dtype = read(file)
    except _HEADER as error:
        raise ValueError(f"{name}: the header of the .npy file is damaged: {line(error)}") from error
    if dtype.hasobject or dtype.names:
        raise TypeError(f"{name}: holds {dtype}, but only numbers have moments")
    numbers(name, dtype)
    if any(n < 0 or n >= 1 << 48 for n in shape) or prod(n for n in shape if n) >= 1 << 60 or len(shape) > 32:
        raise ValueError(f"{name}: the header of the .npy file is damaged: no array has shape {shape}"[:300])
    if not prod(shape) and prod(n for n in shape if n) > 1 << 24:
        raise ValueError(f"{name}: shape {shape} holds no value")
    return file.tell(), tuple(int(n) for n in shape), dtype, fortran


def _source(file: IO[bytes], name: str) -> Source:
    file.seek(0)
    offset, shape, dtype, fortran = _header(file, name)
    there = os.fstat(file.fileno()).st_size - offset
    if there < prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{name}: cut off: shape {shape} of {dtype} needs {prod(shape) * dtype.itemsize:,} bytes, and {there:,} are there"
        )
    axes = tuple(range(len(shape)))
    order = axes[::-1] if fortran else axes
    read = partial(read_raw, file, offset, tuple(shape[a] for a in order), dtype, name)
    if fortran:
        return Source(name, shape, partial(_turned, read), itemsize=dtype.itemsize, order=order)
    return Source(name, shape, read, itemsize=dtype.itemsize, order=order)


def _turned(read: Any, box: Box) -> Piece:
    values, where = read(box[::-1])
    return values.T, where


def read_raw(file: IO[bytes], offset: int, shape: tuple[int, ...], dtype: np.dtype[Any], name: str, box: Box) -> Piece:
    """A box of a file of values in C order, one run of neighbours at a time."""
    sizes = tuple(b.stop - b.start for b in box)
    values: Array = np.empty(sizes, dtype)
    fast = len(shape)  # the axes from here on are whole
    while fast > 0 and sizes[fast - 1] == shape[fast - 1]:
        fast -= 1
    head = max(fast - 1, 0)
    tail = prod(shape[head + 1 :]) * dtype.itemsize
    flat = values.reshape(-1).view(np.uint8) if values.size else values.reshape(-1)
    done = 0
    for place in _starts(box[:head], shape[:head]):
        first = (place * (shape[head] if shape else 1) + (box[head].start if box else 0)) * tail
        length = (sizes[head] if sizes else 1) * tail
        _fill(file, offset + first, flat[done : done + length], name)
        done += length
    return (values if dtype.isnative else values.astype(dtype.newbyteorder("="))), None


def _starts(box: Box, shape: tuple[int, ...]) -> Iterator[int]:
    for index in product(*(range(b.start, b.stop) for b in box)):
        place = 0
        for i, n in zip(index, shape, strict=True):
            place = place * n + i
        yield place


def _fill(file: IO[bytes], at: int, target: Array, name: str) -> None:
    rest = target.data if target.size else memoryview(b"")
    while rest:
        got = os.preadv(file.fileno(), [rest], at)
        if not got:
            raise ValueError(f"{name}: cut off while it was read")
        rest, at = rest[got:], at + got
