"""The questions that people ask about axes, each by its name: answered by the library that they ask about, and by ours."""

from typing import Any

import numpy as np
import pytest

import keepnorm as kn

from .oracle import EXACT_LIMIT, cell_moments
from .session import Session

# Keras on PyTorch makes NumPy arrays in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RNG = np.random.default_rng(20261120)
EPS = 2.0**-10


@pytest.fixture(autouse=True)
def _only_when_asked(request: pytest.FixtureRequest, session: Session) -> None:
    asked = request.node.get_closest_marker("asks").args
    if not any(session.name == peer or (peer and (session.name or "").startswith(peer)) for peer in asked):
        pytest.skip(f"a question to {' and '.join(peer or 'nobody else' for peer in asked)}")


def data(*shape: int, offset: float = 3.0) -> np.ndarray:
    return (RNG.standard_normal(shape) * 2 + offset).astype(np.float32)


def same(ours: Any, theirs: Any, size: float = 1.0) -> None:
    """Equal to within what float32 sums of a few hundred values with a small offset may cost."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5 * size)


def exact(x: np.ndarray, keep: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance by the oracle."""
    reduce = tuple(a for a in range(x.ndim) if a not in keep)
    shape = tuple(x.shape[a] for a in keep)
    rows = x.transpose(keep + reduce).reshape(int(np.prod(shape)), -1).astype(np.float64)
    mean, _, var = np.array([cell_moments(row.tolist()) for row in rows]).T
    return mean.reshape(shape), var.reshape(shape)


