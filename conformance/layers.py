"""One batch norm layer of each framework that trains: a step gives the output and the gradients, and learns."""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from .data import Array

RATE = 0.1
os.environ.setdefault("KERAS_BACKEND", "jax")


class Torch:
    """torch.nn.BatchNorm1d, 2d and 3d; the channel is dimension 1 there, so the data are moved to and fro."""

    dialect = "torch"

    def __init__(self, shape: tuple[int, ...], channel: int) -> None:
        self.torch = pytest.importorskip("torch")
        self.channel = channel
        kind = self.torch.nn.BatchNorm1d if len(shape) < 4 else self.torch.nn.BatchNorm2d if len(shape) == 4 else None
        self.layer = (kind or self.torch.nn.BatchNorm3d)(shape[channel])

    def start(self, weight: Array, bias: Array) -> None:
        self.layer.weight.data, self.layer.bias.data = (self.torch.from_numpy(a.copy()) for a in (weight, bias))

    def state(self) -> Mapping[str, Any]:
        return self.layer.state_dict()

    def step(self, x: Array, dy: Array, where: Array | None) -> tuple[Array, ...]:
        assert where is None, "PyTorch's batch norm has no masks"
        there = [self.torch.from_numpy(np.moveaxis(a, self.channel, 1).copy()) for a in (x, dy)]
        data = there[0].requires_grad_()
        y = self.layer(data)
        y.backward(there[1])
        self.layer.eval()
        self.inferred = self._back(self.layer(data))
        self.layer.train()
        gradients = [p.grad.numpy().copy() for p in (self.layer.weight, self.layer.bias)]
        with self.torch.no_grad():
            for parameter in self.layer.parameters():
                parameter -= RATE * parameter.grad
                parameter.grad = None
        return self._back(y), self._back(data.grad), *gradients

    def _back(self, values: Any) -> Array:
        return np.moveaxis(values.detach().numpy(), 1, self.channel)


class Keras:
    """keras.layers.BatchNormalization on the backend of this process, with that backend's gradients."""

    dialect = "keras"
    names = ("gamma", "beta", "moving_mean", "moving_variance")

    def __init__(self, shape: tuple[int, ...], channel: int) -> None:
        self.keras = pytest.importorskip("keras")
        self.layer = self.keras.layers.BatchNormalization(axis=channel)
        self.layer.build(shape)

    def start(self, weight: Array, bias: Array) -> None:
        self.layer.gamma.assign(weight)
        self.layer.beta.assign(bias)

    def state(self) -> Mapping[str, Any]:
        return {name: self.keras.ops.convert_to_numpy(getattr(self.layer, name)) for name in self.names}

    def step(self, x: Array, dy: Array, where: Array | None) -> tuple[Array, ...]:
        mask = None if where is None else where[..., 0]
        y, gradients = getattr(self, "_" + self.keras.backend.backend())(x, dy, mask)
        self.inferred = self.keras.ops.convert_to_numpy(self.layer(x, training=False))
        for parameter, gradient in zip((self.layer.gamma, self.layer.beta), gradients[1:], strict=True):
            parameter.assign(parameter - RATE * gradient)
        return tuple(self.keras.ops.convert_to_numpy(a) for a in (y, *gradients))

    def _jax(self, x: Array, dy: Array, mask: Array | None) -> tuple[Any, Any]:
        import jax

        fixed = [v.value for v in self.layer.non_trainable_variables]

        def forward(x: Any, learned: Any) -> Any:
            return self.layer.stateless_call(learned, fixed, x, training=True, mask=mask)

        learned = [v.value for v in self.layer.trainable_variables]
        y, pull, new = jax.vjp(forward, jax.numpy.asarray(x), learned, has_aux=True)
        for variable, value in zip(self.layer.non_trainable_variables, new, strict=True):
            variable.assign(value)
        dx, (dweight, dbias) = pull(jax.numpy.asarray(dy))
        return y, (dx, dweight, dbias)

    def _torch(self, x: Array, dy: Array, mask: Array | None) -> tuple[Any, Any]:
        import torch

        data = torch.from_numpy(x.copy()).requires_grad_()
        y = self.layer(data, training=True, mask=None if mask is None else torch.from_numpy(mask.copy()))
        learned = [v.value for v in self.layer.trainable_variables]
        return y.detach(), torch.autograd.grad(y, [data, *learned], torch.from_numpy(dy.copy()))

    def _tensorflow(self, x: Array, dy: Array, mask: Array | None) -> tuple[Any, Any]:
        import tensorflow as tf

        data = tf.Variable(x)
        with tf.GradientTape() as tape:
            y = self.layer(data, training=True, mask=mask)
        learned = [v.value for v in self.layer.trainable_variables]
        return y, tape.gradient(y, [data, *learned], output_gradients=tf.constant(dy))


