"""PyTorch: torch.nn.functional on CPU tensors, gradients by torch.autograd."""

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F

from ..cases import Case
from ..data import Array, Data
from ..oracle import Answer
from . import Limit, masked, rms_bias, views

VERSIONS = ("torch",)
LIMITS = (
    Limit("no norm takes a mask", masked),
    Limit("RMSNorm has no bias", rms_bias),
    Limit("batch_norm refuses eps=0 in training", lambda c: c.operation == "batch" and not c.eps and c.mode != "inference"),
    Limit("the running variance is always the sample variance", lambda c: c.mode == "update" and c.correction == 0),
    Limit(
        "raises on one value per channel in training",
        lambda c: c.operation in ("batch", "instance") and c.count == 1 and c.mode != "inference",
    ),
    Limit(
        "the backward of group_norm raises 'tensor does not have a device' with a bias but no weight",
        lambda c: c.operation == "group" and c.mode == "backward" and c.bias and not c.weight,
    ),
)


def to_torch(x: Array | None) -> torch.Tensor | None:
    """A tensor on the same memory, where its strides can be a tensor's."""
    if x is None:
        return None
    if any(s < 0 for s in x.strides):
        x = np.array(x, order="K")  # a tensor has no negative strides
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def to_numpy(t: torch.Tensor | None) -> Array | None:
    """The values of a tensor."""
    if t is None:
        return None
    t = t.detach()
    return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if t.dtype == torch.bfloat16 else t.numpy()


def answer(case: Case, data: Data) -> Answer:
    """PyTorch's answer."""
    view = view_of(case)
    x = to_torch(view.there(data.x)).detach()
    w, b = (
        None if p is None else to_torch(p if case.operation in ("layer", "rms") else p.reshape(-1))
        for p in (data.weight, data.bias)
    )
    leaves = [t for t in (x, w, b) if t is not None]
    backward = case.mode == "backward"
    for t in leaves:
        t.requires_grad_(backward)
    mean, var = (to_torch(p.reshape(-1).copy()) for p in (data.mean, data.var))
    half = x.dtype in (torch.float16, torch.bfloat16)
    if half and (case.operation == "rms" or (case.operation != "batch" and (w is None or b is None))):
        # These take parameters in float32 only as a pair.
        y = norm(case, data, x, *(None if p is None else p.to(x.dtype) for p in (w, b)), mean, var)
    else:
        y = norm(case, data, x, w, b, mean, var)
    result = Answer(view.back(to_numpy(y)))
    if backward:
        gradients = list(torch.autograd.grad(y, leaves, to_torch(view.there(data.dy))))
        dx, dw, db = (None if t is None else to_numpy(gradients.pop(0)) for t in (x, w, b))
        shaped = (None if g is None else g.reshape(case.affine_shape) for g in (dw, db))
        result = result._replace(dx=view.back(dx), **dict(zip(("dweight", "dbias"), shaped, strict=True)))
    elif case.operation == "batch" and case.mode in ("forward", "update"):
        # With momentum 1 the running moments are those of the batch, but for the sample variance.
        factor = (case.count - 1) / case.count if case.mode == "forward" else 1
        result = result._replace(
            mean=to_numpy(mean).reshape(case.kept_shape), var=to_numpy(var).reshape(case.kept_shape) * np.float64(factor)
        )
    return result


def view_of(case: Case) -> views.View:
    """Channels at dimension 1, or the reduced axes last."""
    if case.operation == "batch":
        return views.channels_first(case)
    return views.reduced_last(case) if case.operation in ("layer", "rms") else views.channel_at(case, 1)


def norm(
    case: Case,
    data: Data,
    x: torch.Tensor,
    w: torch.Tensor | None,
    b: torch.Tensor | None,
    mean: torch.Tensor,
    var: torch.Tensor,
) -> torch.Tensor:
    """The call."""
    if case.operation == "batch":
        momentum = 1 - data.decay if case.mode == "update" else 1.0
        return F.batch_norm(x, mean, var, w, b, case.mode != "inference", momentum, case.eps)
    if case.operation == "layer":
        return F.layer_norm(x, case.affine_shape, w, b, case.eps)
    if case.operation == "rms":
        return F.rms_norm(x, case.affine_shape, w, case.eps)
    if case.operation == "instance":
        return F.instance_norm(x, None, None, w, b, True, 0.0, case.eps)
    return F.group_norm(x, case.groups, w, b, case.eps)
