"""JAX arrays on a CUDA device, through the CUDA kernels: taken and given back by DLPack, which orders the two streams.

CuPy owns the memory in between. A state stays with CuPy in float64, which JAX without x64 cannot hold; what is handed out
is JAX's again.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

from keepnorm.axes import Axes
from keepnorm.engines.cuda import engine as cuda
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.request import Request

Array = Any


def serves(*arrays: Any) -> bool:
    """Whether all of these are values in the memory of one CUDA device that the kernels can take."""
    import jax

    devices = set()
    for array in arrays:
        if array is None:
            continue
        if isinstance(array, jax.core.Tracer) or not isinstance(array, jax.Array):
            return False
        if str(array.dtype) == "bfloat16" or len(array.devices()) != 1:  # CuPy takes no bfloat16 through DLPack
            return False
        devices |= array.devices()
    return len(devices) == 1 and next(iter(devices)).platform in ("gpu", "cuda") and _installed()


@cache
def _installed() -> bool:
    return all(find_spec(name) is not None for name in ("cupy", "numba_cuda"))


def moments(x: Array, axes: Axes, where: Array | None) -> Moments:
    """Count, mean and variance of each kept cell."""
    return _exported(cuda.moments(_taken(x), axes, _taken(where)))


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: None) -> Array:
    """``x * scale + shift``; `out` is always None, since no JAX array can be written to."""
    return _given(cuda.affine(_taken(x), _taken(scale), _taken(shift), axes, out))


def normalize(x: Array, request: Request, out: None) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    return _given(cuda.normalize(_taken(x), _on_device(request, x), out))


def normalize_with_moments(x: Array, request: Request) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalised it."""
    y, seen = cuda.normalize_with_moments(_taken(x), _on_device(request, x))
    return _given(y), _exported(seen)


def normalize_vjp(x: Array, request: Request) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and the function from its gradient to those of x, weight and bias."""
    y, raw = cuda.normalize_vjp(_taken(x), _on_device(request, x))

    def vjp(dy: Array) -> Gradients:
        return Gradients(*(None if g is None else _given(g) for g in raw(_taken(dy))))

    return _given(y), vjp


def _taken(array: Array | None) -> Array | None:
    """A JAX array as CuPy's, on the same memory."""
    if array is None:
        return None
    import cupy

    return cupy.from_dlpack(array)


def _given(array: Array) -> Array:
    """A CuPy array as JAX's, on the same memory."""
    import jax

    return jax.dlpack.from_dlpack(array)


def _exported(seen: Moments) -> Moments:
    seen.export = export
    return seen


def export(values: Array, dtype: str) -> Array:
    """A part of the float64 state as a JAX array of the dtype handed out, float32 without x64."""
    from jax.dtypes import canonicalize_dtype

    return _given(values.astype(canonicalize_dtype(dtype)))


def _on_device(request: Request, x: Array) -> Request:
    """The request with arrays of CuPy on the device of x."""
    return request.converted(_taken, lambda moments: _state(moments, x))


def _state(moments: Moments, x: Array) -> Moments:
    """Given moments on the device of x, whatever library holds them."""
    import cupy

    with cupy.cuda.Device(next(iter(x.devices())).local_hardware_id):
        count = moments.count
        if count is not None and not isinstance(count, int):
            count = cupy.asarray(_plain(count))
        parts = (cupy.asarray(_plain(part), cupy.float64) for part in (moments.shift, moments.delta, moments.squares))
        return Moments(count, *parts, keep=moments.keep, ndim=moments.ndim, dtype=moments.dtype)


def _plain(values: Array) -> Array:
    import numpy as np

    return values if type(values).__module__.partition(".")[0] == "cupy" else np.asarray(values)
