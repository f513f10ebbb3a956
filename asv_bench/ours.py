"""keepnorm's side of each operation: NumPy arrays, but for the round trip, which is PyTorch's autograd with our kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np

import keepnorm as kn
from asv_bench import machine
from asv_bench.cases import Data
from asv_bench.contestant import Contestant


def batch_norm(d: Data) -> Callable[[], Any]:
    x, weight, bias, axis, out = d.x, d.weight, d.bias, d.axis, d.out
    return lambda: kn.batch_norm(x, weight, bias, channel=axis, out=out)


def inference(d: Data) -> Callable[[], Any]:
    running = kn.Moments.from_mean_var(
        d.mean.astype(np.float32), d.var.astype(np.float32), keep=d.axis, ndim=d.x.ndim, count=d.x.size
    )
    x, weight, bias, axis, out = d.x, d.weight, d.bias, d.axis, d.out
    return lambda: kn.batch_norm(x, weight, bias, channel=axis, moments=running, out=out)


def affine(d: Data) -> Callable[[], Any]:
    x, scale, shift, axis, out = d.x, d.weight, d.bias, d.axis, d.out
    return lambda: kn.affine(x, scale, shift, keep=axis, out=out)


def moments(d: Data) -> Callable[[], Any]:
    x, axis = d.x, d.axis
    return lambda: kn.moments(x, axis)


def layer_norm(d: Data) -> Callable[[], Any]:
    x, weight, bias, axis, out = d.x, d.weight, d.bias, d.axis, d.out
    return lambda: kn.layer_norm(x, weight, bias, axes=axis, out=out)


def rms_norm(d: Data) -> Callable[[], Any]:
    x, weight, axis, out = d.x, d.weight, d.axis, d.out
    return lambda: kn.rms_norm(x, weight, axes=axis, out=out)


def backward(d: Data) -> Callable[[], Any]:
    vjp = kn.normalize_vjp(d.x, d.axis, d.weight, d.bias)[1]
    dy = d.dy
    return lambda: vjp(dy)


def layer_backward(d: Data) -> Callable[[], Any]:
    kept = tuple(a for a in range(d.x.ndim) if a not in d.reduced)
    vjp = kn.normalize_vjp(d.x, kept, d.weight, d.bias, affine=d.reduced)[1]
    dy = d.dy
    return lambda: vjp(dy)


def round_trip(d: Data) -> Callable[[], Any]:
    from asv_bench.peers import torch_

    return torch_.round_trip_of(d, lambda x, weight, bias: kn.batch_norm(x, weight, bias, channel=1))


OPERATIONS = {
    f.__name__: f for f in (batch_norm, inference, affine, moments, layer_norm, rms_norm, backward, layer_backward, round_trip)
}


def prepare(data: Data) -> Contestant:
    """Ours, ready to be measured inside machine.our_threads()."""
    operation = data.case.operation
    return Contestant(OPERATIONS[operation](data), _fetch(operation, data), machine.our_thread_count())


def _fetch(operation: str, data: Data) -> Callable[[Any], tuple[Any, ...]]:
    if operation == "moments":
        return lambda m: (m.mean, m.var)
    if operation == "round_trip":
        from asv_bench.peers import torch_

        return torch_.fetch_gradients(data)
    return tuple if operation in ("backward", "layer_backward") else lambda y: (y,)