class Flax:
    """flax.linen.BatchNorm, with jax.vjp."""

    dialect = "flax"

    def __init__(self, shape: tuple[int, ...], channel: int) -> None:
        nn = pytest.importorskip("flax.linen")
        self.jax = pytest.importorskip("jax")
        self.layer = nn.BatchNorm(axis=channel)
        key, x = self.jax.random.key(0), self.jax.numpy.zeros(shape)
        self.variables = self.layer.init(key, x, use_running_average=False)

    def start(self, weight: Array, bias: Array) -> None:
        self.variables = {**self.variables, "params": {"scale": self.jax.numpy.asarray(weight), "bias": bias.copy()}}

    def state(self) -> Mapping[str, Any]:
        return self.variables

    def step(self, x: Array, dy: Array, where: Array | None) -> tuple[Array, ...]:
        def forward(x: Any, params: Any) -> Any:
            given = {**self.variables, "params": params}
            return self.layer.apply(given, x, use_running_average=False, mask=where, mutable=["batch_stats"])

        params = self.jax.tree.map(self.jax.numpy.asarray, self.variables["params"])
        y, pull, new = self.jax.vjp(forward, self.jax.numpy.asarray(x), params, has_aux=True)
        dx, learned = pull(self.jax.numpy.asarray(dy))
        self.inferred = np.asarray(self.layer.apply({"params": params, **new}, x, use_running_average=True))
        params = self.jax.tree.map(lambda p, g: p - RATE * g, params, learned)
        self.variables = {"params": params, **new}
        return tuple(np.asarray(a) for a in (y, dx, learned["scale"], learned["bias"]))


class FlaxNnx:
    """flax.nnx.BatchNorm, with jax.vjp."""

    dialect = "flax_nnx"

    def __init__(self, shape: tuple[int, ...], channel: int) -> None:
        self.nnx = pytest.importorskip("flax.nnx")
        self.jax = pytest.importorskip("jax")
        self.layer = self.nnx.BatchNorm(shape[channel], axis=channel, rngs=self.nnx.Rngs(0))

    def start(self, weight: Array, bias: Array) -> None:
        self.layer.scale[...], self.layer.bias[...] = (self.jax.numpy.asarray(a) for a in (weight, bias))

    def state(self) -> Mapping[str, Any]:
        state: Mapping[str, Any] = self.nnx.state(self.layer)
        return state

    def step(self, x: Array, dy: Array, where: Array | None) -> tuple[Array, ...]:
        graph, params, rest = self.nnx.split(self.layer, self.nnx.Param, ...)

        def forward(x: Any, params: Any, rest: Any) -> Any:  # rest as an argument: nnx writes only what this trace made
            layer = self.nnx.merge(graph, params, rest)
            return layer(x, use_running_average=False, mask=where), self.nnx.state(layer, self.nnx.BatchStat)

        y, pull, new = self.jax.vjp(forward, self.jax.numpy.asarray(x), params, rest, has_aux=True)
        dx, learned, _ = pull(self.jax.numpy.asarray(dy))
        self.nnx.update(self.layer, new)
        self.inferred = np.asarray(self.layer(x, use_running_average=True))
        self.nnx.update(self.layer, self.jax.tree.map(lambda p, g: p - RATE * g, params, learned))
        return tuple(np.asarray(a) for a in (y, dx, learned["scale"][...], learned["bias"][...]))


LAYERS = {"torch": Torch, "keras": Keras, "flax": Flax, "flax_nnx": FlaxNnx}


@lru_cache(maxsize=1)
def digits() -> tuple[Array, Array]:
    """scikit-learn's 1797 handwritten digits: images (n, 8, 8, 1) from 0 to 1, and labels."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8, 1) / 16).astype("f4"), labels.astype("i4")
