"""The machine: its caches, cores and memory, as far as the system tells. A matter of speed alone."""

import os
from collections.abc import Iterable
from pathlib import Path

from keepnorm.tuning import CELL, LARGE_L2, SERIAL

_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")

# What a control group may use, in both versions of Linux's.
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def cores() -> int:
    """How many cores this process may use.

    Examples
    --------
    >>> cores() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_serial(size: int, cells: int) -> bool:
    """Whether a kernel over `size` values in so many cells is too short for a second thread."""
    return size + CELL * cells <= SERIAL


def own_is_large() -> bool:
    """Whether a core has a large cache for itself."""
    return own_bytes() >= LARGE_L2


def own_bytes(folder: Path = _FOLDER) -> int:
    """The size of the second cache of the first core, which it has for itself; 0 where the system does not say.

    Examples
    --------
    >>> own_bytes() >= 0
    True
    """
    try:
        for cache in folder.glob("index*"):
            if (cache / "level").read_text().strip() == "2":
                return _bytes((cache / "size").read_text().strip())
    except (OSError, ValueError):
        pass
    return 0


def memory_bytes(limits: Iterable[Path] = _LIMITS) -> int:
    """The memory of this machine, or of the control group that this process is in; 0 where the system does not say.

    Examples
    --------
    >>> memory_bytes() >= 0
    True
    """
    known = getattr(os, "sysconf_names", {})
    sizes = []
    if "SC_PHYS_PAGES" in known and "SC_PAGE_SIZE" in known:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in limits:
        try:
            sizes.append(int(path.read_text()))
        except (OSError, ValueError):  # there is none, or "max"
            continue
    return max(0, min(sizes, default=0))


def _bytes(text: str) -> int:
    """The number that ``2048K`` stands for."""
    unit = {"K": 10, "M": 20}.get(text[-1:], 0)
    return int(text.rstrip("KM")) << unit
