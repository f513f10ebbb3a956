"""Gaps and weights, by word: `nan_policy`, `where`, `weights`, `constant` and `fill`, on every engine."""

import contextlib
import math
from fractions import Fraction

import numpy as np
import pytest

import keepnorm as kn
from tests import oracle
from tests.backends import NAMES, kind
from tests.tolerance import assert_gradient, assert_moments, assert_output, assert_within, state, ulp

DTYPES = ("float64", "float32", "float16")


def weighted(x, keep, weights):
    """The exact moments of weighted values: two passes of correctly rounded sums."""
    kept = oracle.kept_axes(keep, x.ndim)
    w = np.where(weights > 0, np.broadcast_to(weights, x.shape), 0.0).astype(np.float64)
    values = np.where(w > 0, x, 0).astype(np.float64)
    total = oracle.sums(w, kept)
    with np.errstate(invalid="ignore", divide="ignore"):
        high = oracle.sums(w * values, kept) / total
        rest = oracle.sums(w * (values - high), kept) / total
        off = (values - high) - rest
        var = oracle.sums(w * off * off, kept) / total
        square = oracle.sums(w * values * values, kept) / total
    return oracle.Cells(total, high, rest, var, square)


def data(dtype="float32", offset=50.0):
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((7, 3, 5)) * 4 + offset).astype(dtype)
    w = rng.integers(0, 4, (7, 1, 5)).astype("f4") / 2
    return x, w


def told(name, dtype="float32"):
    """JAX has float64 where it is told to."""
    if not name.startswith("jax") or dtype != "float64":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)


def engines(*, dtype):
    return [n for n in NAMES if dtype in kind_of(n).dtypes]


def kind_of(name):
    from tests.backends import BACKENDS

    return BACKENDS[name]


CASES = [(n, d) for d in DTYPES for n in engines(dtype=d)]


@pytest.mark.parametrize(("name", "dtype"), CASES)
@pytest.mark.parametrize("keep", [(), 1, (0, 2)])
def test_weighted_moments_are_those_of_the_definition(name, dtype, keep):
    k = kind(name)
    x, w = data(dtype)
    with told(name, dtype):
        numbers = k.run(_numbers(lambda a, b: kn.moments(a, keep, weights=b)), k.make(x), w if name == "xarray" else k.make(w))
        exact = weighted(x, keep, w)
        assert_moments(_seen(k, numbers), exact, "float64" if dtype == "float64" else "float32", name)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_omitted_gaps_count_for_nothing(name, dtype):
    k = kind(name)
    x, _ = data(dtype)
    x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    with told(name, dtype):
        numbers = k.run(_numbers(lambda a: kn.moments(a, 1, nan_policy="omit")), k.make(x))
        exact = oracle.moments(x, 1, ~np.isnan(x))
        assert_moments(_seen(k, numbers), exact, "float64" if dtype == "float64" else "float32", name)
        y = k.read(k.run(lambda a: kn.normalize(a, 1, nan_policy="omit", fill=-9.0), k.make(x)))
    right = oracle.normalize(np.nan_to_num(x), 1, cells=exact)
    assert_output(y[~np.isnan(x)], right[~np.isnan(x)], x.size, name)
    assert np.all(y[np.isnan(x)] == -9.0)


def _numbers(function):
    def call(*arrays):
        m = function(*arrays)
        return m.mean, m.var, m.std

    return call


class _Cells:
    def __init__(self, mean, var, std):
        self.mean, self.var, self.std = mean, var, std


def _seen(k, numbers):
    return _Cells(*(k.read(v) for v in numbers))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "mlx"])
@pytest.mark.parametrize("center", [True, False])
def test_weights_and_their_gradient_in_normalize(name, center):
    k = kind(name)
    x, w = data("float32", 3.0)
    rng = np.random.default_rng(2)
    dy, weight, bias = rng.standard_normal(x.shape).astype("f4"), *rng.standard_normal((2, 3)).astype("f4")
    exact = weighted(x, 1, w)
    options = {"center": center, "eps": 0.25}

    def forward(a, b, c, d):
        return kn.normalize(a, 1, c, d, weights=b, **options)

    made = [k.make(v) for v in (x, w, weight, bias)]
    if name == "xarray":
        made[1:] = w, weight, bias
    assert_output(k.read(k.run(forward, *made)), oracle.normalize(x, 1, weight, bias, cells=exact, **options), x.size, name)

    def backward(a, b, c, d, e):
        return kn.normalize_vjp(a, 1, c, d, weights=b, **options)[1](e)

    got = k.run(backward, *made, k.make(dy))
    expected = _gradients(x, dy, weight, w, exact, **options)
    for value, right in zip(got, expected, strict=True):
        value = np.asarray(value) if isinstance(value, np.ndarray) else k.read(value)
        assert_gradient(value, right, np.abs(right).max(), x.size, name)


