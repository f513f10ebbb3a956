"""Pictures in tar files, as WebDataset keeps them."""

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath

from keepnorm.stats.options import Options
from keepnorm.stats.readers.images import from_bytes
from keepnorm.stats.readers.source import Piece, Source, line

_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".ppm", ".pgm")


def open_tar(path: Path, _member: str, options: Options, _cleanup: ExitStack) -> list[Source]:
    """All pictures of a tar file."""
    return [Source(str(path), stream=partial(_pictures, path, options), pictures=True)]


def _pictures(path: Path, options: Options) -> Iterator[Piece]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for entry in archive:
                if not entry.isreg() or PurePosixPath(entry.name).suffix.lower() not in _PICTURES:
                    continue
                name = f"{path}:{entry.name}"
                if entry.size > options.bytes // 4:
                    raise ValueError(f"{name}: {entry.size:,} bytes need --memory {4 * entry.size // 10**6 + 1}MB")
                member = archive.extractfile(entry)
                yield from from_bytes(member.read() if member else b"", name, options)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a tar file that can be read: {line(error)}") from error
