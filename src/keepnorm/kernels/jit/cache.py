"""Machine code on disk, quietly: no folder, no space, no permission is ever an error.

An entry is good for one state of the kernels' sources, one Numba, one processor, and one kind of Python; what does not
match has another name. A cache that fails is a cache that misses.
"""

import hashlib
import os
import stat
import sys
import sysconfig
import time
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from math import inf
from pathlib import Path
from tempfile import NamedTemporaryFile

from keepnorm import kernels
from keepnorm.kernels.jit import folder

_DIGEST = 32  # bytes of a SHA-256

# Bytes of one entry and of all of them, at most: a kernel has about 70 KB, and all kernels of all dtypes about 15 MB.
_ENTRY, _ALL = 1 << 24, 1 << 28

# Seconds after which the file of a process that died while it wrote goes, and an unused entry of another stamp; and how exact
# the times of use are.
_PART, _UNUSED, _DAY = 3600, 90 * 86400, 86400

# What Numba reads from the environment (with NUMBA_ before it) and what changes its code.
_SETTINGS = ("CPU_NAME", "CPU_FEATURES", "ENABLE_AVX", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO")


@cache
def stamp() -> str:
    """A hash of all that machine code depends on but the layout of its arguments: one changed line compiles anew."""
    from keepnorm.kernels.jit.link import processor

    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.read_bytes())
    settings = (f"{name}={os.environ.get(f'NUMBA_{name}')}" for name in _SETTINGS)
    versions = (_version(name) for name in ("numba", "llvmlite"))
    for fact in (*versions, processor(), sysconfig.get_platform(), sys.version, str(object.__basicsize__), *settings):
        digest.update(f"\n{fact}".encode())
    return digest.hexdigest()


def sources() -> list[Path]:
    """The files that machine code is made of: the tuned numbers, and all kernels but those of CUDA."""
    root = Path(next(iter(kernels.__path__)))
    own = [path for path in sorted(root.rglob("*.py")) if not path.relative_to(root).parts[0].startswith("cuda")]
    return [*own, root.parent / "tuning.py"]


def _version(package: str) -> str:
    """Which version of a package is installed, without loading it."""
    spec = find_spec(package)
    files = [Path(place) / "_version.py" for place in (spec.submodule_search_locations or ())] if spec else []
    return "".join(file.read_text() for file in files if file.is_file())


def _path(name: str) -> Path:
    """The file of an entry, which begins with the stamp."""
    return Path(folder.find()[0]) / f"{stamp()[:16]}_{name}.o"


def _digest(name: str, code: bytes) -> bytes:
    """Of an entry under its own name: one that was renamed is none."""
    return hashlib.sha256(f"{stamp()} {name}\n".encode() + code).digest()


def read(name: str) -> bytes | None:
    """The entry of a name, or None."""
    if not folder.find()[0]:
        return None
    path = _path(name)
    try:
        # Not through a link, and without waiting for a writer where somebody put a pipe.
        flags = (getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
        with os.fdopen(os.open(path, os.O_RDONLY | sum(flags)), "rb") as file:
            info = os.fstat(file.fileno())
            if not (stat.S_ISREG(info.st_mode) and info.st_size <= _ENTRY and folder.is_ours(info)):
                return None
            data = file.read(_ENTRY)
    except OSError:
        return None
    digest, code = data[:_DIGEST], data[_DIGEST:]
    if digest != _digest(name, code):
        return None
    if info.st_mtime < time.time() - _DAY:
        with suppress(OSError):  # a cache that this user may only read
            os.utime(path)
    return code


def write(name: str, code: bytes) -> None:
    """Keep an entry, if that is possible: as a whole, or not at all."""
    if not folder.find()[0]:
        return
    part = None
    try:
        with NamedTemporaryFile(dir=folder.find()[0], suffix=".part", delete=False) as file:
            part = Path(file.name)
            file.write(_digest(name, code) + code)
        part.replace(_path(name))
    except OSError:
        if part is not None:
            part.unlink(missing_ok=True)
    _clean()


def _clean() -> None:
    """Remove what dead processes left half written, and the entries used longest ago, those of other stamps before ours."""
    found = []
    try:
        with os.scandir(folder.find()[0]) as files:
            for file in files:
                if file.name.endswith((".o", ".part")):
                    info = file.stat(follow_symlinks=False)
                    found.append((file.name.startswith(stamp()[:16]), info.st_mtime, info.st_size, file.path))
    except OSError:  # another process has removed the file, or the folder
        return
    now, left = time.time(), _ALL
    for is_of_stamp, used, size, path in sorted(found, reverse=True):
        left -= size
        lasts = _PART if path.endswith(".part") else inf if is_of_stamp else _UNUSED
        if left < 0 or now - used > lasts:
            with suppress(OSError):
                Path(path).unlink()
