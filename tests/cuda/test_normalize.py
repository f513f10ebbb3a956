"""The affine step and the whole forward pass in the simulator, against the float64 definition."""

import ml_dtypes
import numpy as np
import pytest

from keepnorm.axes import resolve
from keepnorm.engines.cuda import engine
from keepnorm.moments import Moments
from keepnorm.request import Request
from tests import oracle, tolerance
from tests.cuda.device import data, normalize, subsets
from tests.layouts import LAYOUTS, broadcasts

ROLES = [(shape, keep) for shape in [(9,), (4, 11), (2, 5, 7), (2, 3, 2, 5)] for keep in subsets(len(shape))]


def shape_of(shape, axes):
    return tuple(shape[a] for a in axes)


def check(x, keep, *, affine=None, dtype="float32", weight=True, bias=True, eps=1e-5, center=True, out=None, where=None, rng):
    affine_axes = oracle.kept_axes(keep if affine is None else affine, x.ndim)
    w = data(rng, shape_of(x.shape, affine_axes), dtype) if weight else None
    b = data(rng, shape_of(x.shape, affine_axes), dtype) if bias else None
    y = normalize(x, keep, w, b, affine=affine, eps=eps, center=center, out=out, where=where)
    cells = oracle.moments(x, keep, where)
    reference = oracle.normalize(x, keep, w, b, affine=affine, eps=eps, center=center, where=where, cells=cells)
    hat = oracle.normalize(x, keep, eps=eps, center=center, where=where, cells=cells)
    size = np.abs(hat) * (1 if w is None else np.abs(oracle.affine_view(w, affine_axes, x.ndim)))
    size = size + (0 if b is None else np.abs(oracle.affine_view(b, affine_axes, x.ndim)))
    condition = 1 + np.max(np.abs(cells.mean) / np.sqrt(cells.var + eps)) if y.dtype == np.float64 else 1
    limit = tolerance.OUTPUT_ULPS * tolerance.ulp(np.maximum(size, 1.0), y.dtype)
    limit = limit + 4 * tolerance.state(cells.count) * np.maximum(size, 1.0) * condition
    tolerance.assert_within(y.astype(np.float64), reference, limit)
    return y


@pytest.mark.parametrize(("shape", "keep"), ROLES, ids=str)
def test_every_role(shape, keep, rng):
    check(data(rng, shape, offset=100), keep, rng=rng)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [(1,), (2,), (0, 1)], ids=str)
def test_every_layout(layout, keep, rng):
    check(LAYOUTS[layout](data(rng, (3, 6, 8), offset=-30)), keep, rng=rng)


@pytest.mark.parametrize("layout", ["C", "channels last", "transposed", "padded", "all negative"])
@pytest.mark.parametrize("affine", [(1,), (2,), (1, 2), (0, 2), ()], ids=str)
def test_weights_on_any_axes(layout, affine, rng):
    check(LAYOUTS[layout](data(rng, (3, 6, 8), offset=2)), (0,), affine=affine, rng=rng)


def test_repeated_rows(rng):
    for _, x, _ in broadcasts(data(rng, (4, 5))):
        check(x, (1,), rng=rng)


@pytest.mark.parametrize(
    "dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64", "bool", "int8", "uint8", "int32", "int64", "uint64"],
    ids=lambda d: np.dtype(d).name,
)  # fmt: skip
@pytest.mark.parametrize(("shape", "keep"), [((3, 40), (0,)), ((21, 8), (1,))], ids=["runs", "lanes"])
def test_every_dtype(dtype, shape, keep, rng):
    x = data(rng, shape, dtype, offset=3)
    y = check(x, keep, rng=rng)
    floating = np.dtype(dtype).kind not in "biu"
    assert y.dtype == (x.dtype if floating else np.float64 if x.itemsize == 8 else np.float32)


@pytest.mark.parametrize(
    "dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64", "int32"], ids=lambda d: np.dtype(d).name
)
@pytest.mark.parametrize(("keep", "affine"), [((0,), (1,)), ((1,), (1,))], ids=["layer norm", "batch norm"])
def test_weights_of_every_dtype(dtype, keep, affine, rng):
    check(data(rng, (6, 16)), keep, affine=affine, dtype=dtype, rng=rng)


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_weight_bias_and_centring_are_each_optional(weight, bias, center, rng):
    check(data(rng, (5, 24), offset=3), (0,), affine=(1,), weight=weight, bias=bias, center=center, rng=rng)
    check(data(rng, (24, 5), offset=3), (1,), weight=weight, bias=bias, center=center, rng=rng)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 31, 33, 127, 160])
def test_runs_of_every_length(size, rng):
    check(data(rng, (3, size), offset=10), (0,), affine=(1,), rng=rng)
    check(data(rng, (3, size + 3), offset=10)[:, 1 : size + 1], (0,), rng=rng)


@pytest.mark.parametrize("lanes", [1, 3, 4, 5, 9, 17, 33])
def test_rows_of_every_width(lanes, rng):
    check(data(rng, (13, lanes), offset=10), (1,), rng=rng)


def test_weights_that_are_not_contiguous_or_not_aligned(rng):
    x, weight = data(rng, (6, 16)), data(rng, (33,))
    for w in (weight[:32:2], weight[1:17], weight[16:0:-1]):
        expected = normalize(x, 0, w.copy(), affine=1)
        np.testing.assert_array_equal(normalize(x, 0, w, affine=1), expected)


