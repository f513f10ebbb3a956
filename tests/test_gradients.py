"""Gradients: four units in the last place of the largest gradient of the cell, against float64, at offsets to 1e4."""

from itertools import combinations

import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from keepnorm.machine import is_serial
from keepnorm.tuning import PREFETCH
from tests import oracle
from tests.layouts import LAYOUTS, layouts
from tests.tolerance import assert_gradient

OFFSETS = (0.0, 100.0, 1e4)
SIZES = (3, 4, 5, 6)
SUBSETS = [
    (SIZES[:ndim], keep) for ndim in range(1, 5) for size in range(ndim + 1) for keep in combinations(range(ndim), size)
]


def largest(values, keep):
    """The largest gradient of each cell, with a 1 for each reduced axis."""
    reduced = tuple(a for a in range(values.ndim) if a not in oracle.kept_axes(keep, values.ndim))
    return np.abs(values).max(axis=reduced, keepdims=True, initial=0)


def check(x, dy, keep, weight=None, bias=None, what="", **options):
    """The gradients of one call against the oracle's."""
    affine, eps, center = options.get("affine"), options.get("eps", 1e-5), options.get("center", True)
    where, given = options.get("where"), options.pop("cells", None)
    dx, dweight, dbias, terms = oracle.gradients(
        x, dy, keep, weight, affine=affine, eps=eps, center=center, where=where, given=given
    )
    count = x.size
    y, vjp = kn.normalize_vjp(x, keep, weight, bias, **options)
    assert y.tobytes() == kn.normalize(x, keep, weight, bias, **options).tobytes(), what
    for _ in range(2):  # a vjp can be asked again
        got = vjp(dy)
        assert got.x.dtype == y.dtype
        assert_gradient(got.x, dx, largest(dx, keep), count, f"{what} dx", largest(terms, keep))
        for mine, exact, parameter in ((got.weight, dweight, weight), (got.bias, dbias, bias)):
            if parameter is None:
                assert mine is None
            else:
                assert (type(mine), mine.dtype) == (np.ndarray, parameter.dtype)
                assert_gradient(mine, exact, np.abs(exact).max(initial=0), count, f"{what} parameter")


def operands(rng, shape, keep, offset, dtype=np.float32):
    x = (rng.standard_normal(shape) + offset).astype(dtype)
    dy = (rng.standard_normal(shape) + 0.1).astype(dtype)
    weight, bias = (np.asarray(rng.standard_normal(oracle.kept_shape(x, keep)) + 1, dtype) for _ in range(2))
    return x, dy, weight, bias


@pytest.mark.parametrize("scalar", [np.asarray, np.float32])
def test_weights_without_axes_and_numbers_that_numpy_took_out_of_an_array(rng, scalar):
    x, dy = rng.standard_normal((2, 3, 4)).astype(np.float32)
    for keep in (1, ()):
        check(x, dy, keep, scalar(2.0), scalar(-1.0), "without axes", affine=())
    np.testing.assert_array_equal(kn.affine(x, scalar(2.0), scalar(1.0), keep=()), 2 * x + 1)


@pytest.mark.parametrize("shape", [(8209, 65), (4001, 211), (1031, 512), (1033, 513), (200_003, 3), (600, 1100)], ids=str)
def test_rows_that_are_summed_tile_by_tile(rng, shape):
    """Rows side by side in memory, in arrays of more than traffic.PREFETCH bytes."""
    x, dy, weight, bias = operands(rng, shape, -1, 100.0)
    assert x.nbytes > PREFETCH
    check(x, dy, -1, weight, bias)


