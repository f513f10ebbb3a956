"""TensorFlow: tf.nn.moments over the reduced axes and tf.nn.batch_normalization, gradients by tf.GradientTape."""

from typing import Any

import numpy as np
import tensorflow as tf

from ..cases import Case
from ..data import Array, Data
from ..oracle import Answer
from . import Limit, training_step

VERSIONS = ("tensorflow",)
LIMITS = (
    Limit("tf.nn.moments has no running moments", training_step),
    Limit("tf.nn.moments has no uncentred second moment", lambda c: c.operation == "rms"),
)


def answer(case: Case, data: Data) -> Answer:
    """TensorFlow's answer."""
    x = tf.constant(data.x)
    w, b = (None if p is None else tf.constant(p.astype(data.x.dtype)) for p in (data.weight, data.bias))
    leaves = [t for t in (x, w, b) if t is not None]
    with tf.GradientTape() as tape:
        if case.mode == "backward":
            tape.watch(leaves)
        y, mean, var = _norm(case, data, x, w, b)
    result = Answer(values(y))
    if case.mode == "backward":
        gradients = tape.gradient(y, leaves, output_gradients=tf.constant(data.dy))
        dx, dw, db = (None if t is None else values(gradients.pop(0)) for t in (x, w, b))
        return result._replace(dx=dx, dweight=dw, dbias=db)
    if case.mode == "inference":
        return result
    return result._replace(mean=_cells(mean, case), var=_cells(var, case))


def values(t: Any) -> Array:
    """The values of a tensor; a bfloat16 scalar is no array by itself."""
    return np.asarray(t.numpy())


def _norm(case: Case, data: Data, x: Any, w: Any, b: Any) -> tuple[Any, Any, Any]:
    x = tf.reshape(x, case.split_shape)
    if case.mode == "inference":
        mean, var = (tf.constant(p.astype(data.x.dtype).reshape(_sizes(case, case.split_keep))) for p in (data.mean, data.var))
    elif data.where is not None:
        inside = tf.constant(np.broadcast_to(data.where, case.split_shape).astype(data.x.dtype))
        mean, var = tf.nn.weighted_moments(x, case.split_reduce, inside, keepdims=True)
    else:
        mean, var = tf.nn.moments(x, case.split_reduce, keepdims=True)
    w, b = (None if p is None else tf.reshape(p, _sizes(case, case.split_affine)) for p in (w, b))
    y = tf.nn.batch_normalization(x, mean, var, b, w, case.eps)
    return tf.reshape(y, case.shape), mean, var


def _sizes(case: Case, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if a in axes else 1 for a, n in enumerate(case.split_shape))


def _cells(moments: Any, case: Case) -> Array:
    return values(moments).reshape(case.kept_shape)
