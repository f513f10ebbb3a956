"""The folder of the compiled kernels: where it is, and whether what lies there may be run.

Object code is run as it is. So only what nobody but this user or root can have put there is taken, which is ssh's rule: the
folder, the folders above it and the file belong to one of the two, and no other may write to them. Above ours a folder for
everybody is taken where it is sticky, as /tmp is: in that, nobody can rename what is not theirs.

No key or signature would add to this. It would have to lie where this user can read it, and there are only two kinds of
others: those who cannot write here, and those who can do all that this user can.
"""

import logging
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path

_NAME = "keepnorm"
_NAME_OF_USER = f"{_NAME}-{os.geteuid()}" if hasattr(os, "geteuid") else _NAME


@cache
def find() -> tuple[str, str]:
    """The folder and '', or '' and why there is none."""
    fault = ""
    for path in _choices():
        try:
            fault = _make(path)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            fault = f"{path} cannot be made ({type(error).__name__})"
            continue
        if not fault:
            return str(path.resolve()), ""
        logging.getLogger(__name__).warning("keepnorm compiles in each process, and runs no code from disk: %s", fault)
        break
    return "", fault


def is_ours(info: os.stat_result) -> bool:
    """Whether a file or a folder belongs to this user or to root, and no other may write to it."""
    return not _fault(info)


def _choices() -> Iterator[Path]:
    """The folders to try, in order: in NUMBA_CACHE_DIR, or in the user's cache folder and among temporary files."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    base = Path(chosen) if chosen else _of_user()
    if base is not None:
        yield base / (_NAME_OF_USER if _is_of_another(base / _NAME) else _NAME)
    if not chosen and _NAME_OF_USER != _NAME:
        with suppress(OSError):
            yield Path(tempfile.gettempdir()) / _NAME_OF_USER


def _is_of_another(path: Path) -> bool:
    """Whether another user of the same folder came first."""
    try:
        return hasattr(os, "geteuid") and path.stat().st_uid not in (0, os.geteuid())
    except OSError:
        return False


def _of_user() -> Path | None:
    """The user's cache folder; None where the user has no home."""
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # HOME is not set, and the system does not know the user
        return None


def _make(path: Path) -> str:
    """Make a folder and those above it that are missing, all for this user alone; give back why it may not be used."""
    missing = list(takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    for folder in [*reversed(missing), path]:  # asked before each step: nothing is made where others could replace it
        if not folder.parent.is_dir():
            raise NotADirectoryError(folder.parent)
        fault = _fault_above(folder.parent.resolve(strict=True))
        if fault:
            return fault
        folder.mkdir(mode=0o700, exist_ok=True)
    real = path.resolve(strict=True)
    fault = _fault(real.stat())
    return f"{real} {fault}" if fault else _fault_above(real.parent)


def _fault_above(real: Path) -> str:
    """What is wrong with a folder that is to have ours in it, or with one above that."""
    faults = ((folder, _fault(folder.stat(), is_above=True)) for folder in (real, *real.parents))
    return next((f"{folder} {fault}" for folder, fault in faults if fault), "")


def _fault(info: os.stat_result, is_above: bool = False) -> str:
    """What lets other users write; Windows tells neither owner nor mode, and a user's folders there are their own."""
    if not hasattr(os, "geteuid"):
        return ""
    if info.st_uid not in (0, os.geteuid()):
        return f"belongs to another user ({info.st_uid})"
    is_open = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (is_above and info.st_mode & stat.S_ISVTX)
    return "can be written by other users" if is_open else ""
