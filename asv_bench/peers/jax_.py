"""JAX under jit, on the CPU, with the fast variance that Flax takes by default: mean(x^2) - mean(x)^2."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asv_bench import machine
from asv_bench.cases import EPS, Data, beside
from asv_bench.contestant import Contestant

Array = Any


def prepare(name: str, data: Data) -> Contestant:
    del name  # one peer in this file
    function, arguments = _OPERATIONS[data.case.operation](data)
    device = jax.devices("cpu")[0]
    placed = [jax.device_put(a, device) for a in arguments]
    compiled = jax.jit(function)
    # XLA's pool has as many threads as there are cores for this process.
    return Contestant(lambda: jax.block_until_ready(compiled(*placed)), _fetch, machine.cores())


def _norm(x: Array, weight: Array, bias: Array, reduced: tuple[int, ...]) -> Array:
    mean = x.mean(reduced, keepdims=True)
    var = jnp.square(x).mean(reduced, keepdims=True) - jnp.square(mean)
    return (x - mean) * (jax.lax.rsqrt(var + EPS) * weight) + bias


def _batch_norm(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    return (lambda x, w, b: _norm(x, w, b, d.reduced)), (d.x, beside(d, d.weight), beside(d, d.bias))


def _inference(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    def infer(x: Array, mean: Array, var: Array, weight: Array, bias: Array) -> Array:
        return (x - mean) * (jax.lax.rsqrt(var + EPS) * weight) + bias

    return infer, (d.x, *(beside(d, a) for a in (d.mean, d.var, d.weight, d.bias)))


def _rms_norm(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    def norm(x: Array, weight: Array) -> Array:
        return x * (jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPS) * weight)

    return norm, (d.x, d.weight)


def _moments(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    def mean_var(x: Array) -> Any:
        x = x.astype(jnp.float32) if x.dtype == jnp.uint8 else x
        return x.mean(d.reduced, where=d.mask), x.var(d.reduced, where=d.mask)

    return mean_var, (d.x,)


def _backward(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    """The whole gradient: JAX does not keep what the forward pass computed from one call to the next."""

    def gradients(x: Array, weight: Array, bias: Array, dy: Array) -> Any:
        shape = [1] * x.ndim
        shape[d.axis] = -1
        norm = jax.vjp(lambda x, w, b: _norm(x, w.reshape(shape), b.reshape(shape), d.reduced), x, weight, bias)
        return norm[1](dy)

    return gradients, (d.x, d.weight, d.bias, d.dy)


def _group_norm(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    axis, groups = d.axis, d.case.groups if d.case.operation == "group_norm" else d.x.shape[d.axis]
    split = (*d.x.shape[:axis], groups, d.x.shape[axis] // groups, *d.x.shape[axis + 1 :])
    reduced = tuple(a for a in range(1, len(split)) if a != axis)

    def norm(x: Array, weight: Array, bias: Array) -> Array:
        parts = x.reshape(split)
        mean = parts.mean(reduced, keepdims=True)
        var = jnp.square(parts).mean(reduced, keepdims=True) - jnp.square(mean)
        return ((parts - mean) * jax.lax.rsqrt(var + EPS)).reshape(x.shape) * weight + bias

    return norm, (d.x, beside(d, d.weight), beside(d, d.bias))


_OPERATIONS = {
    "group_norm": _group_norm,
    "instance_norm": _group_norm,
    "batch_norm": _batch_norm,
    "inference": _inference,
    "layer_norm": _batch_norm,
    "rms_norm": _rms_norm,
    "moments": _moments,
    "backward": _backward,
}


def _fetch(result: Any) -> tuple[Any, ...]:
    return tuple(np.asarray(a, np.float32) for a in jax.tree.leaves(result))
