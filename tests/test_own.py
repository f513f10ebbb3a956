"""Values with their own weight and bias (layer norm): in float32 where that is enough, and in float64 where it is not."""

import ml_dtypes
import numpy as np
import pytest
from numba import njit

import keepnorm as kn
from keepnorm.kernels.cpu import affine_elementwise
from keepnorm.kernels.records import BFLOAT16, FLOAT16
from keepnorm.tuning import ALIGNED_RUN
from tests.tolerance import ulp

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def exact(x, w, b, eps=1e-5):
    wide = x.astype("f8")
    axes = tuple(range(1, x.ndim))
    mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
    return (wide - mean) / np.sqrt(var + eps) * w.astype("f8") + b.astype("f8")


def places(got, right):
    """The largest error in units in the last place of max(|y|, 1)."""
    return np.max(np.abs(got.astype("f8") - right) / ulp(np.maximum(np.abs(right), 1.0), got.dtype))


def layouts(x):
    """x in every order of its axes in memory: rows that are runs, and rows that are lanes."""
    yield x
    yield np.asfortranarray(x)
    if x.ndim > 2:
        yield np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [0, 0.9, 3.4, 3.6, 300, 1e5], ids=str)
@pytest.mark.parametrize("offset", [0, 0.2, 3, 90])
@pytest.mark.parametrize("shape", [(70, 768), (9, 4, 33), (300, 5), (2, 70000)], ids=str)
def test_within_two_places_in_every_layout(dtype, bias, offset, shape):
    rng = np.random.default_rng(11)
    if bias > 6e4 and dtype is np.float16:
        bias = 6e4
    x = (rng.standard_normal(shape) + offset).astype(dtype)
    w, b = rng.standard_normal(shape[1:]).astype(dtype), (rng.uniform(-1, 1, shape[1:]) * bias).astype(dtype)
    right = exact(x, w, b)
    answers = [kn.layer_norm(a, w, b, axes=tuple(range(1, x.ndim))) for a in layouts(x)]
    assert places(answers[0], right) <= (1.9 if dtype is np.float32 else 0.51)
    assert {np.ascontiguousarray(y).tobytes() for y in answers} == {answers[0].tobytes()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_every_width_end_where_they_should(dtype):
    """A row is sixteen, eight or fewer values at a time; what lies behind it in memory is not touched."""
    rng = np.random.default_rng(13)
    for n in range(1, 67):
        x = rng.standard_normal((7, n)).astype(dtype)
        w, b = rng.standard_normal((2, n)).astype(dtype)
        memory = np.full(8 * n + 40, 7, dtype)
        out = memory[1 : 7 * n + 1].reshape(7, n)
        kn.layer_norm(x, w, b, axes=-1, out=out)
        assert places(out, exact(x, w, b)) <= (1.9 if dtype is np.float32 else 0.51), n
        assert np.all(np.delete(memory, range(1, 7 * n + 1)) == 7), n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 1, 4, 12, 15])
def test_long_rows_begin_and_end_where_they_should_also_in_place(start, dtype):
    """Their ends overlap what lies between them: nothing may be normalised twice."""
    rng = np.random.default_rng(17)
    for n in (ALIGNED_RUN - 1, *range(ALIGNED_RUN, ALIGNED_RUN + 34), 768, 1000):
        x = rng.standard_normal((5, n)).astype(dtype)
        w, b = rng.standard_normal((2, n)).astype(dtype)
        memory = np.full(5 * n + 100, 7, dtype)
        first = -memory.ctypes.data % 64 // memory.itemsize + start
        inside = slice(first, first + 5 * n)
        out = memory[inside].reshape(5, n)
        right = exact(x, w, b)
        kn.layer_norm(x, w, b, axes=-1, out=out)
        assert places(out, right) <= (1.9 if dtype is np.float32 else 0.51), n
        apart = out.tobytes()
        out[...] = x
        kn.layer_norm(out, w, b, axes=-1, out=out)
        assert out.tobytes() == apart, n
        assert np.all(np.delete(memory, range(inside.start, inside.stop)) == 7), n


