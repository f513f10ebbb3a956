"""Machine code on disk, quietly: no folder, no space, no permission is ever an error.

An entry is good for one state of the kernels' sources, one Numba, one processor, and one kind of Python; what does not
match has another name. A cache that fails is a cache that misses.
"""

import hashlib
import os
import sys
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile

_DIGEST = 32  # bytes of a SHA-256

# What Numba reads from the environment (with NUMBA_ before it) and what changes its code.
_SETTINGS = ("CPU_NAME", "CPU_FEATURES", "ENABLE_AVX", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE")


@cache
def folder() -> str:
    """The folder of the compiled kernels: NUMBA_CACHE_DIR, or the user's cache folder; '' where none can be written."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if not chosen:
        if sys.platform == "win32":
            chosen = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            chosen = str(Path.home() / "Library" / "Caches")
        else:
            chosen = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    path = Path(chosen) / "keepnorm"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""
    return str(path) if os.access(path, os.W_OK) else ""


@cache
def stamp() -> str:
    """A hash of all that machine code depends on but the layout of its arguments: one changed line compiles anew."""
    from keepnorm.kernels.native import processor

    digest = hashlib.sha256()
    for path in sorted(p for p in Path(__file__).parent.glob("*.py") if not p.name.startswith("cuda")):
        digest.update(path.read_bytes())
    settings = (f"{name}={os.environ.get(f'NUMBA_{name}')}" for name in _SETTINGS)
    for fact in (_numba(), processor(), sysconfig.get_platform(), sys.version, str(object.__basicsize__), *settings):
        digest.update(f"\n{fact}".encode())
    return digest.hexdigest()


def _numba() -> str:
    """Which Numba is installed, without loading it."""
    spec = find_spec("numba")
    files = [Path(folder) / "_version.py" for folder in (spec.submodule_search_locations or ())] if spec else []
    return "".join(file.read_text() for file in files if file.is_file())


def _path(name: str) -> Path:
    return Path(folder()) / f"{name}.o"


def read(name: str) -> bytes | None:
    """The entry of a name, or None."""
    if not folder():
        return None
    try:
        data = _path(name).read_bytes()
    except OSError:
        return None
    digest, code = data[:_DIGEST], data[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def write(name: str, code: bytes) -> None:
    """Keep an entry, if that is possible: as a whole, or not at all."""
    if not folder():
        return
    part = None
    try:
        with NamedTemporaryFile(dir=folder(), suffix=".part", delete=False) as file:
            part = Path(file.name)
            file.write(hashlib.sha256(code).digest() + code)
        part.replace(_path(name))
    except OSError:
        if part is not None:
            part.unlink(missing_ok=True)