def _gradients(x, dy, weight, w, cells, *, center, eps):
    """dx, dweight and dbias where the weighted moments move with x."""
    root = np.sqrt((cells.var if center else cells.square) + eps)
    hat = (x - cells.mean - cells.rest if center else x.astype("f8")) / root
    g = dy.astype("f8") * weight.astype("f8")[:, None]
    share = hat * oracle.sums(g * hat, 1) + (oracle.sums(g, 1) if center else 0)
    dx = (g - share * np.broadcast_to(w, x.shape) / cells.count) / root
    return dx, oracle.sums(dy * hat, 1).ravel(), oracle.sums(dy.astype("f8"), 1).ravel()


def test_autograd_differentiates_weighted_moments_and_normalisation():
    torch = pytest.importorskip("torch")
    x, w = (torch.from_numpy(v).double() for v in data("float64", 3.0))
    x.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a: kn.normalize(a, 1, weights=w), (x,))
    assert torch.autograd.gradcheck(lambda a: kn.moments(a, 1, weights=w).std, (x,))
    assert torch.autograd.gradcheck(lambda a: kn.normalize(a, 1, nan_policy="omit", fill="input", where=w > 0.5), (x,))


def test_merged_weights_are_those_of_the_whole():
    x, w = data("float64")
    whole = kn.moments(x, 1, weights=w)
    two = kn.moments(x[:3], 1, weights=w[:3]) + kn.moments(x[3:], 1, weights=w[3:])
    assert whole.allclose(two, rtol=1e-14)
    np.testing.assert_array_equal(two.count, [np.count_nonzero(w) for _ in range(3)])
    np.testing.assert_allclose(two.sum_weights, w.sum(), rtol=1e-15)
    # One without weights counts each value once.
    mixed = kn.moments(x[:3], 1) + kn.moments(x[3:], 1, weights=w[3:])
    both = np.concatenate([np.ones((3, 1, 5)), w[3:]])
    assert mixed.allclose(kn.moments(x, 1, weights=both), rtol=1e-14)
    assert (whole - kn.moments(x[:3], 1, weights=w[:3])).allclose(kn.moments(x[3:], 1, weights=w[3:]), rtol=1e-12) is True


def test_the_sample_variance_of_weights_is_that_of_repeated_values():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    times = np.array([3, 1, 0, 2])
    m = kn.moments(x, (), weights=times)
    repeated = np.repeat(x, times)
    assert m.variance(correction=1) == pytest.approx(repeated.var(ddof=1), rel=1e-15)
    assert m.variance(correction=1) == pytest.approx(np.cov(x, fweights=times), rel=1e-15)
    assert m.stderr == pytest.approx(repeated.std(ddof=1) / math.sqrt(len(repeated)), rel=1e-15)


def test_weights_of_real_numbers_to_15_digits():
    rng = np.random.default_rng(8)
    x, w = 1e6 + rng.standard_normal(1000), rng.random(1000)
    m = kn.moments(x, (), weights=w)
    values, weights = [Fraction(v) for v in x.tolist()], [Fraction(v) for v in w.tolist()]
    total = sum(weights)
    mean = sum(a * b for a, b in zip(values, weights, strict=True)) / total
    var = sum(b * (a - mean) ** 2 for a, b in zip(values, weights, strict=True)) / total
    assert_within(m.mean, float(mean), ulp(float(mean), "float64"), "mean")
    assert_within(m.var, float(var), 4 * state(1000) * float(var), "variance")


def test_a_mask_and_gaps_and_weights_go_together():
    x, w = data("float64")
    mask = np.random.default_rng(6).random((7, 3, 1)) > 0.3
    gaps = np.where(np.random.default_rng(7).random(x.shape) < 0.2, np.nan, x)
    both = mask & ~np.isnan(gaps)
    assert_moments(kn.moments(gaps, 1, where=mask, nan_policy="omit"), oracle.moments(x, 1, both), "float64", "both")
    m = kn.moments(gaps, 1, where=mask, nan_policy="omit", weights=w)
    assert_moments(m, weighted(x, 1, np.where(both, w, 0)), "float64", "all three")
    np.testing.assert_array_equal(m.count, np.count_nonzero(both & (w > 0), axis=(0, 2)))
    few = np.array([1.0, 0.0, 2.0, 0.0, 0.5])  # along the last axis, the same for every entry of the others
    np.testing.assert_array_equal(kn.moments(x, 1, weights=few).count, [21, 21, 21])


