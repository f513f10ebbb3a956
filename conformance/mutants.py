"""Norms that are wrong in one way each, to prove that the suite can fail.

They are written in plain NumPy, in float64, and wrong where their name says so; `right` is wrong nowhere.
"""

from dataclasses import replace

import numpy as np

from .cases import Case
from .data import Array, Data
from .oracle import Answer

MISTAKES = (
    "population against sample variance",
    "eps outside the root",
    "keep off by one",
    "swapped weight and bias",
    "momentum inverted",
    "float32 accumulation",
)

# The cases that must catch each mistake, by their full names.
CAUGHT_BY = {
    "population against sample variance": (
        "batch-forward-37-keepnone-float64-C-ratio0-eps9e-13-plain-s9",
        "layer-forward-131-keepnone-bfloat16-C-ratio0-eps1e+00-wb-s173",
        "batch-update-6x6-keep0-float64-C-ratio1-eps9e-13-wb-correction1-s323",
    ),
    "eps outside the root": (
        "batch-forward-37-keepnone-float64-C-ratio0-eps9e-13-plain-s9",
        "batch-inference-37-keep0-float32-negative-ratio0-eps1e+00-w-s20",
        "layer-forward-131-keepnone-bfloat16-C-ratio0-eps1e+00-wb-s173",
    ),
    "keep off by one": (  # all sizes equal: no shape gives it away
        "batch-forward-6x6-keep1-float32-C-ratio100-eps1e-05-plain-s325",
        "batch-inference-6x6-keep0-float32-C-ratio100-eps0e+00-wb-s314",
        "batch-update-6x6-keep0-float64-C-ratio1-eps9e-13-wb-correction1-s323",
    ),
    "swapped weight and bias": (
        "batch-forward-5-keepnone-float16-C-ratio1-eps1e-03-wb-s56",
        "batch-inference-5-keepnone-float16-C-ratio1-eps1e+00-wb-s59",
        "layer-forward-1-keepnone-float32-C-ratio100-eps1e+00-wb-s123",
    ),
    "momentum inverted": (
        "batch-update-1x9-keep1-float32-C-ratio1-eps9e-13-plain-correction0-s441",
        "batch-update-67x3-keep1-float32-negative-ratio100-eps9e-13-plain-correction0-s552",
        "batch-update-5x7x3-keep0-float32-negative-ratio0-eps0e+00-wb-correction0-s648",
    ),
    "float32 accumulation": (
        "batch-forward-13x7-keep1-float32-C-ratio100-eps0e+00-plain-s217",
        "layer-forward-13x7-keep1-bfloat16-C-ratio100-eps1e-05-plain-s250",
        "batch-update-67x3-keep1-float32-negative-ratio100-eps9e-13-plain-correction0-s552",
    ),
}


def run(case: Case, data: Data, mistake: str) -> Answer:
    """The answer of a norm with one mistake; any other word, such as "none", makes none."""
    with np.errstate(all="ignore"):
        return _run(case, data, mistake)


def _run(case: Case, data: Data, mistake: str) -> Answer:
    axes = case
    if mistake == "keep off by one" and case.operation == "batch":
        keep = tuple(sorted((a + 1) % len(case.shape) for a in case.keep))
        axes = replace(case, keep=keep, affine=keep)
    w, b = data.weight, data.bias
    if mistake == "swapped weight and bias":
        w, b = b, w
    wide = np.float32 if mistake == "float32 accumulation" else np.longdouble
    x = data.x.reshape(axes.split_shape).astype(wide)
    mean, var = _moments(x, axes, mistake)
    given = case.mode == "inference"
    m, v = (p.astype(wide).reshape(_sizes(axes, axes.split_keep)) for p in (data.mean, data.var)) if given else (mean, var)
    rstd = 1 / (np.sqrt(v) + wide(case.eps) if mistake == "eps outside the root" else np.sqrt(v + wide(case.eps)))
    hat = (x - m) * rstd
    w, b = (None if p is None else p.astype(wide).reshape(_sizes(axes, axes.split_affine)) for p in (w, b))
    y = hat if w is None else hat * w
    y = y if b is None else y + b
    answer = Answer(y.reshape(case.shape).astype(data.x.dtype))
    if case.mode == "forward":
        return answer._replace(mean=mean.reshape(axes.kept_shape), var=var.reshape(axes.kept_shape))
    if case.mode == "update":
        take = data.decay if mistake == "momentum inverted" else 1 - data.decay
        factor = case.count / (case.count - case.correction) if case.count > case.correction else np.nan
        new = (mean.reshape(case.kept_shape), var.reshape(case.kept_shape) * factor)
        return answer._replace(mean=data.mean * (1 - take) + new[0] * take, var=data.var * (1 - take) + new[1] * take)
    return answer


def _moments(x: Array, axes: Case, mistake: str) -> tuple[Array, Array]:
    mean = x.mean(axes.split_reduce, keepdims=True)
    var = np.square(x - mean).mean(axes.split_reduce, keepdims=True)
    if mistake == "population against sample variance":
        var = var * (axes.count / max(axes.count - 1, 1))
    return mean, var


def _sizes(case: Case, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if a in axes else 1 for a, n in enumerate(case.split_shape))
