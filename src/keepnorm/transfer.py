"""Small arrays (parameters, running moments) between array libraries: to NumPy, or to where another array is."""

import sys
from typing import Any

import array_api_compat as compat
import numpy as np

from keepnorm.subclasses import refuse

Array = Any

# A tuple: torch.compile, which traces `read`, does not know NumPy's types joined by `|`.
_HERE = (np.ndarray, np.generic, float)


def to_numpy(values: Array) -> Array:
    """`values` as a NumPy array, from any library and device; without a copy where the memory can be shared.

    Raises
    ------
    TypeError
        If it is masked, or another array whose meaning would be lost.
    """
    refuse(values, "a parameter or running moment")
    if isinstance(values, np.ndarray):  # asked first: torch.compile gives NumPy's arrays the methods of its tensors
        return np.asarray(values)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # which NumPy has not; float32 holds all its values
            values = values.float()
    elif compat.is_cupy_array(values):
        values = values.get()
    return np.asarray(values)


def read(values: Array) -> Any:
    """`values` as a NumPy array where they lie in this process's memory; None where they are traced, lazy or on a device."""
    if isinstance(values, _HERE):
        return np.asarray(values)
    if compat.is_torch_array(values) and type(values).__module__.startswith("torch"):
        plain = values.detach()  # which a trace would wrap
        return to_numpy(plain) if plain.is_cpu and not is_passing(plain) else None
    if compat.is_jax_array(values) and not isinstance(values, sys.modules["jax"].core.Tracer):
        return np.asarray(values) if all(device.platform == "cpu" for device in values.devices()) else None
    return None


def like(values: Array | None, x: Array) -> Array | None:
    """`values` in the library and on the device of x; as they are where they are there, or where x's library takes NumPy's."""
    if values is None or type(values) is type(x) is np.ndarray:
        return values
    if compat.is_numpy_array(x):
        return to_numpy(values)
    if compat.is_jax_array(x) or compat.is_dask_array(x):
        return values if _same(values, x) else to_numpy(values)
    if not compat.is_array_api_obj(x):
        return values
    xp = compat.array_namespace(x)
    if not hasattr(x, "device"):  # MLX's
        return values if _same(values, x) else xp.asarray(to_numpy(values))
    if _same(values, x):
        return values if compat.device(values) == compat.device(x) else compat.to_device(values, compat.device(x))
    # A copy: some libraries warn of memory that they may not write to, and none of them may change ours.
    return xp.asarray(to_numpy(values).copy(), device=compat.device(x))


def fixed(values: Array) -> Array:
    """`values` without their history, where the library keeps one for gradients."""
    return values.detach() if hasattr(values, "detach") else values


def lasting(values: Array) -> Array:
    """`values` as something to remember: without their history, and not of a trace that ends.

    Raises
    ------
    TypeError
        If they are traced by JAX or PyTorch, batched, or without memory.
    """
    if is_passing(values):
        raise TypeError(
            "running moments cannot be updated from tensors that have no values to keep: inside torch.func.vmap and grad, "
            "torch.export, make_fx or torch.jit.trace, or of fake or meta tensors. Train outside, or trace inference, "
            f"bn(x, training=False); got {type(values).__name__} on {values.device}"
        )
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(values, jax.core.Tracer):
        raise TypeError(
            "running moments cannot be updated inside jax.jit, jax.grad or jax.vmap, whose values end with the trace: call "
            "bn(x, training=True) or bn.vjp(x, training=True) outside, or bn.update(keepnorm.moments(x, keep)) after it; "
            f"got {type(values).__name__}"
        )
    return fixed(values)


def is_passing(values: Array) -> bool:
    """Whether this is a tensor of PyTorch that stands for values that come later or for many at once, or has no memory."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(values, torch.Tensor):
        return False
    if torch.compiler.is_compiling():
        return True
    from torch._C import _functorch
    from torch._subclasses import FakeTensor
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return bool(
        values.is_meta
        or isinstance(values, FakeTensor)
        or _functorch.is_functorch_wrapped_tensor(values)
        or torch.jit.is_tracing()
        or get_proxy_mode() is not None
    )


def _same(values: Array, x: Array) -> bool:
    return compat.is_array_api_obj(values) and compat.array_namespace(values) is compat.array_namespace(x)
