"""Training beside the frameworks, and networks that cross from one to another; a test skips where its peers are missing.

The peers sum in float32, so that they are held to 64 units in the last place of the largest value of what is compared;
ours is held to the contract by tests/test_batchnorm.py.
"""

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

import keepnorm as kn

from .data import Array
from .layers import LAYERS, RATE, digits
from .networks import NETWORKS

# Keras's variables do not know NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPES = [(12, 6), (7, 6, 5), (4, 5, 3, 6), (3, 4, 2, 3, 5)]
FIRST, MIDDLE, LAST = 0, 1, -1


def close(got: Array, needed: Array, what: str, units: float = 64) -> None:
    got, needed = np.asarray(got, "f8"), np.asarray(needed, "f8")
    assert got.shape == needed.shape, f"{what}: {got.shape}, needed {needed.shape}"
    limit = units * np.finfo("f4").eps * max(1.0, float(np.abs(needed).max(initial=0)))
    assert np.abs(got - needed).max(initial=0) <= limit, f"{what}: off by {np.abs(got - needed).max()}, limit {limit}"


def train_three_steps(peer: str, shape: tuple[int, ...], channel: int, where: Array | None = None) -> None:
    """Output, gradients, learned parameters and running moments, step by step, and inference after each."""
    rng = np.random.default_rng(11)
    layer = LAYERS[peer](shape, channel)
    layer.start(*rng.uniform(0.5, 1.5, (2, shape[channel])).astype("f4"))
    bn = kn.dialects.load(layer.dialect, layer.state(), keep=channel)
    for i in range(3):
        x, dy = (rng.standard_normal((2, *shape)) * 3 + 2).astype("f4")
        y, dx, dweight, dbias = layer.step(x, dy, where)
        ours, vjp = bn.vjp(x, training=True, where=where)
        gradients = vjp(dy)
        close(ours, y, f"step {i} output")
        for name, needed in (("x", dx), ("weight", dweight), ("bias", dbias)):
            close(getattr(gradients, name), needed, f"step {i} gradient of {name}")
        close(bn(x, training=False), layer.inferred, f"step {i} inference")
        bn.weight, bn.bias = bn.weight - np.float32(RATE) * gradients.weight, bn.bias - np.float32(RATE) * gradients.bias
        needed_state = kn.dialects.load(layer.dialect, layer.state(), keep=channel)
        for name in ("weight", "bias"):
            close(getattr(bn, name), getattr(needed_state, name), f"step {i} {name}")
        close(bn.state.mean, needed_state.state.mean, f"step {i} running mean")
        close(bn.state.var, needed_state.state.var, f"step {i} running variance")


@pytest.mark.parametrize("channel", [FIRST, MIDDLE, LAST], ids=["first", "middle", "last"])
@pytest.mark.parametrize("shape", SHAPES, ids=len)
@pytest.mark.parametrize("peer", LAYERS)
def test_three_steps_of_training_are_the_peers(peer: str, shape: tuple[int, ...], channel: int) -> None:
    train_three_steps(peer, shape, channel)


@pytest.mark.parametrize("peer", ["keras", "flax", "flax_nnx"])
def test_three_steps_with_a_mask_are_the_peers(peer: str) -> None:
    where = np.random.default_rng(5).random((8, 5, 1)) < 0.6
    train_three_steps(peer, (8, 5, 6), LAST, where)


@cache
def trained(source: str) -> Any:
    """The network of a framework after two epochs."""
    images, labels = digits()
    network = NETWORKS[source]()
    for start in [*range(0, 1728, 64)] * 2:
        network.train(images[start : start + 64], labels[start : start + 64])
    return network


@pytest.mark.parametrize(("source", "target"), list(product(NETWORKS, NETWORKS)))
def test_a_trained_network_crosses_and_infers_alike(source: str, target: str) -> None:
    images, labels = digits()
    original = trained(source)
    needed = original.infer(images)
    assert np.mean(needed.argmax(1) == labels) > 0.5, "the network has not learned: its moments would prove nothing"
    close(NETWORKS[target](original.parameters()).infer(images), needed, f"{source} to {target}", units=256)