def test_a_weight_of_0_leaves_out_what_is_no_number():
    x = np.array([[1.0, np.nan], [3.0, np.inf], [5.0, 2.0]])
    m = kn.moments(x, 1, weights=np.array([[1.0, 0.0], [1.0, 0.0], [2.0, 1.0]]))
    np.testing.assert_array_equal(m.mean, [3.5, 2.0])
    np.testing.assert_array_equal(m.count, [3, 1])
    np.testing.assert_array_equal(m.sum_weights, [4.0, 1.0])
    assert np.isnan(kn.moments(x, 1, weights=np.zeros(2)).mean).all()


@pytest.mark.parametrize("size", [1e160, 1e-170])
def test_weighted_values_whose_squares_float64_does_not_hold(size):
    x = np.array([1.0, 2.0, 4.0]) * size
    got = kn.moments(x, (), weights=np.array([1.0, 2.0, 1.0]))
    assert got.std == pytest.approx(np.sqrt(1.1875) * size, rel=1e-14)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "dask", "xarray", "array API"])
def test_raise_tells_of_a_nan_and_lets_the_rest_pass(name):
    k = kind(name)
    x, _ = data()
    assert_moments(kn.moments(x, 1, nan_policy="raise"), oracle.moments(x, 1), "float32")
    x[2, 1, 3] = np.nan
    with pytest.raises(TypeError if name == "dask" else ValueError, match="nan_policy"):
        kn.moments(k.make(x), 1, nan_policy="raise")
    with pytest.raises(TypeError if name == "dask" else ValueError, match="nan_policy"):
        kn.normalize(k.make(x), 1, nan_policy="raise")
    kn.moments(x, 1, nan_policy="raise", where=~np.isnan(x))


@pytest.mark.parametrize(
    ("norm", "axes"),
    [
        (lambda x, **w: kn.batch_norm(x, channel=1, **w), 1),
        (lambda x, **w: kn.layer_norm(x, axes=-1, **w), (0, 1)),
        (lambda x, **w: kn.instance_norm(x, channel=1, **w), (0, 1)),
        (lambda x, **w: kn.group_norm(x, groups=1, channel=1, **w), 0),
        (lambda x, **w: kn.rms_norm(x, axes=-1, **w), (0, 1)),
    ],
)
def test_every_named_norm_takes_masks_gaps_and_weights(norm, axes):
    x, w = data("float32", 2.0)
    center = not np.array_equal(norm(x), kn.rms_norm(x, axes=-1))
    mask = np.random.default_rng(5).random(x.shape) > 0.3
    assert_output(norm(x, where=mask), oracle.normalize(x, axes, center=center, where=mask), x.size)
    holes = np.where(mask, x, np.nan).astype("f4")
    got = norm(holes, nan_policy="omit", fill=0)
    right = np.where(mask, oracle.normalize(x, axes, center=center, where=mask), 0)
    assert_output(got, right, x.size)
    cells = weighted(x, axes, w + np.float32(0.5))
    assert_output(norm(x, weights=w + np.float32(0.5)), oracle.normalize(x, axes, center=center, cells=cells), x.size)


def test_fill_says_what_a_masked_place_holds():
    x, _ = data()
    mask = np.random.default_rng(5).random((7, 3, 1)) > 0.3
    seen = np.broadcast_to(mask, x.shape)
    plain = kn.normalize(x, 1, where=mask)
    for fill, held in ((0, np.zeros_like(x)), (float("nan"), np.full_like(x, np.nan)), ("input", x)):
        y = kn.normalize(x, 1, where=mask, fill=fill)
        np.testing.assert_array_equal(y, np.where(seen, plain, held))
        out = x.copy()
        assert kn.normalize(out, 1, where=mask, fill=fill, out=out) is out
        np.testing.assert_array_equal(out, y)
        _, vjp = kn.normalize_vjp(x, 1, where=mask, fill=fill)
        dy = np.ones_like(x)
        got, through = vjp(dy).x, kn.normalize_vjp(x, 1, where=mask)[1](np.where(seen, dy, 0)).x
        np.testing.assert_array_equal(got, np.where(seen, through, 1 if fill == "input" else 0))


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_what_is_filled_in_place_is_told_by_x_as_it_was(name):
    """An infinite mean makes NaN of values that count; those stay, and only what was left out is filled."""
    k = kind(name)
    x = np.array([[1.0, np.inf, np.nan, 2.0], [1.0, 2.0, 4.0, np.nan]])
    right = k.read(kn.normalize(k.make(x), 0, nan_policy="omit", fill=7.0))
    np.testing.assert_array_equal(right == 7.0, np.isnan(x))
    y = np.array(x) if name == "numpy" else k.make(x)
    assert kn.normalize(y, 0, nan_policy="omit", fill=7.0, out=y) is y
    np.testing.assert_array_equal(k.read(y), right)
    y = np.full((2, 2), 3.0) if name == "numpy" else k.make(np.full((2, 2), 3.0))
    assert np.isnan(k.read(kn.normalize(y, 0, nan_policy="raise", constant="nan", fill=0.0, out=y))).all()


