"""Run the tasks of a stage on one thread or on several.

LLVM and Numba are loaded at the first kernel, and a kernel is compiled at its first call. What runs in the middle of that in
the same thread, a signal handler or a finalizer, meets modules and a compiler that are half ready: it gets `BusyError`.
"""

import gc
import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from keepnorm.kernels.jit.signature import Layout, layout_of
from keepnorm.kernels.jit.threads import run_apart, team

_entries: dict[Any, Callable[..., None]] = {}

# The threads that are loading or compiling now.
_busy: set[int] = set()


class BusyError(RuntimeError):
    """This thread is loading or compiling a kernel further down its stack."""

    def __init__(self) -> None:
        super().__init__(
            "keepnorm was called by a signal handler or a finalizer while the same thread was loading Numba or compiling a "
            "kernel: call it again later, or make the same call once before"
        )


def run(family: str, dtypes: Any, threads: int, count: int, stage: int, arguments: tuple[Any, ...]) -> None:
    """Run all tasks of a stage, each thread a contiguous range of them.

    Parameters
    ----------
    family : str
        A module of kernels with a function ``tasks(stage, first, last, x, y, ...)``.
    dtypes : hashable
        What tells the layouts of `arguments` of one family apart.
    threads : int
        On how many threads.
    count : int
        How many tasks there are.
    stage : int
        Which stage of the family.
    arguments : tuple
        What `tasks` takes after its range.

    Raises
    ------
    MemoryError
        If there is no memory for the scratch arrays of a task.
    """
    start(entry_for(family, dtypes, arguments), threads, count, stage, arguments)


def entry_for(family: str, dtypes: Any, arguments: tuple[Any, ...]) -> Callable[..., None]:
    """The machine code of a family for such arguments, for `start`."""
    entry = _entries.get((family, dtypes))
    if entry is None:
        entry = _entries[family, dtypes] = _entry(family, layout_of(family, arguments))
    return entry


def start(entry: Callable[..., None], threads: int, count: int, stage: int, arguments: tuple[Any, ...]) -> None:
    """Run machine code: as `run`."""
    if threads == 1:
        entry(0, 0, 0, 1, 0, count, stage, *arguments)
        return
    parallel, number, size = team()
    if parallel:
        entry(parallel, number, size, threads, 0, count, stage, *arguments)
    else:
        run_apart(threads, lambda t: entry(0, 0, 0, 1, t * count // threads, (t + 1) * count // threads, stage, *arguments))


def _entry(family: str, layout: Layout) -> Callable[..., None]:
    """The machine code of a kernel for one layout of its arguments, from the disk or compiled now."""
    with _alone():
        return _loaded(family, layout)


def _loaded(family: str, layout: Layout) -> Callable[..., None]:
    from keepnorm.kernels.jit import cache, link

    symbol = f"{family}_{hashlib.sha256(f'{cache.stamp()} {layout}'.encode()).hexdigest()[:32]}"
    code = cache.read(symbol)
    if code is not None:
        try:
            return link.load(code, symbol)
        except RuntimeError:
            pass  # from a system with other libraries
    with _nothing_collected():
        from keepnorm.kernels.jit.compile import object_code

        code = object_code(family, layout, symbol)
    entry = link.load(code, symbol)
    cache.write(symbol, code)
    return entry


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse to begin inside of what this thread has not ended, be it ours or its own import of Numba."""
    thread = get_ident()
    if thread in _busy:
        raise BusyError
    _busy.add(thread)
    try:
        yield
    except (ImportError, AttributeError) as error:
        if any(_is_half_loaded(name) for name in ("llvmlite", "numba")):
            raise BusyError from error
        raise
    finally:
        _busy.discard(thread)


def _is_half_loaded(package: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(package), "__spec__", None), "_initializing", False))


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """No search for garbage while Numba makes a million objects, nearly all of which stay: a tenth of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
