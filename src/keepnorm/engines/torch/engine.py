"""PyTorch tensors: the CPU kernels on their memory, or the CUDA kernels on theirs, with gradients of our own.

A tensor that is not plain memory (compiled, traced, batched by vmap, fake, meta, on another device) goes through the
standard engine, whose operations PyTorch sees one by one.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch._C import _functorch

from keepnorm.axes import Axes
from keepnorm.engines import dispatch, standard
from keepnorm.engines.host.pool import empty_like
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments
from keepnorm.precision import result_name

Tensor = Any

# Bytes of a result from which on it lies in NumPy's memory: NumPy asks the system for huge pages, PyTorch does not, and a
# forward pass over 13 MB took a quarter longer for that.
HUGE = 1 << 22

_FROM_NUMPY = (np.ndarray, np.generic)
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_STRIDED, _BFLOAT16 = torch.strided, torch.bfloat16


def moments(x: Tensor, axes: Axes, where: Tensor | None) -> Moments:
    """Count, mean and variance of each kept cell, differentiable where x is."""
    kernels = _kernels(x, where)
    if kernels is None:
        return _with_count(standard.moments(x, axes, where))
    if _differentiates(x):
        seen: list[Moments] = []
        shift, delta, m2 = _functions().Measure.apply(x, axes, where, seen)
        return _with_state(seen[0], shift, delta, m2, seen[0].count)
    return _as_tensors(kernels.moments(_raw(x), axes, _raw(where)))


def affine(x: Tensor, scale: Tensor, shift: Tensor | None, axes: Axes, out: Tensor | None) -> Tensor:
    """``x * scale + shift``."""
    differentiates = _differentiates(x, scale, shift)
    _refuse_out(out, differentiates)
    kernels = _kernels(x, scale, shift, out)
    if kernels is None:
        return standard.affine(x, scale, shift, axes, out)
    if differentiates:
        return _functions().Affine.apply(x, scale, shift, axes)
    y = _output(x) if out is None and not x.is_cuda else out
    given = _raw(x), _raw(scale), _raw(shift), axes
    if y is None:
        return kernels.affine(*given)  # its engine makes the result itself
    kernels.affine(*given, _raw(y))
    return y if out is None else _written(out)


def normalize(
    x: Tensor,
    axes: Axes,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    moments: Moments | None,
    where: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with given moments, or with those of x."""
    differentiates = _differentiates(x, weight, bias)
    _refuse_out(out, differentiates)
    kernels = _kernels(x, weight, bias, where, out, *_state_of(moments))
    if kernels is None:
        return standard.normalize(x, axes, weight, bias, eps, center, moments, where, out)
    if differentiates:
        return _functions().Normalize.apply(x, weight, bias, kernels, axes, eps, center, moments, where)
    y = _output(x) if out is None and not x.is_cuda else out
    given = _raw(x), axes, _raw(weight), _raw(bias), eps, center, _as_raw(moments), _raw(where)
    if y is None:
        return kernels.normalize(*given, None)  # its engine makes the result itself
    kernels.normalize(*given, _raw(y))
    return y if out is None else _written(out)


def normalize_with_moments(
    x: Tensor, axes: Axes, weight: Tensor | None, bias: Tensor | None, eps: float, where: Tensor | None
) -> tuple[Tensor, Moments]:
    """The normalised tensor and the moments that normalised it; only the tensor is differentiable."""
    kernels = _kernels(x, weight, bias, where)
    if kernels is None:
        return standard.normalize_with_moments(x, axes, weight, bias, eps, where)
    if _differentiates(x, weight, bias):
        seen = _as_tensors(kernels.moments(_raw(x), axes, _raw(where)))
        return _functions().Normalize.apply(x, weight, bias, kernels, axes, eps, True, None, where), seen
    y, state = kernels.normalize_with_moments(_raw(x), axes, _raw(weight), _raw(bias), eps, _raw(where))
    return _tensor(y), _as_tensors(state)


def normalize_vjp(
    x: Tensor,
    axes: Axes,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    moments: Moments | None,
    where: Tensor | None,
) -> tuple[Tensor, Callable[[Tensor], Gradients]]:
    """The normalised tensor, and the function from its gradient to those of x, weight and bias."""
    kernels = _kernels(x, weight, bias, where, *_state_of(moments))
    refuse_changed = _watch(x=x, weight=weight, where=where)
    if kernels is None or _differentiates(x, weight, bias):
        y, pull = standard.normalize_vjp(x, axes, weight, bias, eps, center, moments, where)
        return y, lambda dy: (refuse_changed(), pull(dy))[1]
    y, raw_vjp = kernels.normalize_vjp(_raw(x), axes, _raw(weight), _raw(bias), eps, center, _as_raw(moments), _raw(where))

    def vjp(dy: Tensor) -> Gradients:
        refuse_changed()
        if _kernels(dy) is not kernels or _differentiates(dy):
            return standard.normalize_vjp(x, axes, weight, bias, eps, center, moments, where)[1](dy)
        return Gradients(*(None if g is None else _tensor(g) for g in raw_vjp(_raw(dy))))

    return _tensor(y), vjp


