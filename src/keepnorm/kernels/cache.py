"""Compile with Numba and keep the machine code on disk, quietly: no folder, no space, no permission is ever an error.

Numba's own cache does not notice a changed helper in another file and raises where no folder can be written. Here the
stamp of an entry is a hash of all kernel sources, and a cache that fails is a cache that misses.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pickle import PickleError
from typing import Any, TypeVar

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

F = TypeVar("F", bound=Callable[..., Any])

# Enough to vectorise sums. Not "nnan" and "ninf": NaN and Inf exist.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def entry(parallel: bool = False) -> Callable[[F], F]:
    """Decorate a kernel that Python calls: no GIL, and its machine code is kept on disk with all that it calls."""

    def decorate(function: F) -> F:
        dispatcher = njit(nogil=True, parallel=parallel, error_model="numpy")(function)
        if folder():
            dispatcher._cache = QuietCache(function)
        kernel: F = dispatcher
        return kernel

    return decorate


class _NoMachineCode:
    """Takes the place of the code generator for what is never run on its own."""

    @staticmethod
    def set_env(name: str, environment: Any) -> None:
        """There is no code that would look the environment up."""


class _Inlined(JITCodeLibrary):  # type: ignore[misc]
    """A function that is inlined into all its callers: optimised and translated with them, and not alone before.

    Numba does both for every function at every level of calls, which was a quarter of the time of a first call.
    """

    codegen = _NoMachineCode

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _InlineCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler, with `_Inlined` for the result."""

    def __init__(self, typing_context: Any, target_context: Any, _: None, *rest: Any) -> None:
        library = _Inlined(target_context.codegen(), "inlined")
        super().__init__(typing_context, target_context, library, *rest)


# Inlined, since a call with eight arrays hands over sixty words; without wrappers, since Python never calls it.
_INSIDE = {
    "nogil": True,
    "error_model": "numpy",
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": _InlineCompiler,
}


def helper(function: F) -> F:
    """Decorate what only kernels call. Its sums may be reordered, so that they become vectors."""
    inner: F = njit(fastmath=FASTMATH, **_INSIDE)(function)
    return inner


def exact(function: F) -> F:
    """Decorate what only kernels call and what must keep the order of its operations."""
    # Said explicitly: Numba hands the fastmath of a caller down to callees that do not say theirs.
    inner: F = njit(fastmath=False, **_INSIDE)(function)
    return inner


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
    """A hash of the sources of all CPU kernels: one changed line anywhere compiles anew."""
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(__file__).parent.glob("*.py") if not p.name.startswith("cuda")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _Locator(_CacheLocator):  # type: ignore[misc]
    """Tells Numba where entries lie and what they depend on."""

    def __init__(self, function: Callable[..., Any], path: str) -> None:
        self._py_file = path
        self._name = function.__module__

    def get_cache_path(self) -> str:
        return folder()

    def get_source_stamp(self) -> str:
        return stamp()

    def get_disambiguator(self) -> str:
        return hashlib.sha256(self._py_file.encode()).hexdigest()[:10]

    @classmethod
    def from_function(cls, function: Callable[..., Any], path: str) -> "_Locator":
        return cls(function, path)


class _Entries(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)

    def __init__(self, function: Callable[..., Any]) -> None:
        from numba.core import config

        # NUMBA_CACHE_LOCATOR_CLASSES would replace the locator, and with it the promise to be quiet.
        chosen, config.CACHE_LOCATOR_CLASSES = getattr(config, "CACHE_LOCATOR_CLASSES", ""), ""  # none before Numba 0.62
        try:
            super().__init__(function)
        finally:
            config.CACHE_LOCATOR_CLASSES = chosen


class QuietCache(FunctionCache):  # type: ignore[misc]
    """Numba's cache on disk, where an entry that cannot be read or written is only a miss."""

    _impl_class = _Entries

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Read a compiled kernel, or None."""
        try:
            return super().load_overload(sig, target_context)
        except (OSError, EOFError, PickleError, AttributeError, ImportError, ValueError):
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a compiled kernel, if that is possible."""
        try:
            super().save_overload(sig, data)
        except (OSError, EOFError, PickleError):
            self.disable()
