"""Porting: a folded network gives what the layers gave, an inserted batch norm changes nothing, Keras's counts."""

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.porting import fold_into, insert, parameter_count
from tests.tolerance import assert_within, ulp


def batch_norm(rng, channels):
    """One that has been trained."""
    bn = kn.BatchNorm(channels, keep=-1)
    bn.weight, bn.bias = rng.standard_normal((2, channels)).astype("f4")
    for _ in range(3):
        bn((rng.standard_normal((8, channels)) * 3 + 2).astype("f4"), training=True)
    return bn


def convolve(x, kernel, bias):
    """The valid convolution, channels last, with a kernel of shape (height, width, in, out), in float64."""
    windows = np.lib.stride_tricks.sliding_window_view(x.astype("f8"), kernel.shape[:2], (1, 2))
    return np.einsum("nxychw,hwco->nxyo", windows, kernel.astype("f8")) + bias


def same(got, needed, terms):
    """Kernels are rounded once to float32; an output sums `terms` of them."""
    assert_within(got, needed, 2 * np.sqrt(terms) * ulp(np.abs(needed).max(), "f4"))


@pytest.mark.parametrize(
    ("pattern", "order"),
    [
        ("h w i o -> o", (0, 1, 2, 3)),  # Keras, Flax
        ("o i h w -> o", (3, 2, 0, 1)),  # PyTorch, ONNX
        ("o h w i -> o", (3, 0, 1, 2)),  # MLX
        ("i o h w -> o", (2, 3, 0, 1)),  # PyTorch, transposed
        (-1, (0, 1, 2, 3)),
        (0, (3, 2, 0, 1)),
    ],
)
def test_folding_into_a_convolution_of_any_layout(rng, pattern, order):
    x = rng.standard_normal((2, 6, 5, 3)).astype("f4")
    kernel, bias = rng.standard_normal((3, 2, 3, 4)).astype("f4"), rng.standard_normal(4).astype("f4")
    bn = batch_norm(rng, 4)
    needed = bn(convolve(x, kernel, bias), training=False)
    folded, offset = fold_into(kernel.transpose(order), bias, bn, keep=pattern)
    assert folded.dtype == offset.dtype == np.float32
    same(convolve(x, folded.transpose(np.argsort(order)), offset), needed, 18)
    folded, offset = fold_into(kernel.transpose(order), None, bn, keep=pattern)
    same(convolve(x, folded.transpose(np.argsort(order)), offset), bn(convolve(x, kernel, 0), training=False), 18)


@pytest.mark.parametrize(("pattern", "transposed"), [("i o -> o", False), ("o i -> o", True)])
def test_folding_into_a_dense_layer(rng, pattern, transposed):
    x, kernel = rng.standard_normal((7, 6)), rng.standard_normal((6, 4)).astype("f4")
    bn = batch_norm(rng, 4)
    folded, offset = fold_into(kernel.T if transposed else kernel, np.ones(4, "f4"), bn, keep=pattern)
    same(x @ (folded.T if transposed else folded) + offset, bn(x @ kernel + 1, training=False), 6)


def test_folding_into_grouped_kernels(rng):
    bn = batch_norm(rng, 6)
    scale, shift = bn.fold(dtype="float64")
    depthwise = rng.standard_normal((3, 3, 2, 3)).astype("f4")  # Keras: channel c, multiplier m, output channel 3 c + m
    folded, offset = fold_into(depthwise, None, bn, keep="h w c m -> c m")
    np.testing.assert_array_equal(folded, (depthwise * scale.reshape(2, 3)).astype("f4"))
    np.testing.assert_array_equal(offset, shift.astype("f4"))
    transposed = rng.standard_normal((4, 3, 2, 2)).astype("f4")  # PyTorch: two groups, of which each has three outputs
    folded, _ = fold_into(transposed, None, bn, keep="(g i) o h w -> g o", g=2)
    np.testing.assert_array_equal(folded[:2], (transposed[:2] * scale[:3, None, None]).astype("f4"))
    np.testing.assert_array_equal(folded[2:], (transposed[2:] * scale[3:, None, None]).astype("f4"))