def keras_output(layer: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    import keras

    return keras.ops.convert_to_numpy(layer(x, **options))


@pytest.mark.asks("keras")
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("order", ["channels_first", "channels_last"])
def test_keras_batch_norm_axis_1_against_minus_1(axis: int, order: str) -> None:
    """In Keras BatchNormalization the axis is kept: 1 for channels first, -1 for channels last; the other one is a bug."""
    from keras import layers

    x = data(4, 3, 5, 6) if order == "channels_first" else data(4, 5, 6, 3)
    theirs = keras_output(layers.BatchNormalization(axis=axis, epsilon=EPS), x, training=True)
    same(kn.batch_norm(x, channel=axis, eps=EPS), theirs)
    right = 1 if order == "channels_first" else -1
    per_channel = kn.moments(theirs, right)
    assert (axis == right) == np.allclose(per_channel.mean, 0, atol=1e-3)


@pytest.mark.asks("keras")
def test_keras_layer_norm_axis_1_2_3() -> None:
    """In Keras LayerNormalization the axes are reduced: axis=[1, 2, 3] keeps the batch."""
    from keras import layers

    x = data(4, 5, 6, 3)
    same(kn.layer_norm(x, axes=(1, 2, 3), eps=EPS), keras_output(layers.LayerNormalization(axis=[1, 2, 3], epsilon=EPS), x))
    same(kn.normalize(x, 0, eps=EPS), keras_output(layers.LayerNormalization(axis=[1, 2, 3], epsilon=EPS), x))


@pytest.mark.asks("keras")
def test_keras_batch_norm_of_axis_1_2_3_keeps_every_pixel() -> None:
    """Keras 3 refuses BatchNormalization(axis=[1, 2, 3]); on the merged axis it is keep=(1, 2, 3), one mean per pixel."""
    from keras import layers

    x = data(64, 4, 5, 3)
    with pytest.raises((TypeError, ValueError)):
        layers.BatchNormalization(axis=[1, 2, 3])(x, training=True)
    theirs = keras_output(layers.BatchNormalization(axis=-1, epsilon=EPS), x.reshape(64, 60), training=True)
    same(kn.normalize(x, (1, 2, 3), eps=EPS), theirs.reshape(x.shape))
    assert kn.moments(x, (1, 2, 3)).mean.shape == (4, 5, 3)


@pytest.mark.asks("keras")
def test_keras_batch_norm_after_dense_and_after_conv2d() -> None:
    """After Dense there is one mean per unit, after Conv2D one per channel: keep=-1 both times, other axes are reduced."""
    from keras import layers, ops

    x = data(8, 6, 6, 3)
    for units in (layers.Dense(5), layers.Conv2D(5, 3)):
        into = x.reshape(8, -1) if isinstance(units, layers.Dense) else x
        hidden = ops.convert_to_numpy(units(into))
        same(kn.normalize(hidden, -1, eps=EPS), keras_output(layers.BatchNormalization(epsilon=EPS), hidden, training=True))
        assert kn.moments(hidden, -1).mean.shape == (5,)


@pytest.mark.asks("numpy", None)
@pytest.mark.parametrize("keep", [(), (0,), (1,), (0, 2), (1, 3), (0, 1, 2, 3)])
def test_numpy_mean_axis_is_the_complement_of_keep(keep: tuple[int, ...]) -> None:
    """np.mean's axis is what goes, keep is what stays."""
    x = data(4, 3, 5, 6)
    axis = tuple(a for a in range(4) if a not in keep)
    seen = kn.moments(x, keep)
    same(seen.mean, x.mean(axis=axis, dtype=np.float64))
    same(seen.var, x.var(axis=axis, dtype=np.float64))


@pytest.mark.asks("tensorflow")
@pytest.mark.parametrize(("axes", "keep"), [([0], (1, 2, 3)), ([0, 1, 2], (3,)), ([1, 2], (0, 3)), ([1, 2, 3], (0,))])
def test_tf_nn_moments_axes_are_reduced(axes: list[int], keep: tuple[int, ...]) -> None:
    """tf.nn.moments(x, [0, 1, 2]) for "global" moments keeps the channel, [0] for "simple" ones keeps every pixel."""
    import tensorflow as tf

    x = data(8, 5, 6, 3)
    mean, var = tf.nn.moments(x, axes)
    seen = kn.moments(x, keep)
    same(seen.mean, mean)
    same(seen.var, var)


@pytest.mark.asks("torch", None)
def test_video_kept_axis_1_then_flattened() -> None:
    """(1024, 30, 64, 64) with axis 1 kept has 30 means of 1024 * 64 * 64 values; flattened it has the same, bit by bit."""
    few = data(1024, 30, 8, 8)
    video = np.broadcast_to(few[:, :, :, None, :, None], (1024, 30, 8, 8, 8, 8)).reshape(1024, 30, 64, 64)
    seen = kn.moments(video, 1)
    assert seen.count == 1024 * 64 * 64
    assert seen.mean.shape == (30,)
    mean, var = exact(few, (1,))  # every value stands there 64 times
    assert few[:, 0].size > EXACT_LIMIT
    np.testing.assert_allclose(seen.mean, mean.astype(np.float64), rtol=2e-7)
    np.testing.assert_allclose(seen.var, var.astype(np.float64), rtol=2e-7)
    flat = kn.moments(video.reshape(1024, 30, 4096), 1)
    np.testing.assert_array_equal(flat.mean, seen.mean)
    np.testing.assert_array_equal(flat.var, seen.var)
    assert kn.moments(video.reshape(1024, -1), 1).mean.shape == (30 * 64 * 64,)  # flattened first: one mean per pixel


@pytest.mark.asks("torch", None)
def test_batch_s1_s2_channels_normalised_both_ways(session: Session) -> None:
    """[batch, s1, s2, channels]: one mean per channel over everything else, or one per image and channel over s1 and s2."""
    x = data(4, 5, 6, 3)
    everywhere, each = kn.normalize(x, "b s1 s2 c -> c", eps=EPS), kn.normalize(x, "b s1 s2 c -> b c", eps=EPS)
    for y, keep in ((everywhere, (3,)), (each, (0, 3))):
        mean, var = exact(x, keep)
        at = tuple(n if a in keep else 1 for a, n in enumerate(x.shape))
        same(y, (x - mean.reshape(at)) / np.sqrt(var.reshape(at) + EPS))
    assert np.abs(everywhere - each).max() > 0.1
    if session.name == "torch":
        import torch.nn.functional as F

        t = _tensor(x).permute(0, 3, 1, 2)
        same(everywhere, F.batch_norm(t, None, None, training=True, eps=EPS).permute(0, 2, 3, 1))
        same(each, F.instance_norm(t, eps=EPS).permute(0, 2, 3, 1))


@pytest.mark.asks("torch")
def test_batch_norm_2d_is_standardise_then_rescale() -> None:
    """BatchNorm2d with weight [1, 2, 3] and bias [34, 35, 69] is the two steps "standardise, then rescale"."""
    import torch

    x = data(8, 3, 5, 6)
    weight, bias = np.array([1, 2, 3], np.float32), np.array([34, 35, 69], np.float32)
    layer = torch.nn.BatchNorm2d(3)
    layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    theirs = layer(_tensor(x)).detach()
    two_steps = kn.normalize(x, 1) * weight.reshape(3, 1, 1) + bias.reshape(3, 1, 1)
    same(kn.batch_norm(x, weight, bias, channel=1), theirs, size=69)
    same(two_steps, theirs, size=69)
    seen = kn.moments(kn.batch_norm(x, weight, bias, channel=1), 1)
    np.testing.assert_allclose(seen.mean, bias, rtol=1e-6)
    np.testing.assert_allclose(seen.std, weight, rtol=1e-4)


def _tensor(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(x)
