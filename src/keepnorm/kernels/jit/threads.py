"""How many threads the host engine may use, when more than one is safe, and who starts them.

More than one thread is used only where nothing can end the process: it was not forked (GNU OpenMP hangs in a forked
child), and the caller is the main thread or has asked for threads with `threads(n)`. Everywhere else the same kernels run
serially, with the same bits. The threads are GNU OpenMP's where the system has that, since they are awake within
microseconds and may be those of PyTorch; elsewhere they are Python's, which the kernels leave free to run.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any, Never

from keepnorm.keywords import REQUIRED, check, show
from keepnorm.machine import cores, is_serial

_MAIN = threading.main_thread().ident  # of this process; in a forked child, where it may be another, nobody asks

# How many threads `threads` lets each Python thread use, by its number. (Between two kernels, which leave nothing in the L1
# cache, this takes 0.4 us to ask, and a threading.local 0.8.)
_asked: dict[int, int] = {}
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads(n: int = REQUIRED, **unknown: Never) -> AbstractContextManager[None]:
    """Let the host engine use up to `n` threads inside this block, in this thread.

    The answer has the same bits for any `n`. Without it the main thread uses as many as there are cores
    (``NUMBA_NUM_THREADS``, by default one for each core), and every other thread uses one.

    Parameters
    ----------
    n : int
        At least 1. More than the main thread has count as all that it has.

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
    check(threads, unknown, n=n)
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n must be an int; got {type(n).__name__}")
    count = n.__index__()
    if count < 1:
        raise ValueError(f"n must be at least 1; got {count}")
    return _asking(count)


@contextmanager
def _asking(count: int) -> Iterator[None]:
    caller = get_ident()
    before = _asked.get(caller)
    _asked[caller] = count
    try:
        yield
    finally:
        if before is None:
            _asked.pop(caller, None)
        else:
            _asked[caller] = before


def available() -> int:
    """How many threads a kernel called now may use."""
    if _forked:
        return 1
    caller = get_ident()
    asked = _asked.get(caller)
    if asked is None:
        return most() if caller == _MAIN else 1
    return asked if asked == 1 or asked < most() else most()


def threads_for(size: int, cells: int) -> int:
    """How many threads a kernel over `size` values in so many cells should use now."""
    return 1 if is_serial(size, cells) else available()


def layer() -> str:
    """Whose threads a parallel kernel uses, or why there is only one."""
    if _forked or not _safe():
        return "none: this process was forked"
    return "GNU OpenMP" if team()[0] else "Python threads"


@cache
def most() -> int:
    """How many threads there may be: NUMBA_NUM_THREADS, or one for each core that this process may use; fewer where the
    system does not start as many, since GNU OpenMP ends the process then.
    """
    if not _safe():
        return 1
    try:
        said = int(os.environ["NUMBA_NUM_THREADS"])
    except (KeyError, ValueError):
        said = 0
    wanted = said if said > 0 else cores()
    if wanted == 1:
        return 1
    started = _startable(wanted)
    return wanted if started == wanted else 1 + started // 2  # others may need the rest


def _startable(n: int) -> int:
    """How many of n threads the system starts, all of them alive at the same time: memory and numbers are limited."""
    end, started = threading.Event(), []
    size = threading.stack_size()
    try:
        with suppress(ValueError):  # of a size that the system does not know
            threading.stack_size(max(size, _stack_bytes()))
        for _ in range(n):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):  # also where the interpreter is about to end
        pass
    finally:
        threading.stack_size(size)
        end.set()
        for thread in started:
            thread.join()
    return len(started)


def _stack_bytes() -> int:
    """The stack of an OpenMP thread, where the environment says it (in KiB without a unit); else 0, the system's own."""
    said = (os.environ.get("OMP_STACKSIZE") or os.environ.get("GOMP_STACKSIZE") or "").strip().upper()
    unit = {"B": 0, "K": 10, "M": 20, "G": 30}.get(said[-1:])
    digits = said if unit is None else said[:-1].strip()
    return int(digits) << (10 if unit is None else unit) if digits.isdecimal() else 0


def team() -> tuple[int, int, int]:
    """The addresses of OpenMP's function that runs another one on several threads, and of those which tell each of them its
    number and how many they are; 0 where there is no OpenMP.
    """
    return _openmp()[:3]


def run_apart(count: int, work: Callable[[int], None]) -> None:
    """Call ``work(0)`` to ``work(count - 1)``, here and in threads of Python's; exceptions come here.

    Whoever is free takes the next, so that nothing waits for a thread that could not be started.
    """
    left = list(range(count))[::-1]

    def help_out() -> None:
        while True:
            try:
                task = left.pop()
            except IndexError:
                return
            work(task)

    helpers: list[Any] = []
    with suppress(RuntimeError, MemoryError):  # no thread can be started, or the interpreter is about to end
        while len(helpers) < count - 1:
            helpers.append(_pool().submit(help_out))
    try:
        help_out()
    finally:
        failed = [error for helper in helpers if (error := helper.exception()) is not None]
    for error in failed:
        raise error


@cache
def _openmp() -> tuple[int, int, int, bool]:
    """The addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads, and whether they had been loaded before."""
    if not sys.platform.startswith("linux"):
        return 0, 0, 0, False
    loaded = _is_loaded("libgomp")
    try:
        library = ctypes.CDLL("libgomp.so.1")
        functions = library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_num_threads
        parallel, number, size = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
        return parallel, number, size, loaded
    except (OSError, AttributeError):
        return 0, 0, 0, loaded


@cache
def _safe() -> bool:
    """Whether OpenMP's threads can be alive: not if somebody may have started them before this process was forked."""
    address, _, _, loaded_before = _openmp()
    return not (address and loaded_before and _is_fork())


def _is_loaded(name: str) -> bool:
    try:
        return name in Path("/proc/self/maps").read_text()
    except OSError:
        return True


def _is_fork() -> bool:
    """Whether this process is a copy of another one, and has not started a program since: PF_FORKNOEXEC of Linux."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return bool(int(fields[6]) & 0x40)
    except (OSError, ValueError, IndexError):
        return True


@cache
def _pool() -> Any:
    from concurrent.futures import ThreadPoolExecutor  # not loaded any more when the interpreter is about to end

    return ThreadPoolExecutor(max(1, most() - 1), thread_name_prefix="keepnorm")


show(threads)
