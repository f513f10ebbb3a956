"""Files that `keepnorm stats` reads, as boxes of bounded size: .npy, .npz, .zarr, images and folders of images."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import ceil, prod
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

Box = tuple[slice, ...]

READS = ".npy, .npz, .zarr, images and folders of images"
_MAGIC = b"\x93NUMPY"
BOX_BYTES = 2**25  # small enough for any machine, large enough that a kernel call costs nothing beside it


@dataclass(frozen=True, slots=True)
class Source:
    """One array of a file, read a box at a time.

    Attributes
    ----------
    name : str
        What an error calls it.
    shape : tuple of int or None
        None for an image that has not been opened yet: it is one box, of shape (1, height, width, channels).
    read : callable
        ``read(box)`` gives that part of the array; ``read(())`` all of it.
    box : tuple of int
        The shape of a box.
    """

    name: str
    shape: tuple[int, ...] | None
    read: Callable[[Box], np.ndarray[Any, Any]]
    box: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """How many boxes cover the array."""
        return 1 if self.shape is None else prod(ceil(max(n, 1) / b) for n, b in zip(self.shape, self.box, strict=True))

    def boxes(self) -> Iterator[Box]:
        """The boxes, in the order of the array."""
        if self.shape is None:
            yield ()
        else:
            starts = (
                range(0, max(n, 1), b) for n, b in zip(self.shape, self.box, strict=True)
            )  # an empty array is one empty box
            for corner in product(*starts):
                yield tuple(slice(a, min(a + b, n)) for a, b, n in zip(corner, self.box, self.shape, strict=True))


def open_sources(paths: Sequence[str], cleanup: ExitStack) -> list[Source]:
    """One source for each array; temporary files, if any, live until `cleanup` closes.

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        For a path that is not there, of a kind that is not read, or broken; the message names it.
    ModuleNotFoundError
        If the package that reads it is not installed; the message says what to install.
    """
    return [source for path in paths for source in _open(path, cleanup)]


def _open(name: str, cleanup: ExitStack) -> list[Source]:
    path, _, member = name.rpartition(":") if ".npz:" in name else (name, "", "")
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if _is_zarr(file):
        return [_zarr(file)]
    if file.is_dir():
        return _folder(file)
    suffix = file.suffix.lower()
    if suffix == ".npy":
        return [_npy(file, str(file))]
    if suffix == ".npz":
        return [_npz(file, member, cleanup)]
    if suffix in _image_suffixes():
        return [Source(str(file), None, partial(_read_image, file))]
    raise ValueError(f"{file}: keepnorm stats reads {READS}; got a file named *{suffix or file.name}")


def _npy(file: Path, name: str) -> Source:
    with file.open("rb") as start:
        if start.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{name}: not a .npy file: it does not start as one")
    try:
        array = _map(file)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{name}: cannot be mapped: {_line(error)}") from error
    if array.dtype.hasobject or array.dtype.names:
        raise TypeError(f"{name}: holds {array.dtype}, but only numbers have moments")
    slowest_first = range(array.ndim) if array.flags.c_contiguous else range(array.ndim - 1, -1, -1)
    return Source(name, array.shape, partial(_read_npy, file), _box(array.shape, array.itemsize, slowest_first))


def _map(file: Path) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def _read_npy(file: Path, box: Box) -> np.ndarray[Any, Any]:
    # Mapped anew for each box: a mapping that stays keeps every page it has touched in this process's memory.
    return np.asarray(_map(file)[box])


def _npz(file: Path, member: str, cleanup: ExitStack) -> Source:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
            if not member and len(names) == 1:
                member = names[0]
            if member not in names:
                raise ValueError(
                    f"{file}: holds the arrays {', '.join(names) or '(none)'}; name one, as in {file}:{(*names, 'x')[0]}"
                )
            # Compressed members cannot be mapped; on disk they can, whatever their size.
            unpacked = Path(cleanup.enter_context(TemporaryDirectory(prefix="keepnorm-"))) / "member.npy"
            with archive.open(f"{member}.npy") as packed, unpacked.open("wb") as plain:
                copyfileobj(packed, plain)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file}: not a .npz file: {_line(error)}") from error
    return _npy(unpacked, f"{file}:{member}")


def _is_zarr(file: Path) -> bool:
    return file.is_dir() and (file.suffix == ".zarr" or any((file / f).exists() for f in ("zarr.json", ".zarray", ".zgroup")))


def _zarr(file: Path) -> Source:
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise _missing("zarr", file) from error
    try:
        array = zarr.open(str(file), mode="r")
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:  # for metadata not there or wrong
        raise ValueError(f"{file}: not a zarr store: {_line(error)}") from error
    if isinstance(array, zarr.Group):
        names = sorted(array.array_keys())
        raise ValueError(f"{file}: holds the arrays {', '.join(names) or '(none)'}; name one, as in {file}/{(*names, 'x')[0]}")
    if np.dtype(array.dtype).kind not in "biuf":
        raise TypeError(f"{file}: holds {array.dtype}, but only real numbers have moments")
    shape = tuple(array.shape)
    box = _box(shape, array.dtype.itemsize, range(len(shape)), tuple(array.chunks))
    return Source(str(file), shape, partial(_read_zarr, array, str(file)), box)


def _read_zarr(array: Any, name: str, box: Box) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(array[box])
    except (RuntimeError, KeyError) as error:  # a damaged chunk, as its codec reports it
        raise ValueError(f"{name}: a chunk cannot be read: {_line(error)}") from error


def _folder(folder: Path) -> list[Source]:
    suffixes = _image_suffixes()
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in suffixes and f.is_file())
    if not files:
        raise ValueError(f"{folder}: a folder without images; keepnorm stats reads {READS}")
    return [Source(str(f), None, partial(_read_image, f)) for f in files]


def _image_suffixes() -> frozenset[str]:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise _missing("pillow", "images") from error
    return frozenset(Image.registered_extensions()) - {".pdf", ".eps", ".ps", ".h5", ".hdf", ".mpg", ".mpeg"}


def _read_image(file: Path, _: Box) -> np.ndarray[Any, Any]:
    """One image as (1, height, width, channels): palettes become RGB, grey images have one channel."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: not an image that can be read: {_line(error)}") from error
    return pixels.reshape(1, *pixels.shape[:2], -1)


def _box(
    shape: tuple[int, ...], itemsize: int, slowest_first: Sequence[int], grain: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The largest box of whole grains (chunks) within BOX_BYTES, cut along the slowest axes first."""
    grain = grain or (1,) * len(shape)
    box = [max(n, 1) for n in shape]
    for a in slowest_first:
        rest = itemsize * prod(box) // box[a]
        fits = max(BOX_BYTES // rest // grain[a], 1) * grain[a]
        box[a] = min(box[a], fits)
    return tuple(box)


def _missing(package: str, what: object) -> ModuleNotFoundError:
    return ModuleNotFoundError(f'{what}: reading this needs {package}; install it with: python -m pip install "keepnorm[cli]"')


def _line(error: BaseException) -> str:
    """The first line of a message: errors of this command are one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
