"""Flax linen: the modules as they are, with native axes, under jax.jit."""

from typing import Any

import flax.linen as nn

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
    """Flax linen's answer."""
    group = case.operation == "group"
    view = views.channel_at(case, -1) if group else views.as_it_is(case)
    return jax_tools.answer(case, data, apply, view, case.affine_shape, case.kept_shape)


def apply(case: Case, x: Any, w: Any, b: Any, mean: Any, var: Any, mask: Any, eps: Any, decay: Any) -> tuple[Any, Any, Any]:
    """The call."""
    parameters = {name: p for name, p in (("scale", w), ("bias", b)) if p is not None}
    common = {"epsilon": eps, "use_scale": w is not None, "dtype": x.dtype}
    if case.operation != "rms":
        common["use_bias"] = b is not None
    if case.operation == "batch":
        module = nn.BatchNorm(use_running_average=case.mode == "inference", axis=case.keep, momentum=decay, **common)
        variables = {"params": parameters, "batch_stats": {"mean": mean, "var": var}}
        y, new = module.apply(variables, x, mask=mask, mutable=["batch_stats"])
        return y, new["batch_stats"]["mean"], new["batch_stats"]["var"]
    if case.operation == "layer":
        module = nn.LayerNorm(reduction_axes=case.reduce, feature_axes=case.affine, **common)
    elif case.operation == "rms":
        module = nn.RMSNorm(reduction_axes=case.reduce, feature_axes=case.affine, **common)
    elif case.operation == "instance":
        module = nn.InstanceNorm(feature_axes=case.affine, **common)
    else:
        module = nn.GroupNorm(num_groups=case.groups, **common)
    return module.apply({"params": parameters}, x, mask=mask), None, None
