"""keepnorm's answer to a case, through its public functions on NumPy arrays."""

from typing import Any

import keepnorm as kn

from .cases import Case
from .data import Data
from .oracle import Answer

LETTERS = "abcde"


def run(case: Case, data: Data) -> Answer:
    """Our answer."""
    return {"forward": forward, "inference": inference, "update": update, "backward": backward}[case.mode](case, data)


def forward(case: Case, data: Data) -> Answer:
    """The norm by its own name, and the moments."""
    x, w, b, eps = data.x, data.weight, data.bias, case.eps
    seen = kn.moments(x, keep_of(case), where=data.where, **sizes_of(case))
    if data.where is not None:
        y = kn.normalize(x, case.keep, w, b, affine=case.affine, eps=eps, where=data.where)
    elif case.operation == "layer":
        y = kn.layer_norm(x, w, b, axes=case.affine, eps=eps)
    elif case.operation == "rms":
        y = kn.rms_norm(x, w, b, axes=case.affine, eps=eps)
    elif case.operation == "instance":
        y = kn.instance_norm(x, w, b, channel=case.affine[0], eps=eps)
    elif case.operation == "group":
        y = kn.group_norm(x, w, b, groups=case.groups, channel=case.affine[0], eps=eps)
    elif len(case.keep) == 1:
        y = kn.batch_norm(x, w, b, channel=case.keep[0], eps=eps)
    else:
        y = kn.normalize(x, case.keep, w, b, eps=eps)
    return Answer(y, seen.mean, seen.var)


def inference(case: Case, data: Data) -> Answer:
    """With given moments."""
    given = kn.Moments.from_mean_var(data.mean, data.var, keep=case.keep, ndim=len(case.shape))
    return Answer(kn.normalize(data.x, case.keep, data.weight, data.bias, eps=case.eps, moments=given))


def update(case: Case, data: Data) -> Answer:
    """One training step of the layer, from given running moments."""
    layer = kn.BatchNorm(
        case.kept_shape,
        keep=case.keep,
        eps=case.eps,
        decay=data.decay,
        correction=case.correction,
        singleton="zero",
        dtype=data.mean.dtype.name,
    )
    layer.weight, layer.bias = data.weight, data.bias
    layer.state = layer.state._replace(mean=data.mean, var=data.var)
    y = layer(data.x, training=True)
    return Answer(y, layer.running.mean, layer.running.var)


def backward(case: Case, data: Data) -> Answer:
    """The output and the gradients of the vector-Jacobian product."""
    y, vjp = kn.normalize_vjp(
        data.x,
        keep_of(case),
        data.weight,
        data.bias,
        affine=affine_of(case),
        eps=case.eps,
        center=case.operation != "rms",
        where=data.where,
        **sizes_of(case),
    )
    dx, dweight, dbias = vjp(data.dy)
    return Answer(y, dx=dx, dweight=dweight, dbias=dbias)


def keep_of(case: Case) -> Any:
    """The kept axes, as a pattern where the channel axis is split into groups: ``"a (g h) c -> a g"``."""
    if not case.groups:
        return case.keep
    names = list(LETTERS[: len(case.shape)])
    names[case.affine[0]] = "(g h)"
    return f"{' '.join(names)} -> {'a g'}"


def affine_of(case: Case) -> Any:
    """The affine axes, by name where `keep_of` is a pattern."""
    return "g h" if case.groups else case.affine


def sizes_of(case: Case) -> dict[str, int]:
    """The sizes that the pattern needs."""
    return {"g": case.groups} if case.groups else {}
