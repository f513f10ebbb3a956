"""Any array in, the same kind out: library, dtype, shape and laziness, and values that the oracle accepts."""

import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from keepnorm.engines import dispatch
from keepnorm.precision import moments_name, result_name
from tests import oracle
from tests.backends import BACKENDS, CALLS, NAMES, SHAPES, kind, operands
from tests.tolerance import assert_gradient, assert_moments, assert_output


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name, name))


@pytest.mark.parametrize(("call", "shape"), [(c, s) for c in CALLS for s in SHAPES if len(s) >= CALLS[c].rank], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_function_answers_in_kind(rng, name, call, shape):
    k, (_, ours, exact) = kind(name), CALLS[call]
    x, p = operands(rng, shape)
    given, parameter = k.make(x), k.make(p) if name != "xarray" else p
    y = k.run(ours, given, parameter)
    assert isinstance(y, k.type)
    assert dispatch.dtype_name(y.dtype) == "float32"
    assert tuple(y.shape) == shape
    reference = exact(x, p)
    if call == "normalize_vjp":
        assert_gradient(k.read(y), reference, np.abs(reference).max() + 1, x.size, call)
    else:
        # What cancels in y: the terms of the affine step, or the digits of a bias beside the normalised value.
        terms = np.abs(reference).max(initial=1) + np.abs(p).max(initial=1)
        assert_output(k.read(y), reference, x.size, call, size=terms)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_moments_answer_in_kind(rng, name, shape):
    k = kind(name)
    x, _ = operands(rng, shape)

    def ours(x):
        m = kn.moments(x, -1)
        return m.mean, m.var, m.std

    mean, var, std = k.run(ours, k.make(x))
    for part in (mean, var, std):
        assert isinstance(part, k.type)
        assert dispatch.dtype_name(part.dtype) == "float32"
        assert tuple(part.shape) == shape[-1:]
    seen = type("Read", (), {"mean": k.read(mean), "var": k.read(var), "std": k.read(std)})
    assert_moments(seen, oracle.moments(x, -1), np.float32, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_leaves_values_out(rng, name):
    k = kind(name)
    x, _ = operands(rng, (3, 4, 5))
    where = rng.random((3, 1, 5)) < 0.6
    where[:, 0, 0] = False
    mean = k.run(lambda x, w: kn.moments(x, -1, where=w).mean, k.make(x), where if name == "xarray" else k.make(where))
    exact = oracle.moments(x, -1, where).mean.reshape(5)
    exact[0] = np.nan
    np.testing.assert_allclose(k.read(mean), exact, rtol=2**-23)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_without_axes_and_its_gradient(rng, name):
    k = kind(name)
    x, dy = (operands(rng, (3, 4))[0] for _ in range(2))
    w = np.array(2.0, np.float32)
    parameter, parameter_type = (w, np.ndarray) if name == "xarray" else (k.make(w), k.type)

    def ours(x, dy, w):
        y, vjp = kn.normalize_vjp(x, 1, w, w, affine=())
        return y, *vjp(dy)

    y, dx, dweight, dbias = k.run(ours, k.make(x), k.make(dy), parameter)
    exact = oracle.gradients(x, dy, 1, w, affine=())
    assert_output(k.read(y), oracle.normalize(x, 1, w, w, affine=()), x.size, name)
    assert_gradient(k.read(dx), exact[0], np.abs(exact[0]).max(), x.size, name)
    for got, want in ((dweight, exact[1]), (dbias, exact[2])):
        assert isinstance(got, parameter_type)
        assert tuple(got.shape) == ()
        assert dispatch.dtype_name(got.dtype) == "float32"
        assert_gradient(got if name == "xarray" else k.read(got), want, np.abs(want).max() + 1, x.size, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_of_the_table(rng, name):
    k = kind(name)
    for dtype in BACKENDS[name].dtypes:
        x = (rng.random((4, 3, 5)) * 2 + 1).astype(dtype_of(dtype))
        if name.startswith("jax") and dtype.endswith("64"):
            continue  # test_jax has them, with x64 on
        y, mean = k.run(lambda x: (kn.normalize(x, 1), kn.moments(x, 1).mean), k.make(x))
        assert dispatch.dtype_name(y.dtype) == result_name(dtype), dtype
        assert dispatch.dtype_name(mean.dtype) == moments_name(dtype), dtype
        assert_output(k.read(y), oracle.normalize(x, 1), x.size, dtype)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [name for name in NAMES if BACKENDS[name].kernels and name not in ("numpy", "dask")])
def test_the_bits_are_those_of_numpy(rng, name, call):
    k, (_, ours, _) = kind(name), CALLS[call]
    for dtype in ("float16", "bfloat16", "float32"):
        x, p = operands(rng, (3, 5, 2, 6), dtype_of(dtype))
        y = k.run(ours, k.make(x), p if name == "xarray" else k.make(p))
        assert k.read(y).tobytes() == ours(x, p).tobytes(), dtype


@pytest.mark.parametrize("name", [name for name in NAMES if name != "jax jit"])
def test_out_is_taken_or_refused_as_the_table_says(rng, name):
    k = kind(name)
    x, _ = operands(rng, (3, 4, 5))
    out = k.make(x) if name != "numpy" else np.empty_like(x)
    if not BACKENDS[name].out:
        with pytest.raises(TypeError, match="out= needs an array that can be written to"):
            kn.normalize(k.make(x), 1, out=out)
        return
    assert kn.normalize(k.make(x), 1, out=out) is out
    np.testing.assert_array_equal(k.read(out), k.read(kn.normalize(k.make(x), 1)))
    with pytest.raises(ValueError, match="out must have the shape of x"):
        kn.normalize(k.make(x), 1, out=k.make(x[1:]))
    with pytest.raises(TypeError, match="out must have dtype float32"):
        kn.normalize(k.make(x), 1, out=k.make(x.astype(np.float64)))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("numpy", "jax", "jax jit", "dask", "xarray")])
