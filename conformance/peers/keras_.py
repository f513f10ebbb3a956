"""Keras: its layers, on the backend that KERAS_BACKEND names (one a process), gradients by that backend's own means."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import keras
import numpy as np
from keras import layers

from ..cases import EPS_DEFAULT, Case
from ..data import Array, Data
from ..oracle import Answer
from . import Limit, rms_bias, views

BACKEND = keras.backend.backend()
VERSIONS = ("keras", *{"tensorflow": ("tensorflow",), "jax": ("jax", "jaxlib"), "torch": ("torch",)}[BACKEND])
LIMITS = (
    Limit("RMSNormalization has no bias", rms_bias),
    Limit("the running variance is always the population variance", lambda c: c.mode == "update" and c.correction == 1),
    Limit("LayerNormalization ignores masks", lambda c: bool(c.mask) and c.operation == "layer"),
    Limit(
        "BatchNormalization takes a mask only along the last axis, for a channel that is last",
        lambda c: bool(c.mask) and not (c.mask == "rows" and c.keep == (len(c.shape) - 1,) and len(c.shape) > 1),
    ),
)


def answer(case: Case, data: Data) -> Answer:
    """Keras's answer."""
    view = view_of(case)
    x, dy = view.there(data.x), view.there(data.dy)
    given = {"gamma": data.weight, "beta": data.bias}
    if case.operation == "batch":
        given |= {"moving_mean": data.mean, "moving_variance": data.var}
    mask = None if data.where is None else np.ascontiguousarray(data.where[..., 0])
    decay = data.decay if case.mode == "update" else 0.0
    run = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[BACKEND]
    y, new, gradients = run(case, x, given, dy, mask, decay)
    result = Answer(view.back(y))
    if case.mode == "backward":
        dw, db = (None if gradients.get(k) is None else gradients[k].reshape(case.affine_shape) for k in ("gamma", "beta"))
        return result._replace(dx=view.back(gradients["x"]), dweight=dw, dbias=db)
    if case.operation != "batch" or case.mode == "inference":
        return result
    mean, var = (new[k].reshape(case.kept_shape) for k in ("moving_mean", "moving_variance"))
    return result._replace(mean=mean, var=var)


def view_of(case: Case) -> views.View:
    """The axes as they are wherever the layer can name them."""
    if case.operation == "batch":
        native = len(case.keep) == 1 and len(case.shape) > 1
        return views.as_it_is(case) if native else views.channels_last(case)
    if case.operation in ("instance", "group") and 0 not in case.keep:
        return views.channel_at(case, -1)
    return views.as_it_is(case)


def layer_of(case: Case, shape: tuple[int, ...], decay: float) -> Any:
    """The layer, built for inputs of this shape; its parameters keep the dtype of a mixed policy."""
    name = case.dtype
    policy = keras.DTypePolicy(name if name in ("float32", "float64") else f"mixed_{name}")
    common = {"epsilon": case.eps, "dtype": policy}
    if case.operation == "batch":
        axis = case.keep[0] if len(case.keep) == 1 and len(case.shape) > 1 else -1
        layer = layers.BatchNormalization(axis=axis, momentum=decay, center=case.bias, scale=case.weight, **common)
    elif case.operation == "layer":
        layer = layers.LayerNormalization(axis=list(case.reduce), center=case.bias, scale=case.weight, **common)
    elif case.operation == "rms":
        layer = layers.RMSNormalization(axis=list(case.reduce), **common)
    else:
        groups = case.groups if case.operation == "group" else -1
        layer = layers.GroupNormalization(groups=groups, axis=case.affine[0], center=case.bias, scale=case.weight, **common)
    layer.build(shape)
    return layer


def _variables(layer: Any) -> dict[str, Any]:
    return {v.name if v.name != "scale" else "gamma": v for v in layer.variables}


def _ready(case: Case, shape: tuple[int, ...], given: dict[str, Array | None], decay: float) -> tuple[Any, dict[str, Any]]:
    layer = layer_of(case, shape, decay)
    variables = _variables(layer)
    for name, variable in variables.items():
        value = given.get(name)
        variable.assign(np.ones(variable.shape) if value is None else value.reshape(variable.shape))
    return layer, variables


