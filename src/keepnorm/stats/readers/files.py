"""From what is asked for (files, folders, patterns, lists, addresses) to sources, in a fixed order."""

import glob
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from tempfile import TemporaryDirectory

from keepnorm.stats.options import Options
from keepnorm.stats.readers.source import Source, fits
from keepnorm.stats.readers.table import READS, need, reader
from keepnorm.stats.readers.zarr_stores import is_zarr, open_zarr

_KINDS = {stat.S_ISFIFO: "a pipe", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISSOCK: "a socket"}
Failed = Callable[[str, Exception], None]


def open_sources(paths: Sequence[str], options: Options, cleanup: ExitStack, failed: Failed) -> list[Source]:
    """One source for each array or picture file; temporary files live until `cleanup` closes.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError, OSError
        For a path that is not there, of a kind that is not read, or broken; the message names it. `failed` is asked first.
    ModuleNotFoundError
        If the package that reads it is not installed; the message says what to install.
    """
    sources: list[Source] = []
    for path in paths:
        for file, member in _found(path, options, cleanup):
            try:
                opened = _open(file, member, options, cleanup)
                for source in opened:
                    fits(source, options.bytes)
            except (OSError, ValueError, TypeError) as error:
                failed(str(file), error)
                continue
            sources += opened
    return sources


def _open(file: Path | str, member: str, options: Options, cleanup: ExitStack) -> list[Source]:
    if isinstance(file, str) or is_zarr(file):
        return open_zarr(file, member, options, cleanup)
    mode = file.stat().st_mode
    for is_kind, kind in _KINDS.items():
        if is_kind(mode):
            raise ValueError(f"{file}: {kind}, but only files and folders are read")
    read = reader(file)
    if read is None:
        raise ValueError(f"{file}: keepnorm stats reads {READS}; got a file named *{file.suffix or file.name}")
    return read(file, member, options, cleanup)


def _found(name: str, options: Options, cleanup: ExitStack) -> Iterator[tuple[Path | str, str]]:
    if "://" in name:
        yield _fetched(name, cleanup)
        return
    path, member = name, ""
    if not os.path.lexists(path) and ":" in name:
        path, _, member = name.rpartition(":")
    if not os.path.lexists(path) and glob.has_magic(path):
        found = sorted(glob.iglob(path, recursive=True))  # noqa: PTH207
        if not found:
            raise FileNotFoundError(f"{path}: no file has such a name")
        for match in found:
            yield from _found(match, options, cleanup)
        return
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not file.is_dir() or is_zarr(file):
        yield file, member
        return
    files = [f for f in _walk(file, options.follow_links, ()) if is_zarr(f) or _is_read(f)]
    if not files:
        raise ValueError(f"{file}: a folder without files that are read; keepnorm stats reads {READS}")
    for one in files:
        yield one, member


def _is_read(file: Path) -> bool:
    from keepnorm.stats.readers.table import FORMATS

    name = file.name.lower()
    return any(name.endswith(suffixes) for suffixes in FORMATS) or (reader(file) is not None)


def _walk(folder: Path, links: bool, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Files in the order of their names; hidden ones (`._a.png` of macOS) are none, and circles end."""
    here = folder.stat()
    if (here.st_dev, here.st_ino) in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=links):
            if is_zarr(path):
                yield path
            else:
                yield from _walk(path, links, (*above, (here.st_dev, here.st_ino)))
        elif entry.is_file():
            yield path


def _fetched(address: str, cleanup: ExitStack) -> tuple[Path | str, str]:
    fsspec = need("fsspec", "cloud", address)
    if ".zarr" in address:
        return address, ""
    folder = cleanup.enter_context(TemporaryDirectory(prefix="keepnorm-"))
    local = Path(folder) / PurePosixPath(address).name
    with fsspec.open(address, "rb") as far, local.open("wb") as near:
        copyfileobj(far, near)
    return local, ""
