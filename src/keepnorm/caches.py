"""The caches of this machine, as far as the system tells: a matter of speed alone."""

from pathlib import Path

_FOLDER = Path("/sys/devices/system/cpu/cpu0/cache")


# From here on the cache of a core's own is large. What is behind it is then shared by many cores and slow, so that data which
# are wanted twice had better stay in the first; the core itself fetches well ahead from there.
LARGE = 1 << 21


def own_is_large() -> bool:
    """Whether a core has a large cache for itself."""
    return own_bytes() >= LARGE


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


def _bytes(text: str) -> int:
    """The number that ``2048K`` stands for."""
    unit = {"K": 10, "M": 20}.get(text[-1:], 0)
    return int(text.rstrip("KM")) << unit
