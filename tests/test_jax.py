"""JAX: concrete arrays through the kernels, traced ones through jax.numpy, in every transform, with and without x64."""

import gc
import tracemalloc

import numpy as np
import pytest

import keepnorm as kn
from tests import oracle
from tests.tolerance import assert_gradient, assert_output, assert_within, ulp

jax = pytest.importorskip("jax")
jnp = jax.numpy

MASK = np.random.default_rng(1).random((4, 1, 5)) < 0.7
NORMS = {
    "batch": lambda x, w, b: kn.batch_norm(x, w, b, channel=1),
    "instance": lambda x, w, b: kn.instance_norm(x, w, b, channel=1),
    "layer": lambda x, w, b: kn.normalize(x, 0, w, b, affine=1),
    "group": lambda x, w, b: kn.group_norm(x, w, b, groups=3, channel=1),
    "rms": lambda x, w, b: kn.normalize(x, 1, w, b, center=False),
    "mask": lambda x, w, b: kn.normalize(x, 1, w, b, where=jnp.asarray(MASK)),
    "plain": lambda x, w, b: kn.normalize(x, 1) + 0 * w[0] * b[0],
    "moments": lambda x, w, b: kn.moments(x, 1).std * w + b,
    "affine": lambda x, w, b: kn.affine(x, w, b, keep=1),
}


def operands(rng, dtype=np.float32):
    x = (rng.standard_normal((4, 3, 5)) + 3).astype(dtype)
    return (jnp.asarray(a) for a in (x, rng.standard_normal(3).astype(dtype) + 1, rng.standard_normal(3).astype(dtype)))


