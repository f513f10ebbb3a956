"""PyTorch: eager and compiled, on tensors that share the arrays' memory; a last channel becomes a channels-last view."""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from asv_bench import machine
from asv_bench.cases import EPS, LAYERS, TRIPS, Data
from asv_bench.contestant import Contestant

Tensor = Any


def prepare(name: str, data: Data) -> Contestant:
    """Eager operations as they are, or through torch.compile for this one shape."""
    torch.set_num_threads(machine.cores())
    operation = data.case.operation
    if operation == "backward":
        return Contestant(_backward(data), fetch_gradients(data), torch.get_num_threads())
    if operation == "layer_backward":
        return Contestant(_layer_backward(data), lambda grads: tuple(map(_array, grads)), torch.get_num_threads())
    if operation in TRIPS:
        return Contestant(round_trip_of(data, _TRIPS[operation](data)), fetch_gradients(data), torch.get_num_threads())
    function, arguments = _OPERATIONS[operation](data)
    if name == "compile":
        function = _compiled(function)
    fetch = _fetch_moments if operation == "moments" else _fetch_output(data)
    return Contestant(partial(function, *arguments), fetch, torch.get_num_threads())


def tensor(a: np.ndarray[Any, Any]) -> Tensor:
    """A tensor on the memory of an array; bfloat16 travels as its bits."""
    if a.dtype.name == "bfloat16":
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def round_trip_of(data: Data, norm: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], Any]:
    """Forward, then the gradients of x, weight and bias, through autograd; our side uses it with our norm."""
    leaves = _leaves(data)
    dy = _channel_second(data, data.dy)
    wanted = leaves[:2] if data.case.operation == "rms_trip" else leaves  # PyTorch's RMS norm has no bias
    parameters = (*leaves[:2], None) if data.case.operation == "rms_trip" else leaves
    return lambda: torch.autograd.grad(norm(*parameters), wanted, dy)


def fetch_gradients(data: Data) -> Callable[[Any], tuple[Any, ...]]:
    if data.case.operation in LAYERS:
        return lambda grads: tuple(map(_array, grads))
    return lambda grads: (np.moveaxis(_array(grads[0]), 1, data.axis), *map(_array, grads[1:]))


def _train(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True, 0.1, EPS)


def _batch_norm(d: Data) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    return _train, (_channel_second(d, d.x), tensor(d.weight), tensor(d.bias))


def _inference(d: Data) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    def infer(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, False, 0.1, EPS)

    return infer, (_channel_second(d, d.x), *map(tensor, (d.mean, d.var, d.weight, d.bias)))


def _affine(d: Data) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    shape = [1] * d.x.ndim
    shape[1] = -1
    x, scale, shift = _channel_second(d, d.x), tensor(d.weight).reshape(shape), tensor(d.bias).reshape(shape)
    return (lambda x, scale, shift: torch.addcmul(shift, x, scale)), (x, scale, shift)


def _layer_norm(d: Data) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    size = d.x.shape[-1:]
    return (lambda x, w, b: F.layer_norm(x, size, w, b, EPS)), (tensor(d.x), tensor(d.weight), tensor(d.bias))


def _rms_norm(d: Data) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    size = d.x.shape[-1:]
    return (lambda x, w: F.rms_norm(x, size, w, EPS)), (tensor(d.x), tensor(d.weight))


def _group_norm(d: Data) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    groups = d.case.groups
    return (lambda x, w, b: F.group_norm(x, groups, w, b, EPS)), (_channel_second(d, d.x), tensor(d.weight), tensor(d.bias))


def _instance_norm(d: Data) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.instance_norm(x, weight=weight, bias=bias, eps=EPS)

    return norm, (_channel_second(d, d.x), tensor(d.weight), tensor(d.bias))


def _moments(d: Data) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    convert = not np.issubdtype(d.x.dtype, np.floating) and d.x.dtype.name != "bfloat16"

    def var_mean(x: Tensor) -> Any:
        return torch.var_mean(x.float() if convert else x, d.reduced, correction=0)

    return var_mean, (tensor(d.x),)


def _backward(d: Data) -> Callable[[], Any]:
    leaves = _leaves(d)
    y, dy = _train(*leaves), _channel_second(d, d.dy)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def _layer_backward(d: Data) -> Callable[[], Any]:
    norm, values = _layer_norm(d)
    leaves = tuple(value.detach().requires_grad_() for value in values)
    y, dy = norm(*leaves), tensor(d.dy)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def _rms_trip(d: Data) -> Callable[..., Tensor]:
    return lambda x, weight, _: F.rms_norm(x, d.x.shape[-1:], weight, EPS)


_TRIPS: dict[str, Callable[[Data], Callable[..., Tensor]]] = {
    "round_trip": lambda _: _train,
    "layer_trip": lambda d: _layer_norm(d)[0],
    "rms_trip": _rms_trip,
    "group_trip": lambda d: _group_norm(d)[0],
    "instance_trip": lambda d: _instance_norm(d)[0],
}

_OPERATIONS = {
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "inference": _inference,
    "affine": _affine,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "moments": _moments,
}


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise ImportError("torch.compile needs a C++ compiler; got none of c++, g++, clang++ and cl on the path")
    # Without it, the ninth shape of one function would silently run eager.
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def _channel_second(d: Data, a: np.ndarray[Any, Any]) -> Tensor:
    """The tensor as PyTorch's norms want it: the channel second, layers as they are."""
    return tensor(a) if d.case.operation in LAYERS else torch.movedim(tensor(a), d.axis, 1)


def _leaves(d: Data) -> tuple[Tensor, Tensor, Tensor]:
    values = (_channel_second(d, d.x), tensor(d.weight), tensor(d.bias))
    x, weight, bias = (value.detach().requires_grad_() for value in values)
    return x, weight, bias


def _fetch_output(d: Data) -> Callable[[Any], tuple[Any, ...]]:
    if d.case.operation in LAYERS:
        return lambda y: (_array(y),)
    return lambda y: (np.moveaxis(_array(y), 1, d.axis),)


def _fetch_moments(result: Any) -> tuple[Any, ...]:
    return _array(result[1]), _array(result[0])


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    value = value.detach()
    array: np.ndarray[Any, Any] = (value if value.dtype is torch.float64 else value.float()).numpy()
    return array