def _call(layer: Any, case: Case, x: Any, mask: Any) -> Any:
    if case.operation == "batch":
        return layer(x, training=case.mode != "inference", **({} if mask is None else {"mask": mask}))
    return layer(x)


def _tensorflow(case: Case, x: Array, given: Any, dy: Array, mask: Any, decay: float) -> tuple[Array, Any, Any]:
    import tensorflow as tf

    layer, variables = _ready(case, x.shape, given, decay)
    t = tf.constant(x)
    leaves = {"x": t, **{k: variables[k].value for k in ("gamma", "beta") if k in variables}}
    with tf.GradientTape() as tape:
        if case.mode == "backward":
            tape.watch(list(leaves.values()))
        y = _call(layer, case, t, mask)
    gradients = {}
    if case.mode == "backward":
        found = tape.gradient(y, list(leaves.values()), output_gradients=tf.constant(dy))
        gradients = {k: None if g is None else np.asarray(g.numpy()) for k, g in zip(leaves, found, strict=True)}
    return np.asarray(y.numpy()), {k: v.value.numpy() for k, v in variables.items()}, gradients


def _torch(case: Case, x: Array, given: Any, dy: Array, mask: Any, decay: float) -> tuple[Array, Any, Any]:
    import torch

    from .torch_ import to_numpy, to_torch

    layer, variables = _ready(case, x.shape, given, decay)
    t = to_torch(x).detach().requires_grad_(case.mode == "backward")
    leaves = {"x": t, **{k: variables[k].value for k in ("gamma", "beta") if k in variables}}
    y = _call(layer, case, t, mask)
    gradients = {}
    if case.mode == "backward":
        found = torch.autograd.grad(y, list(leaves.values()), to_torch(dy), allow_unused=True)
        gradients = {k: to_numpy(g) for k, g in zip(leaves, found, strict=True)}
    return to_numpy(y), {k: to_numpy(v.value) for k, v in variables.items()}, gradients


def _jax(case: Case, x: Array, given: Any, dy: Array, mask: Any, decay: float) -> tuple[Array, Any, Any]:
    # What is compiled depends on none of these, and one function with gradients serves every training mode.
    mode = "inference" if case.mode == "inference" else "backward"
    still = replace(case, layout="C", values="", eps=EPS_DEFAULT, seed=0, correction=0, mode=mode)
    run, names, shapes = _compiled(still, x.shape)
    values = {k: np.ones(s) if given.get(k) is None else given[k].reshape(s) for k, s in zip(names, shapes, strict=True)}
    dtype = "float64" if case.dtype == "float64" else "float32"
    values = {k: v.astype(dtype) for k, v in values.items()}
    y, new, gradients = run(x, values, dy, mask, case.eps, decay)
    return np.asarray(y), {k: np.asarray(v) for k, v in new.items()}, {k: np.asarray(g) for k, g in gradients.items()}


@cache
def _compiled(case: Case, shape: tuple[int, ...]) -> tuple[Callable[..., Any], list[str], list[tuple[int, ...]]]:
    import jax

    layer = layer_of(case, shape, 0.5)
    variables = _variables(layer)
    trained = [k for k in ("gamma", "beta") if k in variables]
    stored = [k for k in ("moving_mean", "moving_variance") if k in variables]

    @jax.jit
    def run(x: Any, values: Any, dy: Any, mask: Any, eps: Any, decay: Any) -> Any:
        def forward(x: Any, parameters: Any) -> Any:
            layer.epsilon = eps
            if stored:
                layer.momentum = decay
            options = {"training": case.mode != "inference"} if case.operation == "batch" else {}
            if mask is not None:
                options["mask"] = mask
            y, new = layer.stateless_call([parameters[k] for k in trained], [values[k] for k in stored], x, **options)
            return y, dict(zip(stored, new, strict=True))

        parameters = {k: values[k] for k in trained}
        if case.mode == "inference":
            y, new = forward(x, parameters)
            return y, new, {}
        y, vjp, new = jax.vjp(forward, x, parameters, has_aux=True)
        dx, others = vjp(dy.astype(y.dtype))
        return y, new, {"x": dx, **others}

    return run, list(variables), [tuple(v.shape) for v in variables.values()]