def test_a_weight_of_another_library_is_refused(rng, name):
    k = kind(name)
    x, p = operands(rng, (3, 4))
    with pytest.raises(TypeError, match=r"weight must be an array of the library of x, \w+; got numpy.ndarray"):
        kn.normalize(k.make(x), -1, p)


def test_pandas_and_sparse_are_told_what_to_pass():
    pd = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"pass x.to_numpy\(\)"):
        kn.moments(pd.DataFrame({"a": [1.0]}), 1)


def test_a_masked_array_is_told_what_to_pass():
    x = np.ma.array([[1.0, 2.0], [3.0, 99.0]], mask=[[False, False], [False, True]])
    with pytest.raises(TypeError, match=r"pass its values and its mask, x.data with where=~numpy.ma.getmaskarray\(x\)"):
        kn.moments(x, 1)
    np.testing.assert_array_equal(kn.moments(x.data, 1, where=~np.ma.getmaskarray(x)).mean, [2.0, 2.0])


def test_a_memory_map_is_an_array(tmp_path, rng):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(4, 3))
    x[...] = rng.standard_normal((4, 3))
    y = kn.normalize(x, 1)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, kn.normalize(np.array(x), 1))


def test_a_remembered_call_does_not_excuse_another():
    x = np.ones((4, 3), np.float32)
    kn.moments(x, 1), kn.moments(x, (0, 1))
    for wrong in (True, 1.0, (False, True), (0, 1.0)):
        with pytest.raises(TypeError):
            kn.moments(x, wrong)