def test_what_a_constant_cell_gives():
    x = np.array([[2.0, 1.0], [2.0, 3.0]])
    m = kn.moments(x, 1)
    new = np.array([[2.5, 5.0]])
    for eps in (0.0, 1e-5, 2.0):
        scale = 1 / np.sqrt(1 + eps)
        for constant, first in (("center", 0.5), ("nan", np.nan)):
            y = kn.normalize(new, 1, moments=m, eps=eps, constant=constant)
            np.testing.assert_allclose(y, [[first, 3 * scale]], rtol=1e-12)
    assert kn.normalize(new, 1, moments=m, eps=0)[0, 0] == 0.0  # the bias
    assert np.isnan(kn.normalize(x, 1, constant="nan")[:, 0]).all()
    assert np.isfinite(kn.normalize(x, 1, constant="nan")[:, 1]).all()
    np.testing.assert_array_equal(kn.normalize(x, 1, constant="center"), kn.normalize(x, 1))
    with pytest.raises(ValueError, match=r"variance 0: \(0,\)"):
        kn.normalize(x, 1, constant="error")
    kn.normalize(x[:, 1:], 1, constant="error")
    steps = np.array([[1.0, 2.0], [3.0, 3.0]])
    kn.normalize(steps, 0, constant="error", where=np.array([[True], [False]]))  # no value is no variance
    y, vjp = kn.normalize_vjp(x, 1, constant="nan")
    dx = vjp(np.array([[1.0, 2.0], [0.0, 0.0]])).x
    np.testing.assert_allclose(dx[:, 1], kn.normalize_vjp(x, 1)[1](np.array([[1.0, 2.0], [0.0, 0.0]])).x[:, 1], rtol=1e-12)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ({"nan_policy": "skip"}, ValueError, "nan_policy must be 'propagate' or 'omit' or 'raise'"),
        ({"nan_policy": None}, TypeError, "nan_policy"),
        ({"weights": np.array([-1.0, 1.0, 1.0])[:, None]}, ValueError, "at least 0; got -1.0"),
        ({"weights": np.array([np.nan, 1.0, 1.0])[:, None]}, ValueError, "at least 0; got nan"),
        ({"weights": np.ones((2, 1))}, ValueError, r"must broadcast to the shape of x, \(7, 3, 5\)"),
        ({"weights": [1.0]}, TypeError, "weights must be an array"),
        ({"weights": np.array("a")}, TypeError, "weights must hold real numbers"),
        ({"fill": "zero"}, ValueError, "fill must be 'input'"),
        ({"fill": True}, TypeError, "fill must be a number"),
        ({"constant": "zero"}, ValueError, "constant must be 'bias' or 'center'"),
        ({"constant": "nan", "center": False}, ValueError, "needs center=True"),
        ({"weights": np.ones(5), "moments": kn.moments(np.ones((7, 3, 5)), 1)}, ValueError, "leave out moments="),
    ],
)
def test_a_wrong_word_is_named(words, error, says):
    x, _ = data()
    with pytest.raises(error, match=says):
        kn.normalize(x, 1, **words)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "xarray"])
@pytest.mark.parametrize("affine", [None, (0, 2)])
def test_denormalize_is_the_inverse(name, affine):
    k = kind(name)
    rng = np.random.default_rng(9)
    x, _ = data("float32", 1000.0)
    shape = (3,) if affine is None else (7, 5)
    w, b = (rng.random(shape) + 0.5).astype("f4"), rng.standard_normal(shape).astype("f4")
    m = kn.moments(x, 1)
    y = oracle.normalize(x, 1, w, b, affine=affine).astype("f4")

    def back(a, c, d):
        return kn.denormalize(a, 1, c, d, affine=affine, moments=m)

    got = k.read(k.run(back, k.make(y), k.make(w), k.make(b)))
    mean, root = (v.reshape(1, 3, 1) for v in (m.shift + m.delta, np.sqrt(m.m2 / m.count + 1e-5)))
    on = (1,) if affine is None else affine
    scores = (y.astype("f8") - oracle.affine_view(b, on, 3)) / oracle.affine_view(w, on, 3)
    assert got.dtype == np.float32
    assert_output(got, scores * root + mean, x.size, name)


