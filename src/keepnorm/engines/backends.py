"""The array libraries that are served: a row for each, and an engine of the row's name. A new library is a row and a file.

========================= ==================================================================================
array                     engine
========================= ==================================================================================
numpy.ndarray, memmap     host: CPU kernels, without a copy
torch.Tensor              torch: CPU kernels on its memory; on another device the CUDA kernels or torch itself
jax.Array                 jax: CPU kernels where it is concrete, jax.numpy where it is traced
dask.array.Array          dask: lazy, one task for each chunk, moments merged in a tree
cupy.ndarray              cuda: CUDA kernels if numba-cuda is installed, else CuPy itself
xarray.DataArray          its data's engine; names, coordinates and attributes stay
mlx.core.array            mlx: MLX's operations on the CPU, in float64
any array API array       standard: the array's own namespace
========================= ==================================================================================
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import array_api_compat as compat
import numpy as np


class Backend(NamedTuple):
    """One library.

    Attributes
    ----------
    name : str
        Of its engine: a module of keepnorm.engines, or a folder with an engine.py.
    serves : str
        Its arrays, in words.
    needs : tuple of str
        The packages that must be installed.
    install : str
        How to get them.
    owns : function
        Whether an array is of this library; it imports nothing.
    writable : bool
        Whether `out=` can be written to.
    takes : tuple of str
        The engines whose arrays may come beside its own, as weights and masks, because the library takes them for its own.
    """

    name: str
    serves: str
    needs: tuple[str, ...]
    install: str
    owns: Callable[[Any], bool]
    writable: bool = True
    takes: tuple[str, ...] = ()


def _comes_from(package: str) -> Callable[[Any], bool]:
    return lambda x: any(base.__module__.partition(".")[0] == package for base in type(x).__mro__)


def _is_data_array(x: Any) -> bool:
    return type(x).__name__ == "DataArray" and _comes_from("xarray")(x)


def _has_namespace(x: Any) -> bool:
    return hasattr(x, "__array_namespace__") and not _comes_from("sparse")(x)


_PIP = "python -m pip install"

# The first that owns an array serves it.
BACKENDS = (
    Backend("host", "NumPy arrays", ("numpy", "numba"), f"{_PIP} keepnorm", lambda x: type(x) in (np.ndarray, np.memmap)),
    Backend("torch", "PyTorch tensors", ("torch",), f"{_PIP} torch", compat.is_torch_array),
    Backend("jax", "JAX arrays", ("jax",), f"{_PIP} jax", compat.is_jax_array, writable=False, takes=("host",)),
    Backend(
        "dask", "dask arrays", ("dask",), f'{_PIP} "keepnorm[dask]"', compat.is_dask_array, writable=False, takes=("host",)
    ),
    Backend("cuda", "CuPy arrays and CUDA tensors", ("numba-cuda",), f'{_PIP} "keepnorm[cuda13]"', compat.is_cupy_array),
    Backend("xarray", "labelled arrays", ("xarray",), f"{_PIP} xarray", _is_data_array),
    Backend("mlx", "MLX arrays", ("mlx",), f"{_PIP} mlx", _comes_from("mlx")),
    Backend("standard", "any array API library's arrays", ("array-api-compat",), f"{_PIP} keepnorm", _has_namespace),
)
BY_NAME = {backend.name: backend for backend in BACKENDS}


def of(x: Any) -> Backend | None:
    """The row of x: None if no library owns it. What the CUDA kernels cannot serve here is left to its own operations."""
    found = next((backend for backend in BACKENDS if backend.owns(x)), None)
    return BY_NAME["standard"] if found is not None and found.name == "cuda" and not has_cuda_kernels() else found


@cache
def has_cuda_kernels() -> bool:
    """Whether the CUDA kernels are installed."""
    return find_spec("numba_cuda") is not None and find_spec("keepnorm.engines.cuda.engine") is not None
