"""Batch renormalisation: the paper's formula, its limits, and its gradient with r and d constant."""

import os

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.renorm import BatchRenorm
from tests import oracle
from tests.tolerance import assert_gradient, assert_output, assert_within, ulp

EPS = 1e-5


def paper(x, mean, std, r_max, d_max, weight, bias):
    """One step of algorithm 1 in float64: the output, r, d and the batch's mean and standard deviation."""
    x = x.astype("f8")
    own_mean, own_std = x.mean(0), np.sqrt(x.var(0) + EPS)
    r = np.clip(own_std / std, 1 / r_max, r_max)
    d = np.clip((own_mean - mean) / std, -d_max, d_max)
    return ((x - own_mean) / own_std * r + d) * weight + bias, r, d, own_mean, own_std


def start(rng, **options):
    bn = BatchRenorm(4, keep=-1, decay=0.8, **options)
    bn.weight, bn.bias = rng.random((2, 4)).astype("f4")
    return bn


@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (1.5, 0.3), (3.0, 5.0), (1e9, 1e9)])
def test_three_steps_are_those_of_the_paper(rng, r_max, d_max):
    bn = start(rng, r_max=r_max, d_max=d_max)
    mean, std = np.zeros(4), np.sqrt(np.ones(4) + EPS)
    for _ in range(3):
        x = (rng.standard_normal((16, 4)) * [0.1, 1, 2, 9] + 1).astype("f4")
        y, _, _, own_mean, own_std = paper(x, mean, std, r_max, d_max, bn.weight, bn.bias)
        got = bn(x, training=True)
        # r and d are rounded to float32 from a float32 running state, and multiply hat.
        assert_output(got, y, x.size, size=8 * np.maximum(np.abs(y), 1))
        mean, std = 0.8 * mean + 0.2 * own_mean, 0.8 * std + 0.2 * own_std
    assert_within(bn.running.mean, mean, 4 * ulp(np.maximum(np.abs(mean), 1), "f4"))
    assert_within(np.sqrt(bn.running.var + EPS), std, 4 * ulp(std, "f4"))


def test_unclipped_training_is_inference(rng):
    bn = start(rng, r_max=1e9, d_max=1e9)
    x = (rng.standard_normal((16, 4)) * 3 + 1).astype("f4")
    inference = bn(x, training=False).astype("f8")
    assert_output(bn(x, training=True), inference, x.size, size=4 * np.maximum(np.abs(inference), 1))


def test_without_room_for_r_and_d_it_is_batch_norm(rng):
    bn = start(rng, r_max=1, d_max=0)
    x = (rng.standard_normal((16, 4)) * 3 + 1).astype("f4")
    np.testing.assert_array_equal(bn(x, training=True), kn.normalize(x, -1, bn.weight, bn.bias))


def test_gradient_with_constant_r_and_d(rng):
    bn = start(rng, r_max=1.5, d_max=0.3)
    bn.update(kn.moments(rng.standard_normal((16, 4)).astype("f4"), -1))
    x, dy = (rng.standard_normal((2, 16, 4)) * 3 + 1).astype("f4")
    state = bn.state
    _, r, d, _, _ = paper(x, state.mean, np.sqrt(state.var.astype("f8") + EPS), 1.5, 0.3, bn.weight, bn.bias)
    dx, dhat, dbias, _ = oracle.gradients(x, dy, -1, bn.weight * r)
    y, vjp = bn.vjp(x)
    assert bn.state is state
    got = vjp(dy)
    assert_gradient(got.x, dx, np.abs(dx).max(), x.size)
    dweight = dhat * r + dbias * d
    assert_gradient(got.weight, dweight, 4 * np.abs(dweight).max(), x.size)
    assert_gradient(got.bias, dbias, np.abs(dbias).max(), x.size)
    np.testing.assert_array_equal(bn.vjp(x, training=True)[0], y)
    assert bn.state.updates == state.updates + 1


def test_masks_merged_moments_and_absent_parameters(rng):
    x = (rng.standard_normal((16, 4)) * 3 + 1).astype("f4")
    where = rng.random((16, 1)) < 0.5
    bn, twin = BatchRenorm(4, keep=-1, affine=False), BatchRenorm(4, keep=-1, affine=False)
    y = bn(x, training=True, where=where)
    np.testing.assert_array_equal(y, twin(x, training=True, moments=kn.moments(x, -1, where=where)))
    np.testing.assert_array_equal(bn.state.var, twin.state.var)
    assert bn.vjp(x)[1](x)[1:] == (None, None)
    assert bn(x[:0], training=True).shape == (0, 4)


def test_bad_limits_say_what_was_got():
    with pytest.raises(ValueError, match=r"r_max must be at least 1; got 0.5"):
        BatchRenorm(4, keep=-1, r_max=0.5)
    with pytest.raises(ValueError, match="d_max must be at least 0; got -1"):
        BatchRenorm(4, keep=-1, d_max=-1)
    with pytest.raises(ValueError, match="count of 1"):
        BatchRenorm(4, keep=-1)(np.ones((1, 4), "f4"), training=True)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's variables, in NumPy 2
def test_three_steps_are_those_of_keras(rng):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    clipping = {"rmin": 1 / 1.5, "rmax": 1.5, "dmax": 0.3}
    # Keras starts from a deviation of 1, the paper's formula from sqrt(1 + eps): a small eps makes them one.
    layer = keras.layers.BatchNormalization(
        momentum=0.8, epsilon=1e-7, renorm=True, renorm_clipping=clipping, renorm_momentum=0.8
    )
    bn = BatchRenorm(4, keep=-1, decay=0.8, eps=1e-7, r_max=1.5, d_max=0.3)
    for _ in range(3):
        x = (rng.standard_normal((16, 4)) * [0.1, 1, 2, 9] + 1).astype("f4")
        y = keras.ops.convert_to_numpy(layer(x, training=True)).astype("f8")
        assert_output(bn(x, training=True), y, x.size, size=32 * np.maximum(np.abs(y), 1))
    var = keras.ops.convert_to_numpy(layer.moving_variance)
    assert_within(bn.running.var, var, 32 * ulp(np.maximum(var, 1), "f4"))


def test_terms_that_cancel_are_not_rounded_between(rng):
    """dweight is ``r * sum(dy * hat) + d * sum(dy)``, and y has ``d * weight + bias``: neither is float32 on the way."""
    bn = start(rng, r_max=1e9, d_max=1e9)
    bn.state = bn.state._replace(mean=np.full(4, -3e4, "f4"))
    x, dy = np.add(rng.standard_normal((2, 64, 4)), [[[2]], [[-1]]]).astype("f4")
    bn.bias = (-3e4 * bn.weight).astype("f4")
    y, r, d, _, _ = paper(x, bn.state.mean, np.sqrt(bn.state.var.astype("f8") + EPS), 1e9, 1e9, bn.weight, bn.bias)
    got, vjp = bn.vjp(x)
    assert_output(got, y, x.size)
    np.testing.assert_array_equal(bn(x, training=True), got)
    _, dhat, dbias, _ = oracle.gradients(x, dy, -1)
    dweight = dhat * r + dbias * d
    assert vjp(dy).weight.dtype == np.float32
    assert_gradient(vjp(dy).weight, dweight, np.abs(dweight).max(), x.size)
