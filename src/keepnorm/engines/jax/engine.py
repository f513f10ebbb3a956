"""JAX arrays: the CPU kernels on the memory of concrete ones, jax.numpy for traced ones and for other devices.

Under jit, grad, vmap, jvp and shard_map an array is a tracer, and operations are traced: those of the standard engine with
x64, and without it those of `traced`.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from keepnorm.axes import Axes
from keepnorm.engines import dispatch, standard
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.precision import result_name
from keepnorm.request import Request

Array = Any

# Where memory starts on such an address, XLA takes it without a copy.
_ALIGNED = 64


def moments(x: Array, axes: Axes, where: Array | None) -> Moments:
    """Count, mean and variance of each kept cell."""
    _register()
    if not is_concrete(x, where):
        found: Moments = _elsewhere(x, where).moments(x, axes, where)
        return found
    seen: Moments = dispatch.load("host").moments(np.asarray(x), axes, _raw(where))
    seen.export = export
    return seen


def omitting_moments(x: Array, axes: Axes) -> Moments:
    """The moments of the values that are no NaN."""
    _register()
    if not is_concrete(x):
        return moments(x, axes, x == x)
    seen: Moments = dispatch.load("host").omitting_moments(np.asarray(x), axes)
    seen.export = export
    return seen


def weighted_moments(x: Array, axes: Axes, weights: Array) -> Moments:
    """The moments of values that count as often as their weights say."""
    _register()
    if not is_concrete(x, weights):
        found: Moments = pure().weighted_moments(x, axes, weights)
        return found
    seen: Moments = dispatch.load("host").weighted_moments(np.asarray(x), axes, np.asarray(weights))
    seen.export = export
    return seen


def affine(x: Array, scale: Array, shift: Array | None, axes: Axes, out: None) -> Array:
    """``x * scale + shift``."""
    if not is_concrete(x, scale, shift):
        return _elsewhere(x, scale, shift).affine(x, scale, shift, axes, out)
    y = _output(x)
    dispatch.load("host").affine(np.asarray(x), _raw(scale), _raw(shift), axes, y)
    return _array(y, x)


def normalize(x: Array, request: Request, out: None) -> Array:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    if not is_concrete(x, *request.arrays, *_parts(request.moments)):
        return _elsewhere(x, *request.arrays).normalize(x, request, out)
    y = _output(x)
    dispatch.load("host").normalize(np.asarray(x), request.converted(np.asarray, _raw_moments), y)
    return _array(y, x)


def normalize_with_moments(x: Array, request: Request) -> tuple[Array, Moments]:
    """The normalised array and the moments that normalised it."""
    _register()
    if not is_concrete(x, *request.arrays):
        both: tuple[Array, Moments] = _elsewhere(x, *request.arrays).normalize_with_moments(x, request)
        return both
    y, seen = dispatch.load("host").normalize_with_moments(np.asarray(x), request.converted(np.asarray, _raw_moments))
    seen.export = export
    return _array(y, x), seen


def normalize_vjp(x: Array, request: Request) -> tuple[Array, Callable[[Array], Gradients]]:
    """The normalised array, and the function from its gradient to those of x, weight and bias."""
    if not is_concrete(x, *request.arrays, *_parts(request.moments)):
        pair: tuple[Array, Callable[[Array], Gradients]] = _elsewhere(x, *request.arrays).normalize_vjp(x, request)
        return pair
    y, raw_vjp = dispatch.load("host").normalize_vjp(np.asarray(x), request.converted(np.asarray, _raw_moments))

    def vjp(dy: Array) -> Gradients:
        if not is_concrete(dy):
            traced: Gradients = pure().normalize_vjp(x, request)[1](dy)
            return traced
        return Gradients(*(None if g is None else _array(g, x) for g in raw_vjp(_raw(dy))))

    return _array(y, x), vjp


def export(values: np.ndarray[Any, Any], dtype: str) -> Array:
    """A part of the float64 state, which JAX alone cannot hold without x64, as a JAX array of the dtype handed out."""
    import jax.numpy as jnp
    from jax.dtypes import canonicalize_dtype

    return jnp.asarray(np.asarray(values).astype(canonicalize_dtype(dtype)))


def is_concrete(*arrays: Any) -> bool:
    """Whether all of these are values in the memory of one CPU device (NumPy arrays are)."""
    import jax

    for array in arrays:
        if array is None or isinstance(array, np.ndarray):
            continue
        if isinstance(array, jax.core.Tracer):
            return False
        devices = array.devices()
        if len(devices) != 1 or next(iter(devices)).platform != "cpu":
            return False
    return True


def _elsewhere(x: Array, *others: Any) -> Any:
    """What serves arrays that the CPU kernels cannot read: the CUDA kernels on their own device, else jax.numpy."""
    import jax

    if not isinstance(x, jax.core.Tracer) and all(device.platform in ("gpu", "cuda") for device in x.devices()):
        from keepnorm.engines.cuda import jax as cuda_jax

        if cuda_jax.serves(x, *others):
            return cuda_jax
    return pure()


def pure() -> Any:
    """The engine of JAX's own operations: in float64 where there is float64."""
    from jax.dtypes import canonicalize_dtype

    if canonicalize_dtype("float64") == np.float64:
        return standard
    from keepnorm.engines.jax import traced

    return traced


