"""The machine, the thread counts of everybody, and the versions: what a figure means nothing without."""

import os
import platform
import sys
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

THREADS = 2
PACKAGES = ("keepnorm", "numpy", "numba", "torch", "jax", "keras", "tensorflow-cpu", "scikit-learn", "dask", "numbagg")


def pin() -> int:
    """Let this process use at most THREADS cores: JAX, TensorFlow and the rest take as many threads as there are cores.

    To be called before any framework is imported. Returns how many cores there are now.
    """
    if not hasattr(os, "sched_setaffinity"):
        return min(THREADS, os.cpu_count() or 1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:THREADS])
    os.environ.setdefault("NUMBA_NUM_THREADS", str(min(THREADS, len(cores))))
    return len(cores[:THREADS])


def cores() -> int:
    """How many cores this process may use: the size of JAX's and TensorFlow's pools."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def our_threads() -> AbstractContextManager[None]:
    """Inside this, keepnorm uses THREADS threads at most."""
    import keepnorm

    return keepnorm.threads(THREADS)


def our_thread_count() -> int:
    """How many threads keepnorm uses for a large array, called now."""
    from keepnorm.kernels.jit import threads

    return threads.available()


def cache_bytes() -> int:
    """The size of the largest cache of the first core; 32 MiB where the system does not say."""
    sizes = [32 * 2**20]
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    read = [_bytes(path.read_text()) for path in folder.glob("index*/size")]
    return max(read or sizes)


def large_bytes() -> int:
    """The size from which on an array is in no cache: one of hundreds of MiB serves a whole processor, not these few cores."""
    return min(cache_bytes(), 64 * 2**20)


def free_bytes() -> int:
    """Free memory, or a lot where the system does not say."""
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" not in names:
        return 2**40
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load() -> float:
    """How many processes wanted a core in the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def description() -> dict[str, Any]:
    """The processor by its model, counts and versions; no names of hosts, users or folders."""
    import numba

    from keepnorm.kernels.jit import threads

    return {
        "processor": _processor(),
        "cores": cores(),
        "cache_bytes": cache_bytes(),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": {"keepnorm": our_thread_count(), "layer": threads.layer(), "numba": numba.get_num_threads()},
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = dict(map(_fact, lines))
    name = facts.get("model name") or platform.processor() or platform.machine()
    family = f", family {facts['cpu family']} model {facts['model']}" if "cpu family" in facts and "model" in facts else ""
    return f"{name}{family}"


def _fact(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        loaded = sys.modules.get(name)
        return str(getattr(loaded, "__version__", "")) or None


def _bytes(text: str) -> int:
    text = text.strip()
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text or 0)