def test_a_bias_that_cancels_the_rest_is_added_in_float64():
    """In float32 the error would be half a place of 10,000."""
    rng = np.random.default_rng(12)
    x = rng.standard_normal((400, 96)).astype("f4")
    w = np.full(96, 1e4, "f4")
    b = -1e4 * exact(x, np.ones(96), np.zeros(96))[7]
    y = kn.layer_norm(x, w, b.astype("f4"), axes=-1)
    right = exact(x, w, b.astype("f4"))
    # 2^-29 is what the mean and the scale of a narrow result are rounded to; what cancels here is up to three times 1e4.
    assert np.max(np.abs(y - right)[7]) <= 2.0**-27 * 3e4


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("order", "CF")
def test_a_bias_that_cancels_the_rest_of_halves_is_added_in_float64(dtype, order):
    rng = np.random.default_rng(12)
    x = np.array(rng.standard_normal((400, 96)), dtype, order=order)
    w = np.full(96, 200, "f4")
    b = (-200 * exact(x, np.ones(96), np.zeros(96))[7]).astype("f4")
    got, right = kn.layer_norm(x, w, b, axes=-1)[7], exact(x, w, b)[7]
    assert np.abs(right).max() < 1e-4
    # 2^-28 is what the scale of a narrow result is rounded to; float32 would be off by 1e-4.
    assert np.max(np.abs(got.astype("f8") - right)) <= 2.0**-27 * 600


@njit
def parts_of(x, mean, scale):
    return affine_elementwise.float32_parts(x, mean, scale)


@pytest.mark.parametrize("x", [np.zeros(1, "f4"), np.zeros(1, FLOAT16), np.zeros(1, BFLOAT16)], ids=lambda x: str(x.dtype))
def test_float32_loses_neither_the_mean_nor_the_scale(x):
    mean, scale = 100.123456789, 0.987654321
    one, other, shift = map(float, parts_of(x, mean, scale))
    assert one == np.float32(scale)
    if x.dtype == np.float32:
        assert abs(one + other - scale) <= 2.0**-48
        assert shift == np.float32(-mean * scale)
    else:
        assert other == np.float32(mean)
        assert abs(other - shift / scale - mean) <= 2.0**-24 * abs(other - mean)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(
    ("bias", "weight", "mean"),
    [(3.625, 1, 0), (0, 4.125, 0), (0, 1, 0.3), (0, 3.875, 0.08), (0, 1 + 2.0**-25, 0), (1 + 2.0**-25, 1, 0)],
)
def test_beyond_each_limit_the_result_is_rounded_once(bias, weight, mean, order):
    """A single parameter beyond a limit is enough; in float32 some values would be off by more."""
    rng = np.random.default_rng(18)
    x = rng.standard_normal((300, 500))
    x = np.array(x - x.mean(1, keepdims=True) + mean, "f4", order=order)
    w, b = rng.uniform(0.5, 1.0, 500).astype("f4").astype("f8"), rng.uniform(2.0, 3.4, 500).astype("f4").astype("f8")
    b[1::2] = 0.0
    w[0], b[0] = weight, bias
    y = kn.layer_norm(x, w, b, axes=-1)
    right = exact(x, w, b)
    once = ulp(np.maximum(np.abs(right), 1.0), "f4")
    assert np.max(np.abs(y - right) / once) < 0.6
    w[0], b[0] = 1.0, 0.0
    within = np.array(x - np.float32(mean), order=order)
    assert 0.6 < np.max(np.abs(kn.layer_norm(within, w, b, axes=-1) - exact(within, w, b)) / once) < 1.9


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize(("mean", "bias", "once"), [(0.48, 1.5, False), (0.52, 1.5, True), (0.48, 1.5 + 2.0**-23, True)])
def test_a_small_bias_leaves_more_to_the_mean(mean, bias, once, order):
    rng = np.random.default_rng(20)
    x = rng.standard_normal((3000, 500))
    x = np.array((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) + mean, "f4", order=order)
    w, b = rng.uniform(0.9, 1.0, 500).astype("f4"), rng.uniform(-1.5, 1.5, 500).astype("f4")
    w[0], b[0] = 1.0, bias
    worst = places(kn.layer_norm(x, w, b, axes=-1), exact(x, w, b))
    assert worst < 0.6 if once else 0.6 < worst < 1.9


def test_parameters_of_another_cell_do_not_matter():
    rng = np.random.default_rng(19)
    x = rng.standard_normal((5, 400)).astype("f4")
    w, b = rng.standard_normal((2, 5, 400)).astype("f4")
    together = kn.normalize(x, 0, w, b, affine=(0, 1))
    w[4, 0], b[3, 0] = np.nan, 300
    assert kn.normalize(x, 0, w, b, affine=(0, 1))[:3].tobytes() == together[:3].tobytes()
    assert kn.normalize(x[:1], 0, w[:1], b[:1], affine=(0, 1))[0].tobytes() == together[0].tobytes()