def test_folding_takes_scale_and_shift_and_keeps_the_dtype(rng):
    bn = batch_norm(rng, 4)
    kernel = rng.standard_normal((6, 4)).astype("f2")
    folded, offset = fold_into(kernel, None, bn.fold(dtype="float64"), keep="i o -> o")
    assert folded.dtype == offset.dtype == np.float16
    np.testing.assert_array_equal(folded, fold_into(kernel, None, bn, keep=1)[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k, bn: fold_into(k, None, bn, keep="i o -> i"), ValueError, "gives 6 output channels; got .* with 4"),
        (lambda k, bn: fold_into(k, np.ones(3), bn, keep=1), ValueError, r"each of the 4 output channels; got shape \(3,\)"),
        (lambda k, bn: fold_into(k, None, bn.weight, keep=1), TypeError, "got ndarray"),
        (lambda k, _: insert(k), TypeError, "keep= is missing"),
        (lambda k, _: insert(k[:0], keep=1), ValueError, "at least one value per cell"),
    ],
)
def test_errors_say_what_was_got(rng, call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((6, 4), "f4"), batch_norm(rng, 4))


@pytest.mark.parametrize("keep", [-1, 1, (1, 2)])
@pytest.mark.parametrize("offset", [0, 100, 1e4])
def test_an_inserted_batch_norm_changes_nothing(rng, keep, offset):
    x = (rng.standard_normal((16, 5, 4)) * [0.01, 1, 3, 50] + offset).astype("f4")
    bn = insert(x, keep=keep)
    limit = 4 * ulp(np.maximum(np.abs(x), np.abs(x - offset).max()), "f4")
    assert_within(bn(x, training=False), x, limit)
    assert_within(bn(x, training=True), x, limit)
    assert bn.state.updates == 2
    assert bn.state.count == 16 * (1 if keep == (1, 2) else 20 // bn.shape[0])


def test_inserting_from_the_moments_of_a_stream_and_for_dead_channels(rng):
    seen = kn.Accumulator(keep=-1)
    x = rng.standard_normal((30, 4)).astype("f4")
    x[:, 1] = 7.0
    for part in np.split(x, 3):
        seen.update(part)
    bn = insert(seen.moments, singleton="zero")
    assert bn.keep == (1,)
    assert_within(bn(x, training=False), x, 4 * ulp(np.maximum(np.abs(x), 1), "f4"))
    wide = insert(x.astype("f8"), keep=-1)
    assert_within(wide(x.astype("f8"), training=False), x, 8 * ulp(np.full(x.shape, 8.0), "f8"))


def test_the_counts_that_keras_prints():
    assert parameter_count(50) == (200, 100, 100)
    assert parameter_count(kn.BatchNorm(30, keep=-1)) == (120, 60, 60)
    assert parameter_count((5, 7)) == (140, 70, 70)
    bn = kn.BatchNorm(10, keep=-1)
    bn.weight = None  # scale=False
    assert parameter_count(bn) == (30, 10, 20)


def test_the_counts_are_those_of_keras():
    import os

    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    for options in ({}, {"scale": False}, {"center": False}):
        layer = keras.layers.BatchNormalization(**options)
        layer.build((None, 30))
        bn = kn.BatchNorm(30, keep=-1)
        bn.weight = bn.weight if layer.scale else None
        bn.bias = bn.bias if layer.center else None
        trained = sum(int(np.prod(w.shape)) for w in layer.trainable_weights)
        assert parameter_count(bn)[:2] == (layer.count_params(), trained)


def test_folding_torch_layers(rng):
    torch = pytest.importorskip("torch")
    for layer, pattern, sizes, shape in (
        (torch.nn.Conv2d(3, 4, 3), "o i h w -> o", {}, (2, 3, 6, 5)),
        (torch.nn.ConvTranspose2d(4, 4, 3, groups=2), "(g i) o h w -> g o", {"g": 2}, (2, 4, 6, 5)),
        (torch.nn.Linear(3, 4), "o i -> o", {}, (2, 3)),
    ):
        bn = batch_norm(rng, 4)
        bn.keep = (1,)
        x = torch.from_numpy(rng.standard_normal(shape).astype("f4"))
        with torch.no_grad():
            needed = bn(layer(x), training=False)
            kernel, offset = fold_into(layer.weight, layer.bias, bn, keep=pattern, **sizes)
            assert isinstance(kernel, torch.Tensor)
            layer.weight.copy_(kernel)
            layer.bias.copy_(offset)
            same(layer(x).numpy(), needed.numpy().astype("f8"), 36)
