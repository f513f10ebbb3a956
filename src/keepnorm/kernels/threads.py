"""How many threads the host engine may use, and when more than one is safe.

A parallel loop is entered only where nothing can end the process: the threading layer is omp or tbb (workqueue aborts
when two threads enter at once), this process was not forked (GNU OpenMP kills a forked child), and the caller is the
main thread or has asked for threads with `threads(n)`. Everywhere else the same kernels run serially, with the same bits.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

# Fewer values than this take less time on one thread than a second thread takes to wake.
SERIAL = 32768

_asked = threading.local()
_lock = threading.Lock()
_forked = False


def _after_fork() -> None:
    global _forked, _lock
    _forked = True
    _lock = threading.Lock()  # the parent may have held it at the fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Let the host engine use up to `n` threads inside this block, in this thread.

    The answer has the same bits for any `n`. Without it the main thread uses all threads that Numba has
    (``NUMBA_NUM_THREADS``, by default one for each core), and every other thread uses one.

    Parameters
    ----------
    n : int
        At least 1. More than Numba has count as all that it has.

    Raises
    ------
    TypeError
        If `n` is not an int.
    ValueError
        If `n` is less than 1.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> with kn.threads(1):
    ...     y = kn.normalize(np.eye(3, dtype=np.float32), keep=0)
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n must be an int; got {type(n).__name__}")
    count = n.__index__()
    if count < 1:
        raise ValueError(f"n must be at least 1; got {count}")
    before = getattr(_asked, "count", None)
    _asked.count = count
    try:
        yield
    finally:
        _asked.count = before


def available() -> int:
    """How many threads a kernel called now may use."""
    asked: int | None = getattr(_asked, "count", None)
    if _forked or asked == 1:
        return 1
    if asked is None and threading.get_ident() != threading.main_thread().ident:
        return 1
    most = _launched()
    return most if asked is None else min(asked, most)


def threads_for(size: int) -> int:
    """How many threads a kernel over `size` values should use now."""
    return available() if size > SERIAL else 1


def layer() -> str:
    """The threading layer that Numba chose, or why there is only one thread."""
    if _forked:
        return "none: this process was forked"
    import numba

    _launched()
    try:
        chosen = str(numba.threading_layer())
    except ValueError:
        return "none: no threading layer could be loaded"
    return chosen if _launched() > 1 or chosen != "workqueue" else "workqueue (not used: two callers at once would abort)"


def _launched() -> int:
    """How many threads Numba has, launched once; 1 where its layer is not safe."""
    with _lock:
        return _launch()


@cache
def _launch() -> int:
    import numba
    from numba.np.ufunc import parallel

    started_before = bool(getattr(parallel, "_is_initialized", False))
    try:
        parallel._launch_threads()
        layer = numba.threading_layer()
    except (ValueError, ImportError, OSError):  # no layer: a user's choice that is not installed, or no library at all
        return 1
    if layer not in ("omp", "tbb") or (started_before and _workers_are_gone()):
        return 1
    return int(numba.get_num_threads())


def _workers_are_gone() -> bool:
    """Whether someone launched Numba's threads before a fork that happened before keepnorm was imported."""
    try:
        return len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:
        return False