@pytest.mark.parametrize(("shape", "keep"), [((2, 700), (0,)), ((300, 3), (1,)), ((4, 3, 90), (1,))], ids=str)
def test_cells_of_many_blocks(shape, keep, rng):
    check(data(rng, shape, offset=1000), keep, rng=rng)
    check(data(rng, shape, "float64", offset=1000), keep, rng=rng)


@pytest.mark.parametrize("keep", [(0,), (1,)], ids=["runs", "lanes"])
def test_given_moments(keep, rng):
    x = data(rng, (6, 10), offset=4)
    mean, var = data(rng, (x.shape[keep[0]],)), np.abs(data(rng, (x.shape[keep[0]],))) + 0.5
    for count in (None, 40, np.arange(1, x.shape[keep[0]] + 1)):
        given = Moments.from_mean_var(mean, var, keep=keep, ndim=2, count=count)
        for center in (True, False):
            y = normalize(x, keep, moments=given, center=center)
            view = [n if a in keep else 1 for a, n in enumerate(x.shape)]
            m, v = (np.reshape(a.astype(np.float64), view) for a in (mean, var))
            reference = (x - m) / np.sqrt(v + 1e-5) if center else x / np.sqrt(v + m * m + 1e-5)
            np.testing.assert_allclose(y, reference, rtol=3e-7, atol=3e-7)


def test_given_moments_of_a_reordered_plan(rng):
    x = np.asfortranarray(data(rng, (4, 5, 6)))
    m = engine.moments(x, resolve(x.shape, (0, 1)), None)
    np.testing.assert_array_equal(normalize(x, (0, 1), moments=m), normalize(x, (0, 1)))
    flipped = x[::-1]
    m = engine.moments(flipped, resolve(x.shape, (0, 1)), None)
    expected = normalize(np.ascontiguousarray(flipped), (0, 1))
    np.testing.assert_allclose(normalize(flipped, (0, 1), moments=m), expected, atol=3e-7)


@pytest.mark.parametrize(("shape", "keep"), [((4, 30), (0,)), ((30, 4), (1,))], ids=["runs", "lanes"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_choose_what_is_measured_not_what_is_normalised(shape, keep, dtype, rng):
    x = data(rng, shape, dtype, offset=4)
    check(x, keep, where=rng.random(shape) < 0.6, rng=rng)


def test_the_affine_step_alone(rng):
    for shape, keep in [((4, 30), (0,)), ((30, 4), (1,)), ((3, 4, 5), (0, 2))]:
        x = data(rng, shape, offset=1000)
        scale, shift = data(rng, shape_of(shape, keep)), data(rng, shape_of(shape, keep))
        axes = resolve(x.shape, keep)
        view = axes.affine_broadcast_shape
        exact = x.astype(np.float64) * scale.astype(np.float64).reshape(view) + shift.astype(np.float64).reshape(view)
        np.testing.assert_array_equal(engine.affine(x, scale, shift, axes), exact.astype(np.float32))
        np.testing.assert_array_equal(engine.affine(x, scale, None, axes), (exact - shift.reshape(view)).astype(np.float32))


@pytest.mark.parametrize("keep", [(0,), (1,), (0, 1), ()], ids=str)
def test_out_and_in_place(keep, rng):
    x = data(rng, (6, 10))
    expected = normalize(x, keep)
    for out in (np.empty_like(x), np.empty((10, 6), np.float32).T, np.zeros((6, 20), np.float32)[:, ::2]):
        assert normalize(x, keep, out=out) is out
        np.testing.assert_allclose(out, expected, atol=3e-7)
    same = x.copy()
    normalize(same, keep, out=same)
    np.testing.assert_array_equal(same, expected)


def test_an_output_that_overlaps_x_elsewhere(rng):
    room = data(rng, (7, 10))
    x = room[:-1].copy()
    for keep in [(0,), (1,)]:
        shifted = np.concatenate([x, x[-1:]])
        expected = normalize(x, keep)
        normalize(shifted[:-1], keep, out=shifted[1:])
        np.testing.assert_array_equal(shifted[1:], expected)


def test_the_result_lies_in_memory_as_x_does(rng):
    x = np.asfortranarray(data(rng, (4, 5, 6)))
    assert normalize(x, 1).strides == x.strides


def test_training_gives_the_moments_too(rng):
    for shape, keep in [((4, 5, 6), (1,)), ((5, 6, 4), (2,)), ((600, 2), (1,))]:
        x = data(rng, shape, offset=9)
        axes = resolve(shape, keep)
        y, m = engine.normalize_with_moments(x, Request(axes))
        np.testing.assert_array_equal(y, normalize(x, keep))
        tolerance.assert_moments(m, oracle.moments(x, keep), np.float32)
        where = rng.random(shape) < 0.7
        y, m = engine.normalize_with_moments(x, Request(axes, where=where))
        tolerance.assert_moments(m, oracle.moments(x, keep, where), np.float32)


def test_constants_and_single_values_become_the_bias(rng):
    bias = data(rng, (4,))
    x = np.repeat(data(rng, (4, 1)), 30, 1)
    np.testing.assert_array_equal(normalize(x, 0, None, bias), np.repeat(bias[:, None], 30, 1))
    np.testing.assert_array_equal(normalize(data(rng, (4, 3)), (0, 1)), 0)


def test_nothing_to_normalise():
    for shape in [(0, 3), (3, 0), (0,)]:
        x = np.zeros(shape, np.float32)
        keep = tuple(range(x.ndim))
        assert normalize(x, keep).shape == shape
    y, m = engine.normalize_with_moments(np.zeros((0, 3), np.float32), Request(resolve((0, 3), 1)))
    assert y.shape == (0, 3)
    assert m.count == 0
