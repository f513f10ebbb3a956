"""The backward step in the simulator, against sums that are correctly rounded."""

import ml_dtypes
import numpy as np
import pytest

from keepnorm.moments import Moments
from tests import oracle, tolerance
from tests.cuda.device import data, normalize, normalize_vjp, subsets
from tests.layouts import LAYOUTS

ROLES = [(shape, keep) for shape in [(9,), (4, 11), (2, 5, 7)] for keep in subsets(len(shape))]


def check(x, keep, *, affine=None, weight=True, bias=True, center=True, where=None, dy=None, dtype="float32", rng):
    axes = oracle.kept_axes(keep if affine is None else affine, x.ndim)
    shape = tuple(x.shape[a] for a in axes)
    w = data(rng, shape, dtype) if weight else None
    b = data(rng, shape, dtype) if bias else None
    y, vjp = normalize_vjp(x, keep, w, b, affine=affine, center=center, where=where)
    np.testing.assert_array_equal(y, normalize(x, keep, w, b, affine=affine, center=center, where=where))
    dy = data(rng, x.shape, y.dtype) if dy is None else dy
    dx, dweight, dbias = vjp(dy)
    exact = oracle.gradients(x, dy, keep, w, affine=affine, center=center, where=where)
    cells = oracle.moments(x, keep, where)
    largest = (
        np.max(np.abs(dy.astype(np.float64))) / np.sqrt(np.min(cells.var) + 1e-5) * (1 if w is None else np.max(np.abs(w)))
    )
    tolerance.assert_gradient(dx, exact[0], np.maximum(largest, np.abs(exact[0]).max()), cells.count, "dx")
    assert dx.dtype == y.dtype
    assert dx.shape == x.shape
    hat = np.abs(oracle.normalize(x, keep, center=center, where=where, cells=cells)).max()
    for got, reference, given, scale in ((dweight, exact[1], w, hat), (dbias, exact[2], b, 1)):
        if given is None:
            assert got is None
        else:
            assert got.shape == given.shape
            assert got.dtype == given.dtype
            number = x.size // max(given.size, 1)
            most = np.abs(dy.astype(np.float64)).max() * scale * number
            limit = tolerance.GRADIENT_ULPS * tolerance.ulp(np.maximum(np.abs(reference), 1), got.dtype)
            tolerance.assert_within(got, reference.reshape(given.shape), limit + 1e-14 * most)


@pytest.mark.parametrize(("shape", "keep"), ROLES, ids=str)
def test_every_role(shape, keep, rng):
    check(data(rng, shape, offset=3), keep, rng=rng)


@pytest.mark.parametrize("affine", subsets(3), ids=str)
@pytest.mark.parametrize("keep", [(0,), (2,), (0, 1)], ids=str)
def test_weights_on_any_axes(keep, affine, rng):
    check(data(rng, (3, 4, 6), offset=3), keep, affine=affine, rng=rng)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("keep", "affine"), [((1,), None), ((0,), (1, 2))], ids=["batch norm", "layer norm"])
def test_every_layout(layout, keep, affine, rng):
    x = LAYOUTS[layout](data(rng, (3, 4, 8), offset=3))
    check(x, keep, affine=affine, rng=rng)
    check(x, keep, affine=affine, dy=np.asfortranarray(data(rng, x.shape)), rng=rng)


@pytest.mark.parametrize(
    "dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64", "uint8", "int64"], ids=lambda d: np.dtype(d).name
)
@pytest.mark.parametrize(("keep", "affine"), [((1,), None), ((0,), (1,))], ids=["batch norm", "layer norm"])
def test_every_dtype(dtype, keep, affine, rng):
    check(data(rng, (6, 16), dtype, offset=3), keep, affine=affine, rng=rng)


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_weight_bias_and_centring_are_each_optional(weight, bias, center, rng):
    check(data(rng, (5, 24), offset=3), (0,), affine=(1,), weight=weight, bias=bias, center=center, rng=rng)
    check(data(rng, (24, 5), offset=3), (1,), weight=weight, bias=bias, center=center, rng=rng)


@pytest.mark.parametrize(("shape", "keep"), [((2, 500), (0,)), ((200, 3), (1,)), ((4, 3, 60), (1,)), ((60, 9), (0,))], ids=str)
def test_cells_of_many_blocks(shape, keep, rng):
    check(data(rng, shape, offset=3), keep, rng=rng)
    check(data(rng, shape, offset=3), keep, affine=tuple(a for a in range(len(shape)) if a not in keep), rng=rng)


@pytest.mark.parametrize(
    ("shape", "keep", "affine"), [((4, 30), (0,), None), ((30, 4), (1,), None), ((4, 30), (0,), (1,))], ids=str
)
def test_masks(shape, keep, affine, rng):
    check(data(rng, shape, offset=3), keep, affine=affine, where=rng.random(shape) < 0.6, rng=rng)


@pytest.mark.parametrize(("keep", "affine"), [((0,), None), ((1,), None), ((0,), (1,))], ids=str)
@pytest.mark.parametrize("center", [True, False])
def test_given_moments_do_not_move(keep, affine, center, rng):
    x = data(rng, (6, 10), offset=3)
    mean, var = data(rng, (x.shape[keep[0]],)), np.abs(data(rng, (x.shape[keep[0]],))) + 0.5
    given = Moments.from_mean_var(mean, var, keep=keep, ndim=2)
    weight = data(rng, tuple(x.shape[a] for a in (keep if affine is None else affine)))
    _, vjp = normalize_vjp(x, keep, weight, weight, affine=affine, center=center, moments=given)
    dy = data(rng, x.shape)
    view = [n if a in keep else 1 for a, n in enumerate(x.shape)]
    m, v = (np.reshape(a.astype(np.float64), view) for a in (mean, var))
    zero = np.zeros_like(m)
    cells = oracle.Cells(np.full(m.shape, 1), m, zero, v, v + m * m)
    exact = oracle.gradients(x, dy, keep, weight, affine=affine, center=center, given=cells)
    for got, reference in zip(vjp(dy), exact[:3], strict=True):
        np.testing.assert_allclose(got, reference, rtol=1e-6, atol=1e-6)


def test_a_gradient_in_another_dtype_than_x(rng):
    x = data(rng, (6, 16), "float16")
    _, vjp = normalize_vjp(x, 1)
    dy = data(rng, x.shape)
    assert vjp(dy).x.dtype == np.float16


def test_gradients_have_the_same_bits_every_time(rng):
    x, dy, weight = data(rng, (40, 33)), data(rng, (40, 33)), data(rng, (33,))
    results = []
    for _ in range(2):
        _, vjp = normalize_vjp(x, 0, weight, weight, affine=1)
        results.append(vjp(dy))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


def test_nothing_has_no_gradient():
    x = np.zeros((0, 3), np.float32)
    _, vjp = normalize_vjp(x, (0, 1), None, None)
    assert vjp(x).x.shape == (0, 3)
    weight = np.ones((0, 3), np.float32)
    _, vjp = normalize_vjp(x, (0, 1), weight, weight)
    assert vjp(x).weight.shape == (0, 3)