def _watch(**tensors: Tensor | None) -> Callable[[], None]:
    """What refuses to go on once one of these tensors has been written to, as autograd does; inference tensors do not tell."""
    seen = [(name, t, t._version) for name, t in tensors.items() if isinstance(t, torch.Tensor) and not t.is_inference()]

    def refuse_changed() -> None:
        for name, tensor, version in seen:
            if tensor._version != version:
                raise RuntimeError(
                    f"{name} has been modified by an inplace operation since normalize_vjp, which needs it as it was: "
                    f"pass {name}.clone(), or change it after vjp; got version {tensor._version}, needed {version}"
                )

    return refuse_changed


def _kernels(*tensors: Any) -> ModuleType | None:
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
    if kind == "cuda" and dispatch.cuda_name() == "cuda":
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


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor stands for another one, as those inside torch.func's transforms do (and in batched gradients)."""
    return bool(_functorch.is_functorch_wrapped_tensor(tensor) or _functorch.is_legacy_batchedtensor(tensor))


def _differentiates(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in tensors)


def _refuse_out(out: Tensor | None, differentiates: bool) -> None:
    if out is not None and differentiates:
        raise RuntimeError("out= records no gradient: leave it out, or use torch.no_grad(); got a tensor that requires one")
    if out is not None and (out.is_neg() or out._is_zerotensor()):
        raise ValueError(
            "out must have memory that holds its values; got a tensor with a pending sign, or a zero without memory"
        )


@cache
def _has_bfloat16() -> bool:
    return find_spec("ml_dtypes") is not None


def _raw(tensor: Any) -> Any:
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


def _tensor(array: Any) -> Tensor:
    """A tensor on the memory of what a kernel gave back."""
    if isinstance(array, torch.Tensor):
        return array
    if dispatch.dtype_name(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view("uint16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def _output(x: Tensor) -> Tensor:
    """Memory for the result, with the strides of x where those leave no gaps; from HUGE on as NumPy's results have it."""
    dtype = x.dtype if x.is_floating_point() else getattr(torch, result_name(dispatch.dtype_name(x.dtype)))
    if x.is_cpu and x.numel() * dtype.itemsize >= HUGE:
        raw = _raw(x)
        return _tensor(empty_like(raw, raw.dtype if dtype is x.dtype else np.dtype(dispatch.dtype_name(dtype))))
    return torch.empty_like(x, dtype=dtype, requires_grad=False)


def _written(y: Tensor) -> Tensor:
    """The caller's y, after its memory was written to behind PyTorch's back: tell autograd, which may have saved it."""
    if not y.is_inference():
        torch.autograd.graph.increment_version(y)
    return y


def _state_of(given: Moments | None) -> tuple[Any, ...]:
    """The tensors of given moments; if they have a gradient, PyTorch must see how they are used."""
    if given is None:
        return ()
    parts = (given.shift, given.delta, given.m2)
    return (_SEEN,) if _differentiates(*parts) else tuple(p for p in parts if isinstance(p, torch.Tensor))


class _Seen:
    """Stands for moments with a gradient: no kernel takes it."""


_SEEN = _Seen()


def _as_raw(given: Moments | None) -> Moments | None:
    return None if given is None else _converted(given, _raw)


def _with_count(seen: Moments) -> Moments:
    """The same moments, whose count is a tensor where torch.export leaves a size open."""
    if isinstance(seen.count, torch.SymInt):
        seen.count = torch.full(seen.shape, seen.count, dtype=torch.int64, device=seen.shift.device)
    return seen


def _as_tensors(seen: Moments) -> Moments:
    return _converted(seen, _tensor)


def _converted(state: Moments, convert: Callable[[Any], Any]) -> Moments:
    """The same moments with every array of their state converted."""
    count = state.count if state.count is None or isinstance(state.count, int) else convert(state.count)
    exponent = None if state.exponent is None else convert(state.exponent)
    whole = _with_state(state, convert(state.shift), convert(state.delta), convert(state.m2), count)
    return whole.replaced(exponent=exponent)


def _with_state(like: Moments, shift: Any, delta: Any, m2: Any, count: Any) -> Moments:
    return like.replaced(count=count, shift=shift, delta=delta, m2=m2, export=None)


@cache
def _functions() -> Any:
    """The autograd functions: forward through the kernels; backward through them too, or through PyTorch if it is
    to be differentiated again.
    """
    from keepnorm.engines.torch import autograd

    return autograd.functions()