@pytest.mark.parametrize(("shape", "keep"), SUBSETS, ids=str)
@pytest.mark.parametrize("offset", OFFSETS)
class TestEveryKeepSubset:
    def test_in_every_layout(self, rng, shape, keep, offset):
        x, dy, weight, bias = operands(rng, shape, keep, offset)
        for (name, stored), (other, cotangent) in zip(layouts(x), [*layouts(dy)][::-1], strict=True):
            check(stored, cotangent, keep, weight, bias, f"x {name}, dy {other}")

    def test_without_parameters(self, rng, shape, keep, offset):
        x, dy, weight, bias = operands(rng, shape, keep, offset)
        check(x, dy, keep)
        check(x, dy, keep, weight)
        check(x, dy, keep, None, bias)

    def test_without_centre(self, rng, shape, keep, offset):
        x, dy, weight, bias = operands(rng, shape, keep, offset)
        check(x, dy, keep, weight, bias, center=False)

    def test_of_given_moments(self, rng, shape, keep, offset):
        x, dy, weight, bias = operands(rng, shape, keep, offset)
        kept = oracle.kept_shape(x, keep)
        mean, var = np.asarray(offset + rng.standard_normal(kept)), np.asarray(rng.random(kept) + 0.1)
        given = kn.Moments.from_mean_var(mean, var, keep=keep, ndim=len(shape))
        axes = oracle.kept_axes(keep, len(shape))
        wide = [oracle.affine_view(v, axes, len(shape)) for v in (mean, var)]
        check(x, dy, keep, weight, bias, moments=given, cells=oracle.Cells(1, wide[0], 0.0, wide[1], wide[1]))

    def test_under_a_mask(self, rng, shape, keep, offset):
        x, dy, weight, bias = operands(rng, shape, keep, offset)
        where = rng.random(shape) < 0.7
        reduced = tuple(a for a in range(len(shape)) if a not in keep)
        where |= ~where.any(axis=reduced, keepdims=True)
        check(x, dy, keep, weight, bias, where=where)


@pytest.mark.parametrize(
    ("keep", "affine"), [((0,), (1, 2)), ((0, 1), (2,)), ((0, 2), (2,)), ((1,), (0, 2)), ((), (1,)), ((0,), ())]
)
@pytest.mark.parametrize("offset", OFFSETS)
def test_affine_axes_of_their_own(rng, keep, affine, offset):
    shape = (6, 7, 5)
    x, dy, *_ = operands(rng, shape, keep, offset)
    weight, bias = (np.asarray(rng.standard_normal([shape[a] for a in affine]), np.float32) for _ in range(2))
    for (name, stored), (_, cotangent) in zip(layouts(x), layouts(dy), strict=True):
        check(stored, cotangent, keep, weight, bias, name, affine=affine)
        check(stored, cotangent, keep, weight, bias, name, affine=affine, center=False)


@pytest.mark.parametrize(
    ("shape", "keep", "affine"),
    [
        ((67, 771), (0,), (1,)),
        ((200, 170), (0,), (1,)),
        ((40, 30, 50), (0,), (1, 2)),
        ((9, 30, 150), (0, 1), (1, 2)),
        ((9, 7, 700), (0, 1), (0, 2)),
        ((5, 16, 24, 20), (0, 1), (1,)),
        ((5, 16, 24, 20), (0, 1), (1, 3)),
    ],
    ids=str,
)
def test_affine_axes_of_their_own_in_several_rows(rng, shape, keep, affine):
    """Large enough for the gradients of weight and bias to be summed in rows, by several threads."""
    assert not is_serial(int(np.prod(shape)), int(np.prod([shape[a] for a in keep])))
    x, dy, *_ = operands(rng, shape, keep, 3.0)
    weight, bias = (np.asarray(rng.standard_normal([shape[a] for a in affine]), np.float32) for _ in range(2))
    for name in ("C", "Fortran", "channels last"):
        stored, cotangent = LAYOUTS[name](x), LAYOUTS[name](dy)
        check(stored, cotangent, keep, weight, bias, name, affine=affine)
        answers = set()
        for n in (1, 2, 3):
            with kn.threads(n):
                gradients = kn.normalize_vjp(stored, keep, weight, bias, affine=affine)[1](cotangent)
            answers.add(tuple(g.tobytes() for g in gradients))
        assert len(answers) == 1, name


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1.0])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("keep", [0, 1, (0, 2), ()])
def test_every_dtype(rng, keep, dtype, eps):
    x, dy, weight, bias = operands(rng, (6, 7, 5), keep, 3.0, dtype)
    check(x, dy, keep, weight, bias, eps=eps)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("keep", [1, 2], ids=["runs", "lanes"])
def test_rows_of_every_length(rng, keep, dtype):
    """Rows end anywhere in eight or sixteen values."""
    for n in (*range(1, 40), 129, 143, 145, 207):
        shape = (3, 2, n) if keep == 1 else (3, 5, n)
        check(*operands(rng, shape, keep, 1.0, dtype)[:2], keep, what=str(n))
        x, dy, weight, bias = operands(rng, shape, keep, 1.0, dtype)
        check(x, dy, keep, weight, bias, str(n))