def test_cells_of_both_kinds_side_by_side_do_not_meet():
    rng = np.random.default_rng(13)
    x = rng.standard_normal((37, 200)).astype("f4")
    x[::2] += 40  # float32 is not enough for these
    x[5] = 2.5
    w, b = rng.standard_normal((2, 200)).astype("f4")
    together = kn.layer_norm(x, w, b, axes=-1)
    assert np.array_equal(together[5], b)
    lanes = kn.layer_norm(np.asfortranarray(x), w, b, axes=-1)
    for row in range(37):
        alone = kn.layer_norm(x[row : row + 1], w, b, axes=-1)[0]
        assert alone.tobytes() == together[row].tobytes() == np.ascontiguousarray(lanes[row]).tobytes()


def test_weights_with_more_digits_than_float32_keep_them():
    rng = np.random.default_rng(14)
    x = rng.standard_normal((50, 64)).astype("f4")
    w, b = 1e3 + rng.random((2, 64))
    right = exact(x, w, b - 1e3)
    for a in layouts(x):
        y = kn.layer_norm(a, w, b - 1e3, axes=-1)
        assert np.all(np.abs(y - right) <= ulp(np.maximum(np.abs(right), 1.0), "f4") * 0.6 + 1e3 * 2.0**-28)


@pytest.mark.parametrize("order", "CF")
def test_the_ends_of_float32(order):
    """Given moments say nothing of how large (x - mean) / std may be: a weight of 0 makes of it the bias."""
    x = np.array([[3e38, 1, -2], [3e38, -3e38, 5]], "f4", order=order)
    moments = kn.Moments.from_mean_var(np.zeros(2, "f4"), np.full(2, 1e-4, "f4"), keep=(0,), ndim=2)
    w, b = np.array([0, 1e-30, 1], "f4"), np.array([1, 2, 3], "f4")
    got = kn.normalize(x, 0, w, b, affine=1, moments=moments, eps=0.0)
    right = x.astype("f8") / np.sqrt(np.float64(np.float32(1e-4))) * w.astype("f8") + b
    np.testing.assert_allclose(got, right, rtol=2.0**-22)
    for size in (1e-44, 1e-38, 3e38):  # scales that float32 cannot hold, or not to all its digits
        x = (size * np.random.default_rng(16).uniform(-1, 1, (4, 500))).astype("f4", order=order)
        got = kn.layer_norm(x, np.ones(500, "f4"), np.zeros(500, "f4"), axes=-1, eps=0.0)
        assert places(got, exact(x, np.ones(500), np.zeros(500), 0.0)) < 0.8


def test_of_axes_that_are_affine_in_part_every_layout_takes_the_same_way():
    rng = np.random.default_rng(17)
    x = rng.standard_normal((3, 260, 5, 7)).astype("f4")
    w, b = rng.standard_normal((2, 260)).astype("f4")
    y = kn.group_norm(x, w, b, groups=2, channel=1)
    last = kn.group_norm(np.ascontiguousarray(np.moveaxis(x, 1, -1)), w, b, groups=2, channel=-1)
    assert np.ascontiguousarray(np.moveaxis(last, -1, 1)).tobytes() == y.tobytes()


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_missing_value_stays_in_its_cell_and_a_missing_weight_in_its_column(order, value):
    x = np.random.default_rng(15).standard_normal((6, 30)).astype("f4", order=order)
    w, b = np.ones(30, "f4"), np.zeros(30, "f4")
    plain = kn.layer_norm(x, w, b, axes=-1)
    x[2, 3] = value
    broken = kn.layer_norm(x, w, b, axes=-1)
    assert np.isnan(broken[2]).all()
    others = np.arange(6) != 2
    assert np.array_equal(broken[others], plain[others])
    w[4], b[5] = value, np.nan
    y = kn.layer_norm(x, w, b, axes=-1)[others]
    assert not np.isfinite(y[:, 4]).any()
    assert np.isnan(y[:, 5]).all()
    rest = np.setdiff1d(np.arange(30), [4, 5])
    np.testing.assert_allclose(y[:, rest], plain[others][:, rest], rtol=2.0**-20, atol=2.0**-23)