def test_rules_of_values_without_kernels():
    """Zero, infinite and negative variances, magnitudes and masked values, by a library's own operations."""
    xp = pytest.importorskip("array_api_strict")
    bias = xp.asarray([1.0, 2.0, 3.0])
    for center, value in ((True, 7.0), (False, 0.0)):
        x = xp.full((2, 3), value)
        y, vjp = kn.normalize_vjp(x, 0, bias, bias, affine=1, eps=0, center=center)
        np.testing.assert_array_equal(np.asarray(y), [[1, 2, 3]] * 2)
        for gradient in vjp(x + 1)[:2]:
            np.testing.assert_array_equal(np.asarray(gradient), 0)
    values = np.array([[1.0, 2.0, 3.0, 5.0]])
    for size in (1e300, 1e160, 1e-170, 1e-300):
        for center in (True, False):
            y = kn.normalize(xp.asarray(values * size), 0, eps=0, center=center)
            assert_output(np.asarray(y), oracle.normalize(values, 0, eps=0, center=center), 4)
        x = xp.asarray(values.T * size)
        m = kn.moments(x, 1)
        for found in (m, kn.moments(x[:1, :], 1) + kn.moments(x[1:, :], 1)):
            assert_output(np.asarray(found.std) / size, values.std(1), 4)
            want = oracle.normalize(values.T, 1, eps=0)
            assert_output(np.asarray(kn.normalize(x, 1, moments=found, eps=0)), want, 4)
            if size > 1:
                assert_output(np.asarray(kn.normalize(x, 1, moments=found)), want, 4)
            else:  # eps is all that counts
                root = 1e-5**0.5
                assert_output(np.asarray(kn.normalize(x, 1, moments=found)) / size * root, values.T - values.mean(), 4)
    var = xp.asarray([-4.9e-6, -1.0, float("inf"), -1e-5], dtype=xp.float64)
    m = kn.Moments(None, xp.zeros(4), xp.zeros(4), var, keep=(1,), ndim=2)
    y = np.asarray(kn.normalize(xp.ones((1, 4)), 1, moments=m))
    assert_output(y[0], np.array([1 / np.sqrt(1e-5 - 4.9e-6), np.nan, 0, np.nan]), 1)
    x = np.array([[1, 2, np.inf], [-np.inf, np.inf, 3]])
    with np.errstate(invalid="ignore"):
        _, vjp = kn.normalize_vjp(xp.asarray(x), 0, center=False)
        np.testing.assert_array_equal(np.asarray(vjp(xp.ones((2, 3))).x), np.where(np.isfinite(x), 0, np.nan))
    x = np.array([[1.0, 4.0], [2.0, 8.0], [np.nan, 9.0]])
    where, dy = ~np.isnan(x), np.array([[1.0, 2.0], [0.0, 1.0], [0.0, 3.0]])
    dx, dweight, _, terms = oracle.gradients(np.where(where, x, 0), dy, 1, where=where)
    _, vjp = kn.normalize_vjp(xp.asarray(x), 1, xp.ones(2), where=xp.asarray(where))
    got = vjp(xp.asarray(dy))
    assert_gradient(np.asarray(got.x)[where], dx[where], terms.max(), 3, terms=terms.max())
    assert_gradient(np.asarray(got.weight), dweight, np.abs(dweight), 3, terms=terms.max())


@pytest.mark.parametrize("other", ["torch", "jax"])
@pytest.mark.parametrize("mask", [False, True])
def test_moments_of_two_libraries_merge_in_the_one_that_is_not_numpy(rng, other, mask):
    k = kind(other)
    x = rng.standard_normal((3, 6, 4)).astype("f4") + 5
    where = [rng.random((6, 4)) > 0.3 if mask else np.ones((6, 4), bool) for _ in x]
    plain, foreign = (
        [kn.moments(make(a), 1, where=make(w) if mask else None) for a, w in zip(x, where, strict=True)]
        for make in (np.asarray, k.make)
    )
    exact = oracle.moments(x.reshape(18, 4), 1, np.concatenate(where))
    seen = kn.Accumulator(1)
    for i, make in enumerate((np.asarray, k.make, np.asarray)):
        seen.update(make(x[i]), make(where[i]) if mask else None)
    for merged in (plain[0] + foreign[1] + plain[2], foreign[0] + plain[1] + foreign[2], seen.moments):
        assert isinstance(merged.mean, k.type)
        parts = {name: k.read(getattr(merged, name)) for name in ("mean", "var", "std")}
        assert_moments(type("Read", (), parts), exact, np.float32, other)
        np.testing.assert_array_equal(np.asarray(merged.count), exact.count.ravel() if mask else 18)