def test_denormalize_of_float64_gives_the_data_back_and_names_what_it_cannot_undo():
    x, _ = data("float64")
    m, w = kn.moments(x, (0, 1)), np.random.default_rng(0).random(5) + 0.5
    y = kn.normalize(x, (0, 1), w, w, affine=2, moments=m)
    assert_within(kn.denormalize(y, (0, 1), w, w, affine=2, moments=m), x, 4 * ulp(x, "float64"), "x")
    np.testing.assert_array_equal(kn.denormalize(np.zeros((2, 1)), 1, moments=kn.moments(np.full((2, 1), 7.0), 1)), 7.0)
    huge = np.array([1.0, 2.0, 4.0]) * 1e160
    seen = kn.moments(huge, ())
    np.testing.assert_allclose(kn.denormalize(kn.normalize(huge, (), moments=seen), (), moments=seen), huge, rtol=1e-14)
    tiny = np.array([1.0, 2.0, 4.0]) * 1e-170  # eps is what divides
    seen = kn.moments(tiny, ())
    np.testing.assert_allclose(kn.denormalize(kn.normalize(tiny, (), moments=seen), (), moments=seen), tiny, rtol=1e-14)
    with pytest.raises(ValueError, match="weight must not hold 0"):
        kn.denormalize(y, (0, 1), np.zeros(5), affine=2, moments=m)
    with pytest.raises(TypeError, match="moments= is missing"):
        kn.denormalize(y, 1)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["runs", "lanes", "few lanes", "wide", "strided", "scalar"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_gaps_masks_and_weights_are_one_answer_in_every_layout(dtype, layout, share):
    """The kernel that asks each value, the one with a mask, with a mask of a row or a column, and with weights of 0 and 1."""
    import ml_dtypes

    rng = np.random.default_rng(12)
    shape, keep = {
        "runs": ((3, 700), 0),
        "lanes": ((700, 37), 1),
        "few lanes": ((701, 3), 1),
        "wide": ((40, 3, 1100), (1, 2)),
        "strided": ((90, 7, 24), 1),
        "scalar": ((500,), ()),
    }[layout]
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    offsets = rng.uniform(-1000, 1000, [n if a in oracle.kept_axes(keep, len(shape)) else 1 for a, n in enumerate(shape)])
    x = (rng.standard_normal(shape) + offsets).astype(kind)
    mask = rng.random(shape) >= share
    mask[: shape[0] // 2] &= rng.random(shape[1:]) > 0.3  # lanes whose first values are missing
    if layout == "strided":
        x, mask = x[:, :, ::3], mask[:, :, ::3]
    gaps = np.where(mask, x, np.nan).astype(kind)
    exact = oracle.moments(x, keep, mask)
    result = "float64" if dtype == "float64" else "float32"
    found = kn.moments(gaps, keep, nan_policy="omit")
    kept = oracle.kept_axes(keep, x.ndim)
    back = found if 0 in kept else kn.moments(gaps[::-1], keep, where=mask[::-1].copy())
    turned = found if x.ndim - 1 in kept else kn.moments(gaps[..., ::-1], keep, where=mask[..., ::-1].copy())
    for m in (found, back, turned, kn.moments(gaps, keep, where=mask), kn.moments(x, keep, weights=mask.astype("f4"))):
        assert_moments(m, exact, result, layout)
        np.testing.assert_array_equal(np.broadcast_to(m.count, m.shape).ravel(), exact.count.ravel())
    for axis in range(x.ndim):
        part = mask[tuple(slice(None) if a == axis else slice(1) for a in range(x.ndim))]
        assert_moments(
            kn.moments(x, keep, where=part), oracle.moments(x, keep, part), result, f"{layout}, mask of axis {axis}"
        )
        m = kn.moments(x, keep, weights=part * np.float32(0.5))
        assert_moments(m, oracle.moments(x, keep, part), result, f"{layout}, weights of axis {axis}")


def test_infinities_and_huge_values_beside_gaps():
    x = np.array([[np.inf, 1e160, np.nan], [1.0, np.nan, -np.nan], [np.nan, 3e160, np.nan]])
    m = kn.moments(x, 1, nan_policy="omit")
    np.testing.assert_array_equal(m.count, [2, 2, 0])
    np.testing.assert_array_equal(np.isinf(m.mean), [True, False, False])
    assert m.std[1] == pytest.approx(1e160, rel=1e-15)
    assert np.isnan(m.mean[2])
    swapped = x.astype(">f8")
    assert kn.moments(swapped, 1, nan_policy="omit") == m
