"""Which engine serves this array: found by type, once for each type, importing no framework.

The libraries are the rows of `backends.BACKENDS`. Everything else is a TypeError that says what to pass.
"""

import sys
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from keepnorm import hints
from keepnorm.engines import backends
from keepnorm.subclasses import qualified, refuse

P = ParamSpec("P")
R = TypeVar("R")

_NAMES: dict[type, str] = {}
_ENGINES: dict[type, ModuleType] = {}


def engine_of(x: Any) -> ModuleType:
    """The engine that serves x.

    Raises
    ------
    TypeError
        If x is no array, or one whose meaning would be lost.
    """
    engine = _ENGINES.get(type(x))
    if engine is None:
        engine = _ENGINES[type(x)] = load(name_of(x))
    return engine


def name_of(x: Any, role: str = "x") -> str:
    """The name of the engine that serves x, loading nothing; "xarray" for a DataArray, which is unwrapped first.

    `role` is what an error calls x.
    """
    kind = type(x)
    name = _NAMES.get(kind)
    if name is None:
        name = _NAMES[kind] = _find(x, role)
    return name


@cache
def load(name: str) -> ModuleType:
    """The engine of that name, loaded for the first array that it serves: no framework is imported before."""
    engine = import_module(f"keepnorm.engines.{name}")
    return import_module(f"keepnorm.engines.{name}.engine") if hasattr(engine, "__path__") else engine


def elementary(x: Any) -> ModuleType:
    """The engine that works with the operations of x's own library, in float64 or as near to it as the library comes."""
    name = name_of(x)
    if name == "jax":
        pure: ModuleType = load(name).pure()
        return pure
    return load(name if name == "dask" else "standard")


def in_graph(x: Any) -> bool:
    """Whether torch.compile is tracing this call, which would lead it through every check and cache."""
    return type(x).__module__[:5] == "torch" and _dynamo_traces()


def _dynamo_traces() -> bool:
    """Whether torch.compile traces this call, or has given it up, and would trace each function that is called from here.

    PyTorch has no public question for the latter.
    """
    import torch

    if torch.compiler.is_dynamo_compiling():
        return True
    module = getattr(torch._C, "_dynamo", None)
    return module is not None and bool(module.eval_frame.get_eval_frame_callback())


def outside_graph(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which torch.compile calls as it is, between two graphs."""
    from torch.compiler import disable

    outside: Callable[P, R] = disable(function)
    return outside


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which torch.compile never traces: one that reads or changes NumPy's arrays whatever x is."""

    @wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> R:
        if "torch" in sys.modules and _dynamo_traces():
            outside: R = outside_graph(function)(*arguments, **options)
            return outside
        return function(*arguments, **options)

    return called


def dtype_name(dtype: Any) -> str:
    """``float32`` for NumPy's, PyTorch's and every array API library's float32, whatever its byte order."""
    if isinstance(dtype, np.dtype):
        return _numpy_name(dtype)
    name: str | None = getattr(dtype, "name", None)
    return name if name is not None else _last_word(dtype)


@cache
def _numpy_name(dtype: np.dtype[Any]) -> str:
    """NumPy puts the name together at every question."""
    return dtype.name


@cache
def _last_word(dtype: Any) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).rpartition(".")[2]


def _find(x: Any, role: str) -> str:
    refuse(x, role)
    backend = backends.of(x)
    if backend is None:
        raise TypeError(
            f"{role} must be an array: NumPy, CuPy, PyTorch, JAX, dask, MLX, xarray.DataArray or an array API library's; "
            f"got {qualified(type(x))} ({hints.for_x(x)})"
        )
    return backend.name
