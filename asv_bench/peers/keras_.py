"""Keras on TensorFlow, as its layers compute it, inside a tf.function as in `fit`; no running moments are updated."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from asv_bench import machine
from asv_bench.cases import EPS, Data
from asv_bench.contestant import Contestant

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from keras import config, ops

Array = Any


def prepare(name: str, data: Data) -> Contestant:
    del name  # one peer in this file
    if config.backend() != "tensorflow":
        raise ImportError(f"the Keras peer needs the TensorFlow backend; got {config.backend()}")
    function, arguments = _OPERATIONS[data.case.operation](data)
    placed = [tf.constant(a) for a in arguments]
    compiled = tf.function(function)

    def call() -> Any:
        return compiled(*placed)

    return Contestant(call, _fetch, machine.cores())


def _batch_norm(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    def norm(x: Array, weight: Array, bias: Array) -> Array:
        mean, var = ops.moments(x, axes=d.reduced)
        return ops.batch_normalization(x, mean, var, d.axis, offset=bias, scale=weight, epsilon=EPS)

    return norm, (d.x, d.weight, d.bias)


def _inference(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    def infer(x: Array, mean: Array, var: Array, weight: Array, bias: Array) -> Array:
        return ops.batch_normalization(x, mean, var, d.axis, offset=bias, scale=weight, epsilon=EPS)

    return infer, (d.x, d.mean, d.var, d.weight, d.bias)


def _layer_norm(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    return (lambda x, w, b: ops.layer_normalization(x, w, b, axis=d.axis, epsilon=EPS)), (d.x, d.weight, d.bias)


def _rms_norm(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    return (lambda x, w: ops.rms_normalization(x, w, axis=d.axis, epsilon=EPS)), (d.x, d.weight)


def _moments(d: Data) -> tuple[Callable[..., Any], tuple[Array, ...]]:
    return (lambda x: ops.moments(ops.cast(x, "float32"), axes=d.reduced)), (d.x,)


_OPERATIONS = {
    "batch_norm": _batch_norm,
    "inference": _inference,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "moments": _moments,
}


def _fetch(result: Any) -> tuple[Any, ...]:
    return tuple(np.asarray(a) for a in (result if isinstance(result, tuple | list) else (result,)))
