"""Flax nnx: the modules with their parameters set, under jax.jit. num_features is one number, so several axes are merged."""

from typing import Any

from flax import nnx

from ..cases import Case
from ..data import Data
from ..oracle import Answer
from . import Limit, jax_tools, rms_bias, views

VERSIONS = ("flax", "jax", "jaxlib")
LIMITS = (
    Limit("RMSNorm has no bias", rms_bias),
    Limit("the running variance is always the population variance", lambda c: c.mode == "update" and c.correction == 1),
)


def answer(case: Case, data: Data) -> Answer:
    """Flax nnx's answer."""
    if case.operation == "batch":
        view = views.as_it_is(case) if len(case.keep) == 1 else views.channels_last(case)
    elif case.operation in ("layer", "rms"):
        view = views.as_it_is(case) if len(case.affine) == 1 else views.rows(case)
    else:
        view = views.channel_at(case, -1)
    return jax_tools.answer(case, data, apply, view, (-1,), (-1,))


def apply(case: Case, x: Any, w: Any, b: Any, mean: Any, var: Any, mask: Any, eps: Any, decay: Any) -> tuple[Any, Any, Any]:
    """The call."""
    common = {"epsilon": eps, "use_scale": w is not None, "dtype": x.dtype, "param_dtype": mean.dtype, "rngs": nnx.Rngs(0)}
    if case.operation != "rms":
        common["use_bias"] = b is not None
    if case.operation == "batch":
        axis = case.keep[0] if len(case.keep) == 1 else -1
        module = nnx.BatchNorm(x.shape[axis], axis=axis, momentum=decay, **common)
        module.mean[...], module.var[...] = mean, var
    elif case.operation in ("layer", "rms"):
        axis = case.affine[0] if len(case.affine) == 1 else -1
        kind = nnx.LayerNorm if case.operation == "layer" else nnx.RMSNorm
        module = kind(x.shape[axis], reduction_axes=axis, feature_axes=axis, **common)
    elif case.operation == "instance":
        module = nnx.InstanceNorm(x.shape[-1], **common)
    else:
        module = nnx.GroupNorm(x.shape[-1], num_groups=case.groups, **common)
    if w is not None:
        module.scale[...] = w
    if b is not None:
        module.bias[...] = b
    if case.operation == "batch":
        y = module(x, use_running_average=case.mode == "inference", mask=mask)
        return y, module.mean[...], module.var[...]
    return module(x, mask=mask), None, None
