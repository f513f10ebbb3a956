"""The affine step of halves in float32: as exact as in float64, in every walk, and where float32 would not do."""

import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from tests.tolerance import ulp

HALVES = [np.float16, ml_dtypes.bfloat16]


def exact(x, keep, w, b, eps=1e-5):
    wide = x.astype("f8")
    red = tuple(a for a in range(x.ndim) if a != keep)
    shape = [-1 if a == keep else 1 for a in range(x.ndim)]
    mean, var = wide.mean(red, keepdims=True), wide.var(red, keepdims=True)
    return (wide - mean) / np.sqrt(var + eps) * w.astype("f8").reshape(shape) + b.astype("f8").reshape(shape)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("offset", [0, 30, 2000])
@pytest.mark.parametrize(("shape", "keep"), [((4, 5, 300), 1), ((60, 300), -1), ((700, 3), -1), ((6, 40, 7, 7), 1)])
def test_a_half_is_the_float64_result_rounded(dtype, offset, shape, keep):
    rng = np.random.default_rng(5)
    keep %= len(shape)
    x = (rng.standard_normal(shape) * (1 + offset / 100) + offset).astype(dtype)
    w, b = rng.random((2, shape[keep])).astype(dtype)
    right = exact(x, keep, w, b)
    got = kn.normalize(x, keep, w, b).astype("f8")
    # Half a place of its own rounding, and what the roundings before may add to it.
    limit = ulp(np.maximum(np.abs(right), 1.0), "float32") * 4 + ulp(right, dtype) * 0.5001
    assert np.all(np.abs(got - right) <= limit)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)], ids=["runs", "lanes"])
def test_rows_of_every_length_and_in_place(dtype, order):
    """Rows end anywhere in sixteen or thirty-two values, which are read before the results beside them are written."""
    rng = np.random.default_rng(8)
    for n in (*range(1, 101), 127, 128, 129, 159, 160, 161, 191, 193):
        x = (rng.standard_normal((3, 2, n)) + 1).astype(dtype)
        w, b = rng.random((2, 2)).astype(dtype)
        right = exact(x, 1, w, b)
        limit = ulp(np.maximum(np.abs(right), 1.0), "float32") * 4 + ulp(right, dtype) * 0.5001
        x = np.ascontiguousarray(x.transpose(order))
        keep = order.index(1)
        y = kn.normalize(x, keep, w, b)
        assert np.all(np.abs(y.transpose(np.argsort(order)).astype("f8") - right) <= limit), n
        memory = np.full(x.size + 40, 5, dtype)
        for start in (1, 16, 19):
            there = memory[start : start + x.size].reshape(x.shape)
            there[...] = x
            assert kn.normalize(there, keep, w, b, out=there).tobytes() == y.tobytes(), n
            assert (np.delete(memory, slice(start, start + x.size)) == 5).all(), n
            there[...] = 5


@pytest.mark.parametrize("dtype", HALVES)
def test_the_same_bits_in_every_layout(dtype):
    rng = np.random.default_rng(6)
    x = (rng.standard_normal((33, 12, 150)) + 3).astype(dtype)
    w, b = rng.random((2, 12)).astype(dtype)
    y = kn.normalize(x, 1, w, b)
    for order in ((0, 2, 1), (2, 0, 1), (1, 0, 2), (2, 1, 0)):
        moved = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
        assert moved.strides != x.strides
        assert kn.normalize(moved, 1, w, b).tobytes() == y.tobytes()


def test_what_float32_cannot_hold_goes_through_float64():
    x = np.array([[3e38, 1.0], [-3e38, 2.0], [3e38, 3.0]], ml_dtypes.bfloat16)
    w, b = np.ones(2), np.zeros(2)
    with np.errstate(over="ignore"):
        right = exact(x, 1, w, b, eps=0.0)
    got = kn.normalize(x, 1, eps=0.0).astype("f8")
    assert np.all(np.abs(got - right) <= ulp(np.maximum(np.abs(right), 1), ml_dtypes.bfloat16))
    tiny = np.array([1e-38, 2e-38, 3e-38], ml_dtypes.bfloat16)  # a scale of 1e38, more than the float32 factor may be
    right = exact(tiny[:, None], 1, np.ones(1), np.zeros(1), eps=0.0)[:, 0]
    assert np.all(
        np.abs(kn.normalize(tiny, (), eps=0.0).astype("f8") - right) <= ulp(np.maximum(np.abs(right), 1), tiny.dtype)
    )


def cancelling(dtype):
    """(x, weight, bias) where the bias of every second channel cancels one of its values nearly, far beyond float32."""
    rng = np.random.default_rng(7)
    x = (rng.random((401, 12, 150)) - 0.5).astype(dtype)  # so many values that one unit of float32 shows in some
    w, b = rng.random((2, 12)) + 0.5
    w[::2] *= 1e4 if dtype is np.float16 else 1e9
    hat = exact(x, 1, np.ones(12), np.zeros(12))
    b[::2] = -(w * hat[5, :, 7])[::2]
    return x, w, b


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)], ids=["runs", "lanes"])
def test_terms_that_cancel_are_computed_in_float64(dtype, order):
    x, w, b = cancelling(dtype)
    x = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
    got, right = kn.normalize(x, 1, w, b).astype("f8"), exact(x, 1, w, b)
    # 2^-29 is what the mean and the scale of a narrow result are rounded to.
    limit = ulp(np.maximum(np.abs(right), 1.0), dtype) + 2.0**-27 * np.abs(w)[:, None]
    assert np.all(np.abs(got - right) <= limit)


@pytest.mark.parametrize("dtype", HALVES)
def test_one_cell_does_not_choose_for_its_neighbours(dtype):
    x, w, b = cancelling(dtype)
    y = kn.normalize(x, 1, w, b)
    for order in ((0, 2, 1), (2, 0, 1), (1, 0, 2), (2, 1, 0)):
        moved = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
        assert kn.normalize(moved, 1, w, b).tobytes() == y.tobytes()
        assert kn.normalize(moved, 1, w, b, out=moved).tobytes() == y.tobytes()
    for channel in range(12):
        one = slice(channel, channel + 1)
        assert kn.normalize(x[:, one], 1, w[one], b[one]).tobytes() == y[:, one].tobytes()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("shape", "keep"), [((2, 3, 200), 1), ((200, 3), 1)])
def test_an_infinity_with_given_moments_stays_where_it_is(dtype, shape, keep):
    x = np.ones(shape, dtype)
    x.reshape(-1)[3] = np.inf
    given = kn.Moments.from_mean_var(np.zeros(3), np.ones(3), keep=keep, ndim=len(shape))
    y = kn.normalize(x, keep, np.full(3, -1.3, dtype), moments=given).astype("f4")
    assert np.isneginf(y.reshape(-1)[3])
    assert np.isfinite(np.delete(y.reshape(-1), 3)).all()