LARGE = [
    ((4, 64, 28, 28), 1),
    ((4, 28, 28, 64), -1),
    ((4, 3, 112, 112), 1),
    ((4, 112, 112, 3), -1),
    ((4096, 128), -1),
    ((300, 1000), 0),
    ((16, 256, 7, 7), 1),
    ((8, 16, 20, 20), (0, 1)),
    ((100003,), ()),
]


@pytest.mark.parametrize(("shape", "keep"), LARGE, ids=str)
@pytest.mark.parametrize("offset", OFFSETS)
def test_larger_arrays(rng, shape, keep, offset):
    x, dy, weight, bias = operands(rng, shape, keep, offset)
    check(x, dy, keep, weight, bias)


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_large_cotangent_and_a_small_one(rng, offset):
    x, dy, weight, bias = operands(rng, (60, 20), 1, offset)
    for scale in (1e-30, 1e-6, 1e6, 1e30):
        check(x, (dy * scale).astype(np.float32), 1, weight, bias)
    check(x, np.zeros_like(dy), 1, weight, bias)


def test_integers_have_floating_gradients(rng):
    x = rng.integers(0, 256, (30, 4), np.uint8)
    dy = rng.standard_normal((30, 4)).astype(np.float32)
    check(x, dy, 1, np.ones(4, np.float32), np.zeros(4, np.float32))


def test_groups_by_pattern(rng):
    x, dy = rng.standard_normal((2, 3, 6, 5)).astype(np.float32)
    weight, bias = rng.standard_normal((2, 6)).astype(np.float32)
    _, vjp = kn.normalize_vjp(x, "n (g c) l -> n g", weight, bias, affine="g c", g=2)
    split = (3, 2, 3, 5)
    dx, dweight, dbias, terms = oracle.gradients(
        x.reshape(split), dy.reshape(split), (0, 1), weight.reshape(2, 3), affine=(1, 2)
    )
    got = vjp(dy)
    assert_gradient(got.x, dx.reshape(x.shape), np.abs(dx).max(), 15, terms=terms.max())
    assert got.weight.shape == got.bias.shape == (6,)
    assert_gradient(got.weight, dweight.ravel(), np.abs(dweight).max(), 15)
    assert_gradient(got.bias, dbias.ravel(), np.abs(dbias).max(), 15)


@pytest.mark.parametrize("center", [True, False])
def test_agree_with_differences_of_the_output(rng, center):
    """No formula: the slope of the output itself, by central differences in float64."""
    x, dy = rng.standard_normal((2, 5, 3))
    weight, bias = rng.standard_normal((2, 3))
    where = rng.random((5, 3)) < 0.8

    def loss(x, weight, bias):
        return np.sum(kn.normalize(x, 1, weight, bias, center=center, where=where) * dy)

    _, vjp = kn.normalize_vjp(x, 1, weight, bias, center=center, where=where)
    for which, got in enumerate(vjp(dy)):
        arguments = [x, weight, bias]
        slope = np.empty_like(arguments[which])
        for at in np.ndindex(*slope.shape):
            high, low = arguments[which].copy(), arguments[which].copy()
            high[at] += 1e-5
            low[at] -= 1e-5
            ends = (loss(*arguments[:which], end, *arguments[which + 1 :]) for end in (high, low))
            slope[at] = (next(ends) - next(ends)) / 2e-5
        np.testing.assert_allclose(got, slope, rtol=1e-6, atol=1e-8)


def test_the_vjp_keeps_nothing_that_a_caller_changes(rng):
    """dy belongs to the caller and is not written."""
    x, dy, weight, bias = operands(rng, (8, 5), 1, 0.0)
    _, vjp = kn.normalize_vjp(x, 1, weight, bias)
    before = dy.copy()
    first = vjp(dy).x.copy()
    np.testing.assert_array_equal(dy, before)
    vjp(2 * dy)
    np.testing.assert_array_equal(vjp(dy).x, first)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [(3, 3), (1, 1), (1, 2), (2, 1), (4, 0), (0, 1), (-3, 3)], ids=str)
@pytest.mark.parametrize("keep", [0, 1])
def test_of_an_x_that_overlaps_itself(rng, keep, steps, dtype):
    """Whether values lie side by side is a matter of their places: 28 values in as many places may have fewer."""
    memory = rng.standard_normal(60).astype(dtype)
    x = np.lib.stride_tricks.as_strided(memory[30:], (7, 4), [step * memory.itemsize for step in steps])
    check(x, rng.standard_normal((7, 4)).astype(dtype), keep)
