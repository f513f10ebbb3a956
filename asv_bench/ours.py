"""keepnorm's side of each operation: NumPy arrays, but for the round trip, which is PyTorch's autograd with our kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np

import keepnorm as kn
from asv_bench import machine
from asv_bench.cases import TRIPS, Data
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
    x, axis, mask = d.x, d.axis, d.mask
    if mask is not None:
        return lambda: kn.moments(x, axis, where=mask)
    return lambda: kn.moments(x, axis)


def layer_norm(d: Data) -> Callable[[], Any]:
    x, weight, bias, axis, out = d.x, d.weight, d.bias, d.axis, d.out
    return lambda: kn.layer_norm(x, weight, bias, axes=axis, out=out)


def rms_norm(d: Data) -> Callable[[], Any]:
    x, weight, axis, out = d.x, d.weight, d.axis, d.out
    return lambda: kn.rms_norm(x, weight, axes=axis, out=out)


def group_norm(d: Data) -> Callable[[], Any]:
    x, weight, bias, axis, groups = d.x, d.weight, d.bias, d.axis, d.case.groups
    return lambda: kn.group_norm(x, weight, bias, groups=groups, channel=axis)


def instance_norm(d: Data) -> Callable[[], Any]:
    x, weight, bias, axis = d.x, d.weight, d.bias, d.axis
    return lambda: kn.instance_norm(x, weight, bias, channel=axis)


def backward(d: Data) -> Callable[[], Any]:
    vjp = kn.normalize_vjp(d.x, d.axis, d.weight, d.bias)[1]
    dy = d.dy
    return lambda: vjp(dy)


def layer_backward(d: Data) -> Callable[[], Any]:
    kept = tuple(a for a in range(d.x.ndim) if a not in d.reduced)
    vjp = kn.normalize_vjp(d.x, kept, d.weight, d.bias, affine=d.reduced)[1]
    dy = d.dy
    return lambda: vjp(dy)


def _trip(d: Data) -> Callable[[], Any]:
    from asv_bench.peers import torch_

    norms: dict[str, Callable[..., Any]] = {
        "round_trip": lambda x, weight, bias: kn.batch_norm(x, weight, bias, channel=1),
        "layer_trip": lambda x, weight, bias: kn.layer_norm(x, weight, bias, axes=-1),
        "rms_trip": lambda x, weight, bias: kn.rms_norm(x, weight, bias, axes=-1),
        "group_trip": lambda x, weight, bias: kn.group_norm(x, weight, bias, groups=d.case.groups, channel=1),
        "instance_trip": lambda x, weight, bias: kn.instance_norm(x, weight, bias, channel=1),
    }
    return torch_.round_trip_of(d, norms[d.case.operation])


_FORWARD = (batch_norm, inference, affine, moments, layer_norm, rms_norm, group_norm, instance_norm)
OPERATIONS = {f.__name__: f for f in (*_FORWARD, backward, layer_backward)} | dict.fromkeys(TRIPS, _trip)


def prepare(data: Data) -> Contestant:
    """Ours, ready to be measured inside machine.our_threads()."""
    operation = data.case.operation
    return Contestant(OPERATIONS[operation](data), _fetch(operation, data), machine.our_thread_count())


def _fetch(operation: str, data: Data) -> Callable[[Any], tuple[Any, ...]]:
    if operation == "moments":
        return lambda m: (m.mean, m.var)
    if operation in TRIPS:
        from asv_bench.peers import torch_

        return torch_.fetch_gradients(data)
    return tuple if operation in ("backward", "layer_backward") else lambda y: (y,)
