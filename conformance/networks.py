"""A small convolutional network with three batch norms in each framework: build, train, take the parameters out and in.

conv 3x3 (8) - batch norm - relu - conv 3x3 (12) - batch norm - relu - mean of the image - dense (16) - batch norm - dense (10)

`Parameters` is what they have in common: kernels as Keras and Flax have them, (height, width, in, out) and (in, out),
and batch norms of keepnorm, which `dialects` reads and writes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

import keepnorm as kn

from . import layers
from .data import Array

RATE = 0.3


class Parameters(NamedTuple):
    """Of the whole network, in no framework's form."""

    kernels: list[Array]
    biases: list[Array]
    norms: list[kn.BatchNorm]


class Torch:
    """With the images channels first, as PyTorch has them."""

    def __init__(self, given: Parameters | None = None) -> None:
        self.torch = torch = pytest.importorskip("torch")
        nn = torch.nn
        torch.manual_seed(3)
        told = [{}] * 3 if given is None else [kn.dialects.arguments("torch", bn) for bn in given.norms]
        self.norms = [nn.BatchNorm2d(8, **told[0]), nn.BatchNorm2d(12, **told[1]), nn.BatchNorm1d(16, **told[2])]
        self.linear = [nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3), nn.Linear(12, 16), nn.Linear(16, 10)]
        a, b, c, d = self.linear
        self.net = nn.Sequential(
            a,
            self.norms[0],
            nn.ReLU(),
            b,
            self.norms[1],
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            c,
            self.norms[2],
            d,
        )
        if given is not None:
            for layer, kernel, bias in zip(self.linear, given.kernels, given.biases, strict=True):
                order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
                layer.weight.data = torch.from_numpy(kernel.transpose(order).copy())
                layer.bias.data = torch.from_numpy(bias.copy())
            for layer, bn in zip(self.norms, given.norms, strict=True):
                layer.load_state_dict({k: torch.as_tensor(v) for k, v in kn.dialects.dump("torch", bn).items()})

    def train(self, images: Array, labels: Array) -> None:
        optimizer = self.torch.optim.SGD(self.net.parameters(), lr=RATE)
        loss = self.torch.nn.functional.cross_entropy(self.net(self._there(images)), self.torch.from_numpy(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def infer(self, images: Array) -> Array:
        self.net.eval()
        with self.torch.no_grad():
            y: Array = self.net(self._there(images)).numpy()
        self.net.train()
        return y

    def parameters(self) -> Parameters:
        weights = [layer.weight.detach().numpy() for layer in self.linear]
        kernels = [w.transpose((2, 3, 1, 0) if w.ndim == 4 else (1, 0)) for w in weights]
        norms = [kn.dialects.load("torch", layer.state_dict()) for layer in self.norms]
        return Parameters(kernels, [layer.bias.detach().numpy() for layer in self.linear], norms)

    def _there(self, images: Array) -> Any:
        return self.torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


class Keras:
    """On the backend of this process."""

    def __init__(self, given: Parameters | None = None) -> None:
        self.keras = keras = pytest.importorskip("keras")
        ls = keras.layers
        keras.utils.set_random_seed(3)
        told = [{"momentum": 0.9}] * 3 if given is None else [kn.dialects.arguments("keras", bn) for bn in given.norms]
        self.norms = [ls.BatchNormalization(**words) for words in told]
        self.linear = [ls.Conv2D(8, 3), ls.Conv2D(12, 3), ls.Dense(16), ls.Dense(10)]
        a, b, c, d = self.linear
        self.net = keras.Sequential(
            [a, self.norms[0], ls.ReLU(), b, self.norms[1], ls.ReLU(), ls.GlobalAveragePooling2D(), c, self.norms[2], d]
        )
        self.net.build((None, 8, 8, 1))
        self.net.compile(
            keras.optimizers.SGD(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
        )
        if given is not None:
            for layer, kernel, bias in zip(self.linear, given.kernels, given.biases, strict=True):
                layer.set_weights([kernel, bias])
            for layer, bn in zip(self.norms, given.norms, strict=True):
                state = kn.dialects.dump("keras", bn)
                layer.set_weights([state[name] for name in layers.Keras.names])

    def train(self, images: Array, labels: Array) -> None:
        self.net.train_on_batch(images, labels)

    def infer(self, images: Array) -> Array:
        y: Array = self.keras.ops.convert_to_numpy(self.net(images, training=False))
        return y

    def parameters(self) -> Parameters:
        pairs = [[self._numpy(v) for v in (layer.kernel, layer.bias)] for layer in self.linear]
        states = [{name: self._numpy(getattr(layer, name)) for name in layers.Keras.names} for layer in self.norms]
        norms = [
            kn.dialects.load("keras", state, momentum=layer.momentum) for layer, state in zip(self.norms, states, strict=True)
        ]
        return Parameters([k for k, _ in pairs], [b for _, b in pairs], norms)

    def _numpy(self, values: Any) -> Array:
        return np.array(self.keras.ops.convert_to_numpy(values))


class Flax:
    """In linen."""

    def __init__(self, given: Parameters | None = None) -> None:
        nn = pytest.importorskip("flax.linen")
        self.jax = jax = pytest.importorskip("jax")
        told: list[Mapping[str, Any]] = [{"momentum": 0.9}] * 3
        if given is not None:
            told = [kn.dialects.arguments("flax", bn) for bn in given.norms]

        class Net(nn.Module):  # type: ignore[misc]
            @nn.compact
            def __call__(self, x: Any, training: bool) -> Any:
                for channels, words in ((8, told[0]), (12, told[1])):
                    x = nn.Conv(channels, (3, 3), padding="VALID")(x)
                    x = nn.relu(nn.BatchNorm(use_running_average=not training, **words)(x))
                x = nn.Dense(16)(x.mean((1, 2)))
                return nn.Dense(10)(nn.BatchNorm(use_running_average=not training, **told[2])(x))

        self.net = Net()
        self.variables = self.net.init(jax.random.key(3), jax.numpy.zeros((2, 8, 8, 1)), training=False)
        if given is not None:
            params, stats = {}, {}
            for name, kernel, bias in zip(self.linear, given.kernels, given.biases, strict=True):
                params[name] = {"kernel": kernel, "bias": bias}
            for i, bn in enumerate(given.norms):
                state = kn.dialects.dump("flax", bn)
                params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"] = state["params"], state["batch_stats"]
            self.variables = {"params": params, "batch_stats": stats}

    linear = ("Conv_0", "Conv_1", "Dense_0", "Dense_1")

    def train(self, images: Array, labels: Array) -> None:
        jax = self.jax

        def loss(params: Any) -> Any:
            given = {**self.variables, "params": params}
            y, new = self.net.apply(given, images, training=True, mutable=["batch_stats"])
            return -jax.numpy.mean(jax.nn.log_softmax(y)[np.arange(len(labels)), labels]), new

        gradient, new = jax.grad(loss, has_aux=True)(self.variables["params"])
        self.variables = {"params": jax.tree.map(lambda p, g: p - RATE * g, self.variables["params"], gradient), **new}

    def infer(self, images: Array) -> Array:
        return np.asarray(self.net.apply(self.variables, images, training=False))

    def parameters(self) -> Parameters:
        params = self.variables["params"]
        kernels, biases = ([np.asarray(params[name][part]) for name in self.linear] for part in ("kernel", "bias"))
        norms = []
        for i in range(3):
            state = {part: self.variables[part][f"BatchNorm_{i}"] for part in ("params", "batch_stats")}
            norms.append(kn.dialects.load("flax", state, momentum=0.9))
        return Parameters(kernels, biases, norms)


NETWORKS = {"torch": Torch, "keras": Keras, "flax": Flax}