@pytest.mark.parametrize("norm", NORMS)
def test_gradients(rng, norm):
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        check_grads(NORMS[norm], tuple(operands(rng, np.float64)), order=2, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_one_trace_under_jit(rng, norm):
    traces = []

    def f(x, w, b):
        traces.append(1)
        return NORMS[norm](x, w, b)

    x, w, b = operands(rng)
    jitted = jax.jit(f)
    jitted(x, w, b)
    np.testing.assert_allclose(jitted(x, w, b), NORMS[norm](x, w, b), rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


def test_x64_off_keeps_the_digits_of_float32(rng):
    """Pairs of float32 hold what float64 would: the same digits at any offset."""
    for offset in (0.0, 100.0, 1e4):
        x = (rng.standard_normal((64, 3, 500)) + offset).astype(np.float32)
        y, mean, var = jax.jit(lambda x: (kn.normalize(x, 1), kn.moments(x, 1).mean, kn.moments(x, 1).var))(jnp.asarray(x))
        cells = oracle.moments(x, 1)
        np.testing.assert_allclose(mean, cells.mean.ravel(), rtol=2**-22, atol=2**-22)
        np.testing.assert_allclose(var, cells.var.ravel(), rtol=2**-20)
        np.testing.assert_allclose(y, oracle.normalize(x, 1, cells=cells), rtol=2**-20, atol=2**-20)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64"])
def test_x64_dtypes(rng, dtype):
    x = (rng.random((4, 3, 5)) * 100).astype(dtype)
    with jax.enable_x64(True):
        y, mean = kn.normalize(jnp.asarray(x), 1), kn.moments(jnp.asarray(x), 1).mean
        traced = jax.jit(lambda x: kn.normalize(x, 1))(jnp.asarray(x))
    assert y.dtype == mean.dtype == traced.dtype == np.float64
    assert np.asarray(y).tobytes() == kn.normalize(x, 1).tobytes()
    np.testing.assert_allclose(traced, y, rtol=1e-13, atol=1e-13)


def test_vmap(rng):
    x, w, b = operands(rng)
    np.testing.assert_allclose(jax.vmap(lambda x: kn.normalize(x, 0))(x), kn.normalize(x, (0, 1)), rtol=1e-5, atol=1e-6)
    y = jax.vmap(lambda x, w: kn.normalize(x, 1, w), in_axes=(None, 0))(x, jnp.stack([w, b]))
    np.testing.assert_allclose(y[1], kn.normalize(x, 1, b), rtol=1e-5, atol=1e-6)


def test_shard_map(rng):
    from jax.sharding import Mesh, PartitionSpec

    x, _, _ = operands(rng)
    mesh = Mesh(np.array(jax.devices()[:1]), ("batch",))
    spec = PartitionSpec("batch")
    f = jax.shard_map(lambda x: kn.normalize(x, 0), mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(f(x), kn.normalize(x, 0), rtol=1e-5, atol=1e-6)


def test_a_gradient_of_the_weight_alone(rng):
    x, w, b = operands(rng)
    found = jax.grad(lambda w: (kn.normalize(x, 1, w, b) ** 2).sum())(w)
    assert found.shape == w.shape
    _, vjp = kn.normalize_vjp(x, 1, w, b)
    np.testing.assert_allclose(found, vjp(2 * kn.normalize(x, 1, w, b)).weight, rtol=1e-4)


def test_moments_go_through_jit_and_come_back(rng):
    x, _, _ = operands(rng)
    seen = jax.jit(lambda x: kn.moments(x, 1))(x)
    assert seen.count == 20
    np.testing.assert_allclose((seen + seen).var, kn.moments(x, 1).var, rtol=1e-5)
    inside = jax.jit(lambda x, m: kn.normalize(x, 1, moments=m))(x, kn.moments(x, 1))
    np.testing.assert_allclose(inside, kn.normalize(x, 1), rtol=1e-5, atol=1e-6)


def test_numpy_parameters_and_jax_masks(rng):
    x, w, _ = operands(rng)
    assert isinstance(kn.normalize(x, 1, np.asarray(w)), jax.Array)
    assert isinstance(kn.normalize(np.asarray(x), 1, w, where=jnp.asarray(MASK)), np.ndarray)
    with pytest.raises(TypeError, match="weight must be an array of the library of x, numpy"):
        jax.grad(lambda w: kn.normalize(np.asarray(x), 1, w).sum())(w)


def test_memory_is_shared_both_ways():
    x = jnp.ones((64, 128, 128))
    kn.normalize(x, 1).block_until_ready()
    gc.collect()
    tracemalloc.start()  # sees NumPy's memory, which becomes JAX's
    try:
        y = kn.normalize(x, 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert y.nbytes <= peak <= y.nbytes * 1.01


def scores(x, axis=1, eps=1e-5, center=True):
    """The layer norm of x, or its RMS norm, in float64."""
    return oracle.normalize(x, tuple(a for a in range(x.ndim) if a != axis), eps=eps, center=center)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", [(3000, 9), (4, 20_000)], ids=str)
def test_traced_output_is_within_two_units_at_any_offset(rng, shape, center):
    norm = jax.jit(lambda x: kn.normalize(x, 0, center=center))
    for offset in (0.0, 3.0, 100.0, 1e4, 1e6):
        x = (rng.standard_normal(shape) + offset).astype(np.float32)
        assert_output(norm(x), scores(x, center=center), shape[1], f"offset {offset}")


def test_traced_moments_are_within_a_unit_at_any_offset(rng):
    norm = jax.jit(lambda x: (kn.moments(x, 1).mean, kn.moments(x, 1).var))
    for offset in (0.0, 100.0, 1e4):
        x = (rng.standard_normal((20_000, 3)) + offset).astype(np.float32)
        mean, var = norm(x)
        cells = oracle.moments(x, 1)
        assert_within(mean, cells.mean.ravel(), ulp(cells.mean.ravel(), np.float32))
        assert_within(var, cells.var.ravel(), ulp(cells.var.ravel(), np.float32))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e12, 1e30, 3e37])
def test_traced_magnitudes(rng, size):
    x = (rng.standard_normal((5, 8)) * size).astype(np.float32)
    layer, rms = jax.jit(lambda x: (kn.layer_norm(x, axes=1, eps=0), kn.rms_norm(x, axes=1, eps=0)))(x)
    wide = x.astype(np.float64)
    assert_output(layer, (wide - wide.mean(1, keepdims=True)) / wide.std(1, keepdims=True), 8)
    assert_output(rms, wide / np.sqrt((wide**2).mean(1, keepdims=True)), 8)
    if size > 1e30:
        return  # their gradients are subnormal, and XLA has none
    dy = rng.standard_normal((5, 8)).astype(np.float32)
    dx, _, _, terms = oracle.gradients(x, dy, 0, eps=0)
    assert_gradient(jax.jit(lambda x, dy: kn.normalize_vjp(x, 0, eps=0)[1](dy).x)(x, dy), dx, terms.max(), 8)
    assert_gradient(jax.grad(lambda x: (kn.normalize(x, 0, eps=0) * dy).sum())(x), dx, terms.max(), 8)


@pytest.mark.parametrize("size", [1e-30, 1e20, 3e37])
def test_traced_moments_of_any_magnitude(rng, size):
    """A deviation is right where float32 cannot hold a variance; such moments merge and normalise."""
    x = (rng.standard_normal((5, 8)) * size).astype(np.float32)
    wide = x.astype(np.float64)
    m, merged = jax.jit(lambda x: (kn.moments(x, 1), kn.moments(x[:2], 1) + kn.moments(x[2:], 1)))(x)
    std = wide.std(0)
    assert_within(m.std, std, ulp(std, np.float32))
    assert_within(merged.std, std, 4 * ulp(std, np.float32))
    given = jax.jit(lambda x, m: kn.normalize(x, 1, moments=m, eps=0))
    for found in (m, merged):
        shift, delta, m2 = (np.asarray(part, np.float64) for part in (found.shift, found.delta, found.m2))
        deviation = np.ldexp(np.sqrt(m2 / 5), found.exponent)
        assert_output(given(x, found), (wide - shift - delta) / deviation, 5)


def test_a_traced_variance_is_right_where_float32_holds_it(rng):
    x = (rng.standard_normal((5, 8)) * 1e18).astype(np.float32)
    var = x.astype(np.float64).var(0)
    assert_within(jax.jit(lambda x: kn.moments(x, 1).var)(x), var, ulp(var, np.float32))


def test_a_traced_integer_keeps_its_last_bits(rng):
    x = (2**31 - 1 - rng.integers(0, 1000, (5, 40))).astype(np.int32)
    assert_output(jax.jit(lambda x: kn.normalize(x, 0))(x), scores(x), 40)


def check_zero_variance(dtype):
    same, bias = jnp.full((2, 3), 7, dtype), jnp.asarray([1, 2, 3], dtype)
    for center, x in ((True, same), (False, 0 * same)):

        def norm(x, center=center):
            return kn.normalize(x, 0, None, bias, affine=1, eps=0, center=center)

        np.testing.assert_array_equal(jax.jit(norm)(x), [[1, 2, 3]] * 2)
        np.testing.assert_array_equal(jax.grad(lambda x, norm=norm: (norm(x) * bias).sum())(x), np.zeros((2, 3)))
        vjp = jax.jit(lambda x, center=center: kn.normalize_vjp(x, 0, bias, affine=1, eps=0, center=center)[1](x + 1)[:2])
        for gradient in vjp(x):
            np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    huge = jnp.full((2, 3), 1e30, dtype)
    np.testing.assert_allclose(
        jax.grad(lambda x: (kn.normalize(x, 0, eps=1e-4) * bias).sum())(huge), [[-100, 0, 100]] * 2, 1e-6
    )


def test_zero_variance_gives_the_bias_and_no_gradient():
    check_zero_variance("float32")
    with jax.enable_x64(True):
        check_zero_variance("float64")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_masked_value_reaches_no_gradient(bad):
    x = np.array([[1.0, 4.0], [2.0, 8.0], [bad, 9.0]], np.float32)
    where = np.array([[True, True], [True, True], [False, True]])
    dy = np.array([[1.0, 2.0], [0.0, 1.0], [0.0, 3.0]], np.float32)
    sound = np.where(where, x, 0)
    dx, dweight, _, terms = oracle.gradients(sound, dy, 1, where=where)
    w = np.ones(2, np.float32)
    for x64 in (False, True):
        with jax.enable_x64(x64):
            got = jax.grad(lambda x, w: (kn.normalize(x, 1, w, where=where) * dy)[where].sum(), (0, 1))(x, w)
            explicit = jax.jit(lambda x, w: kn.normalize_vjp(x, 1, w, where=where)[1](dy)[:2])(x, w)
        for gradient, found in (got, explicit):
            assert_gradient(np.asarray(gradient)[where], dx[where], np.broadcast_to(terms.max(0), x.shape)[where], 3)
            assert_within(found, dweight, 4 * ulp(dweight, np.float32))
            # Two values, whose gradient is what eps leaves of 1.
            assert_gradient(gradient[:2, 0], dx[:2, 0], np.abs(dx[:2, 0]), 2)


@pytest.mark.parametrize("x64", [False, True])
def test_the_gradient_beside_an_infinity_is_0_without_a_mean(x64):
    x = np.array([[1, 2, np.inf], [np.inf, -np.inf, 3], [1, 2, 3]], np.float32)
    dy = np.array([[1, 2, 3], [2, 1, 4], [0, 0, 0]], np.float32)
    want = np.where(np.isfinite(x), np.float32(0), np.nan)
    with jax.enable_x64(x64):
        x = jnp.asarray(x)
        explicit = jax.jit(lambda x: kn.normalize_vjp(x, 0, center=False)[1](dy).x)(x)
        np.testing.assert_array_equal(explicit, want)
        if not x64:  # with it JAX differentiates plain operations, whose sum of an infinity times 0 is NaN
            got = jax.grad(lambda x: (kn.rms_norm(x, axes=1) * dy).sum())(x)
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("norm", ["batch", "rms", "mask"])
def test_derivatives_without_x64_are_those_with_it(rng, norm):
    x, w, b = (np.asarray(a) for a in operands(rng))
    c = rng.standard_normal(x.shape).astype(np.float32)

    def derivatives(dtype):
        def f(*arrays):
            return (NORMS[norm](*arrays) ** 2 * c.astype(dtype)).sum()

        arrays = [jnp.asarray(a, dtype) for a in (x, w, b)]
        along = jax.jvp(f, arrays, [a * 0.5 for a in arrays])[1]
        return along, jax.jit(jax.grad(f, (0, 1, 2)))(*arrays), jax.hessian(f)(*arrays)

    narrow = derivatives("float32")
    with jax.enable_x64(True):
        wide = derivatives("float64")
    for got, exact in zip(jax.tree.leaves(narrow), jax.tree.leaves(wide), strict=True):
        # Plain sums of float32, of terms of this size.
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5 * max(1, np.abs(exact).max()))
