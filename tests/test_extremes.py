"""No variance, an endless one, infinities, NaN under a mask, any magnitude: one answer in every family of kernels."""

import json
import pickle

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.engines.host import engine as host
from keepnorm.engines.host import pieces
from tests import oracle
from tests.tolerance import assert_output, assert_within, state

# Cells that lie side by side, and cells that are runs; the last two with a weight for each value of a cell.
SHAPES = [((5, 3), 1, None), ((3, 300), 0, None), ((3, 300), 0, 1), ((5, 3), 1, 0)]
DTYPES = ["float16", "float32", "float64"]


def parameters(shape, keep, affine, dtype):
    n = shape[keep if affine is None else affine]
    return np.arange(1, n + 1).astype(dtype), np.arange(n).astype(dtype)


def spread(parameter, keep, affine):
    axis = keep if affine is None else affine
    return parameter if axis == 1 else parameter[:, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
@pytest.mark.parametrize("given", [False, True], ids=["own moments", "given moments"])
@pytest.mark.parametrize("center", [True, False])
def test_without_variance_and_eps_the_result_is_the_bias_and_the_gradients_are_zero(shape, keep, affine, dtype, given, center):
    x, dy = np.full(shape, 7 if center else 0, dtype), np.ones(shape, dtype)
    weight, bias = parameters(shape, keep, affine, dtype)
    moments = kn.Moments.from_mean_var(*np.zeros((2, shape[keep])), keep=keep, ndim=2) if given else None
    y, vjp = kn.normalize_vjp(x, keep, weight, bias, affine=affine, eps=0, center=center, moments=moments)
    np.testing.assert_array_equal(y, np.broadcast_to(spread(bias, keep, affine), shape))
    gradients = vjp(dy)
    np.testing.assert_array_equal(gradients.x, 0)
    np.testing.assert_array_equal(gradients.weight, 0)
    np.testing.assert_array_equal(gradients.bias, dy.size // weight.size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
def test_an_endless_variance_gives_the_bias_to_finite_values(rng, shape, keep, affine, dtype):
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    weight, bias = parameters(shape, keep, affine, dtype)
    mean, var = rng.standard_normal(shape[keep]), np.full(shape[keep], np.inf)
    moments = kn.Moments.from_mean_var(mean, var, keep=keep, ndim=2)
    y, vjp = kn.normalize_vjp(x, keep, weight, bias, affine=affine, moments=moments)
    np.testing.assert_array_equal(y, np.broadcast_to(spread(bias, keep, affine), shape))
    np.testing.assert_array_equal(vjp(dy).x, 0)
    np.testing.assert_array_equal(vjp(dy).weight, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
def test_the_root_mean_square_of_both_infinities_is_endless(rng, shape, keep, affine, dtype):
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    cells = x if keep == 0 else x.T
    cells[0, :2], cells[1, 1] = (np.inf, -np.inf), np.inf
    y, vjp = kn.normalize_vjp(x, keep, affine=affine, center=False)
    finite = np.isfinite(x)
    touched = np.zeros(shape, bool)
    (touched if keep == 0 else touched.T)[:2] = True
    np.testing.assert_array_equal(y[finite & touched], 0)
    np.testing.assert_array_equal(np.isnan(y), ~finite)
    np.testing.assert_array_equal(vjp(dy).x[finite & touched], 0)
    assert np.isnan(kn.moments(x, keep).var[:2]).all()


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
def test_what_a_mask_leaves_out_has_no_part_in_the_gradients_of_others(rng, shape, keep, affine, dtype, center, hole):
    """Masked-out NaN and infinities change no gradient but their own, which is that of given moments."""
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    weight, bias = parameters(shape, keep, affine, dtype)
    cells, filled = (x if keep == 0 else x.T), x.copy()
    where = np.ones(shape, bool)
    outside = where if keep == 0 else where.T
    outside[1, 2], outside[2, 1], outside[0, 0] = False, False, False
    cells[1, 2] = cells[2, 1] = hole  # the third is finite: its dy counts in all sums
    silent = np.where(np.isfinite(x), dy, 0).astype(dtype)
    rest = {"affine": affine, "center": center}
    got = kn.normalize_vjp(x, keep, weight, bias, where=where, **rest)[1](dy)
    want = kn.normalize_vjp(filled, keep, weight, bias, where=where, **rest)[1](silent)
    np.testing.assert_array_equal(got.x[np.isfinite(x)], want.x[np.isfinite(x)])
    np.testing.assert_array_equal(got.weight, want.weight)
    np.testing.assert_array_equal(got.bias, want.bias)
    own = kn.normalize_vjp(filled, keep, weight, bias, moments=kn.moments(filled, keep, where=where), **rest)[1](dy)
    np.testing.assert_array_equal(got.x[~where], own.x[~where])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
def test_the_gradient_of_given_moments_does_not_depend_on_x(rng, shape, keep, affine, dtype):
    x, dy = rng.standard_normal((2, *shape)).astype(dtype)
    weight, bias = parameters(shape, keep, affine, dtype)
    mean, var = rng.standard_normal(shape[keep]), rng.random(shape[keep])
    moments = kn.Moments.from_mean_var(mean, var, keep=keep, ndim=2)
    want = kn.normalize_vjp(x, keep, weight, bias, affine=affine, moments=moments)[1](dy)
    x[1, 1], x[2, 0] = np.nan, -np.inf
    got = kn.normalize_vjp(x, keep, weight, bias, affine=affine, moments=moments)[1](dy)
    np.testing.assert_array_equal(got.x, want.x)
    np.testing.assert_array_equal(got.bias, want.bias)


# A power of two changes no bit of a normalised value, so that data of usual size are the oracle for all others.
POWERS = [-1000, -560, -460, 460, 530, 1020]


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("masked", [False, True], ids=["all values", "masked"])
@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
def test_values_of_any_magnitude_of_float64_are_normalised_alike(rng, shape, keep, affine, masked, center, power):
    x, dy = rng.uniform(-2, 2, shape), rng.standard_normal(shape)
    weight, bias = parameters(shape, keep, affine, "float64")
    large = np.ldexp(x, power)
    rest = {"affine": affine, "eps": 0.0, "center": center, "where": rng.random(shape) < 0.8 if masked else None}
    (y, vjp), (y1, vjp1) = (kn.normalize_vjp(a, keep, weight, bias, **rest) for a in (large, x))
    got, want = vjp(dy), vjp1(dy)
    limit = 16 * state(x.size)
    assert_within(y, y1, limit * np.maximum(np.abs(y1), 1))
    assert_within(np.ldexp(got.x, power), want.x, limit * np.abs(want.x).max() * x.size)
    for mine, theirs in ((got.weight, want.weight), (got.bias, want.bias)):
        assert_within(mine, theirs, limit * np.abs(theirs).max())
    np.testing.assert_array_equal(kn.normalize(large.copy(), keep, weight, bias, out=large, **rest), y)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("masked", [False, True], ids=["all values", "masked"])
@pytest.mark.parametrize(("shape", "keep"), [((5, 3), 1), ((3, 300), 0)])
def test_moments_of_any_magnitude_of_float64_merge_and_are_kept(rng, shape, keep, masked, power):
    """Cells of different magnitudes side by side: the large and the small keep their digits, and the others their bits."""
    x = rng.uniform(1, 2, shape)
    each = np.array([power, 0, -power // 2])
    large = np.ldexp(x, each[:, None] if keep == 0 else each)
    where = rng.random(shape) < 0.8 if masked else np.ones(shape, bool)
    given = {"where": where} if masked else {}
    cells = oracle.moments(x, keep, where)
    mean, std = (np.ldexp(np.ravel(v), each) for v in (cells.mean, np.sqrt(cells.var)))
    limit = 16 * state(x.size)
    m = kn.moments(large, keep, **given)
    halves = [kn.moments(part, keep, **w) for part, w in _halves(large, where, 1 - keep, masked)]
    merged = halves[0] + halves[1]
    for got in (m, kn.Moments.from_dict(json.loads(json.dumps(m.to_dict()))), pickle.loads(pickle.dumps(m)), merged):
        assert_within(got.mean, mean, limit * np.abs(mean))
        assert_within(got.std, std, limit * mean)
    y = kn.normalize(large, keep, eps=0, **given)
    assert_within(kn.normalize(large, keep, eps=0, moments=merged), y, limit * np.maximum(np.abs(y), 1))


def _halves(x, where, axis, masked):
    middle = x.shape[axis] // 2
    parts = zip(np.split(x, [middle], axis), np.split(where, [middle], axis), strict=True)
    return [(part, {"where": w} if masked else {}) for part, w in parts]


def test_merged_batches_that_are_far_apart_keep_their_variance():
    """Neither batch has a variance that float64 cannot hold, but both together have."""
    for value in (1e200, 1e-200):
        both = kn.moments(np.array([[value]]), 1) + kn.moments(np.array([[-value]]), 1)
        np.testing.assert_array_equal(both.std, [value])
        np.testing.assert_array_equal(both.mean, [0])


def test_values_far_below_the_root_of_eps_are_divided_by_it(rng):
    x = np.ldexp(rng.uniform(-1, 1, (6, 2)), -1000)
    y, vjp = kn.normalize_vjp(x, 1, eps=0.25)
    np.testing.assert_array_equal(y, 2 * (x - x.mean(0)))
    dx = vjp(np.ones((6, 2))).x
    np.testing.assert_array_equal(dx, 0)
    assert_within(kn.normalize(x, 1, moments=kn.moments(x, 1), eps=0.25), y, 4 * state(1) * np.abs(x))


@pytest.mark.parametrize(("shape", "keep", "affine"), SHAPES)
@pytest.mark.parametrize("masked", [False, True], ids=["all values", "masked"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_too_many_cells_are_normalised_in_pieces(rng, monkeypatch, shape, keep, affine, masked, dtype):
    x = rng.standard_normal(shape).astype(dtype)
    weight, bias = parameters(shape, keep, affine, dtype)
    where = rng.random(shape) < 0.8 if masked else None
    rest = {"affine": affine, "where": where}
    want = kn.normalize(x, keep, weight, bias, **rest), kn.normalize(x, keep, moments=kn.moments(x, keep))
    most = []
    monkeypatch.setattr(pieces, "MOST", 2)
    monkeypatch.setattr(host, "_READY", {})
    monkeypatch.setattr(host, "known", lambda *_: None)
    monkeypatch.setattr(host, "_normalize", lambda x, *rest, f=host._normalize: most.append(x.shape[keep]) or f(x, *rest))
    rest["eps"] = np.float64(1e-5)  # no float, so that no remembered call answers
    got = kn.normalize(x.copy(), keep, weight, bias, **rest), kn.normalize(x, keep, moments=kn.moments(x, keep))
    assert most == [2, 1, 2, 1]
    for mine, theirs in zip(got, want, strict=True):
        if dtype == "float32":
            assert mine.tobytes() == theirs.tobytes()
        else:  # a piece has another layout than the whole, in which float64 has other roundings
            assert_output(mine, theirs, x.size)