def _raw(array: Array | None) -> np.ndarray[Any, Any] | None:
    return None if array is None else np.asarray(array)


def _parts(given: Moments | None) -> tuple[Any, ...]:
    return () if given is None else (given.shift, given.delta, given.m2)


def _raw_moments(given: Moments) -> Moments:
    count = given.count if given.count is None or isinstance(given.count, int) else np.asarray(given.count)
    shift, delta, m2 = (np.asarray(part, np.float64) for part in _parts(given))
    exponent = None if given.exponent is None else np.asarray(given.exponent)
    return given.replaced(count=count, shift=shift, delta=delta, m2=m2, exponent=exponent, export=None)


def _output(x: Array) -> np.ndarray[Any, Any]:
    """Memory for the result that starts where XLA wants it to, so that it becomes a JAX array as it is."""
    name = result_name(dispatch.dtype_name(x.dtype))
    dtype = np.dtype(x.dtype if name == x.dtype.name else name)
    memory = np.empty(x.size * dtype.itemsize + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + x.size * dtype.itemsize].view(dtype).reshape(x.shape)


def _array(y: np.ndarray[Any, Any], x: Array) -> Array:
    """y as a JAX array where x is, on the same memory if it is aligned."""
    import jax

    # device_put shares aligned memory; jnp.asarray would copy it.
    return jax.device_put(y, x.sharding if x.committed else None)


@cache
def _register() -> None:
    """Let Moments go in and out of jit, vmap and scan: its arrays are leaves."""
    import jax

    def flatten(m: Moments) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        fixed = m.count is None or isinstance(m.count, int)
        # A leaf that is None is none.
        leaves = (m.shift, m.delta, m.m2, m.exponent, m.sum_weights, *(() if fixed else (m.count,)))
        return leaves, (m.count if fixed else ..., m.keep, m.ndim, m.dtype)

    def unflatten(rest: tuple[Any, ...], leaves: tuple[Any, ...]) -> Moments:
        count, keep, ndim, dtype = rest
        shift, delta, m2, exponent, weights, *counts = leaves
        # `export` is for the float64 state on NumPy; leaves that come out of a transform are JAX arrays.
        made = export if isinstance(shift, np.ndarray) else None
        known = {"keep": keep, "ndim": ndim, "dtype": dtype, "export": made, "exponent": exponent, "sum_weights": weights}
        return Moments(counts[0] if counts else count, shift, delta, m2, **known)

    jax.tree_util.register_pytree_node(Moments, flatten, unflatten)
