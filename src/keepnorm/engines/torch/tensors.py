"""The memory of tensors, as kernels take it, and what tells whether they can work on it."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch._C import _functorch

from keepnorm.engines import dispatch
from keepnorm.engines.backends import has_cuda_kernels
from keepnorm.engines.host.pool import empty_like
from keepnorm.moments import Moments
from keepnorm.precision import result_name
from keepnorm.states.reshaping import with_each
from keepnorm.tuning import POOLED

Tensor = Any

# Bytes of a result from which on it lies in NumPy's memory: NumPy asks the system for huge pages, PyTorch does not, and a
# forward pass over 13 MB took a quarter longer for that.
HUGE = POOLED

_FROM_NUMPY = (np.ndarray, np.generic)
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_STRIDED, _BFLOAT16 = torch.strided, torch.bfloat16


def kernels_of(*tensors: Any) -> ModuleType | None:
    """The kernels that can work on the memory of these tensors, or None where only PyTorch's own operations are right."""
    if _is_watched():
        return None
    device: Any = None
    for tensor in tensors:
        if tensor is None or isinstance(tensor, _FROM_NUMPY):
            continue
        if type(tensor) not in _PLAIN or _is_wrapped(tensor):
            return None
        if tensor.layout is not _STRIDED or tensor.is_quantized:
            got = f"{tensor.layout}, {tensor.dtype}"
            raise TypeError(f"x must be a dense tensor: pass x.to_dense() or x.dequantize(); got {got}")
        if tensor.dtype is _BFLOAT16 and not _has_bfloat16():
            return None
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise ValueError(f"x and what goes with it must be on one device; got {device} and {tensor.device}")
    kind = device.type
    if kind == "cpu":
        return dispatch.load("host")
    if kind == "cuda" and has_cuda_kernels():
        return dispatch.load("cuda")
    return None


def _is_watched() -> bool:
    """Whether something looks on at every operation: a compiler, a dispatch mode (fake tensors, make_fx) or forward-mode
    gradients.

    PyTorch has no public question for the last two; where a version lacks the private one, nothing of the kind exists.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    modes = getattr(torch._C, "_len_torch_dispatch_stack", int)()
    return bool(modes) or torch.autograd.forward_ad._current_level >= 0


def serves_graph(*tensors: Any) -> bool:
    """Whether what looks on is a tracer, and these stand for plain tensors of the CPU, which kernels take where it runs."""
    if torch.jit.is_tracing() or torch.autograd.forward_ad._current_level >= 0:
        return False
    given = [t for t in tensors if not (t is None or isinstance(t, _FROM_NUMPY))]
    return all(_stands_for_plain(t) for t in given)


def _stands_for_plain(tensor: Any) -> bool:
    from torch._subclasses import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    if not (type(tensor) in _PLAIN or isinstance(tensor, FakeTensor | FunctionalTensor)) or _is_wrapped(tensor):
        return False
    known = tensor.is_cpu and tensor.layout is _STRIDED and not tensor.is_quantized
    return bool(known and (tensor.dtype is not _BFLOAT16 or _has_bfloat16()))


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor stands for another one, as those inside torch.func's transforms do (and in batched gradients)."""
    return bool(_functorch.is_functorch_wrapped_tensor(tensor) or _functorch.is_legacy_batchedtensor(tensor))


def needs_gradient(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in tensors)


def refuse_out(out: Tensor | None, differentiates: bool) -> None:
    if out is not None and differentiates:
        raise RuntimeError("out= records no gradient: leave it out, or use torch.no_grad(); got a tensor that requires one")
    if out is not None and (out.is_neg() or out._is_zerotensor()):
        raise ValueError(
            "out must have memory that holds its values; got a tensor with a pending sign, or a zero without memory"
        )


@cache
def _has_bfloat16() -> bool:
    return find_spec("ml_dtypes") is not None


def raw(tensor: Any) -> Any:
    """The tensor's memory as what the kernels take: a NumPy array with its strides, or the tensor itself on CUDA."""
    if tensor is None or isinstance(tensor, _FROM_NUMPY):
        return tensor
    if not tensor.is_cpu:
        return tensor.detach()
    if tensor.dtype is _BFLOAT16:
        from ml_dtypes import bfloat16

        return tensor.detach().resolve_neg().view(torch.uint16).numpy().view(bfloat16)
    if not tensor.requires_grad:
        try:
            return tensor.numpy()
        except RuntimeError:  # a pending sign, or a zero without memory: asking for both costs more than all else here
            pass
    return tensor.numpy(force=True)


def as_tensor(array: Any) -> Tensor:
    """A tensor on the memory of what a kernel gave back."""
    if isinstance(array, torch.Tensor):
        return array
    array = np.asarray(array)  # NumPy's arithmetic turns an array without axes into a scalar
    if dispatch.dtype_name(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def output(x: Tensor) -> Tensor:
    """Memory for the result, with the strides of x where those leave no gaps; from HUGE on as NumPy's results have it."""
    dtype = x.dtype if x.is_floating_point() else getattr(torch, result_name(dispatch.dtype_name(x.dtype)))
    if x.is_cpu and x.numel() * dtype.itemsize >= HUGE:
        memory = raw(x)
        return as_tensor(empty_like(memory, memory.dtype if dtype is x.dtype else np.dtype(dispatch.dtype_name(dtype))))
    return torch.empty_like(x, dtype=dtype, requires_grad=False)


def written(y: Tensor) -> Tensor:
    """The caller's y, after its memory was written to behind PyTorch's back: tell autograd, which may have saved it."""
    if not y.is_inference():
        torch.autograd.graph.increment_version(y)
    return y


def tensors_of(given: Moments | None) -> tuple[Any, ...]:
    """The tensors of given moments; if they have a gradient, PyTorch must see how they are used."""
    if given is None:
        return ()
    parts = (given.shift, given.delta, given.m2)
    return (_SEEN,) if needs_gradient(*parts) else tuple(p for p in parts if isinstance(p, torch.Tensor))


class _Seen:
    """Stands for moments with a gradient: no kernel takes it."""


_SEEN = _Seen()


def raw_moments(given: Moments) -> Moments:
    return _converted(given, raw)


def with_count(seen: Moments) -> Moments:
    """The same moments, whose count is a tensor where torch.export leaves a size open."""
    if isinstance(seen.count, torch.SymInt):
        seen.count = torch.full(seen.shape, seen.count, dtype=torch.int64, device=seen.shift.device)
    return seen


def tensor_moments(seen: Moments) -> Moments:
    return _converted(seen, as_tensor)


def _converted(state: Moments, convert: Callable[[Any], Any]) -> Moments:
    """The same moments with every array of their state converted."""
    converted: Moments = with_each(state, convert).replaced(export=None)
    return converted


def with_state(like: Moments, shift: Any, delta: Any, m2: Any, count: Any) -> Moments:
    return like.replaced(count=count, shift=shift, delta=delta, m2=m2, export=None)
