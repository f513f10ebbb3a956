"""JAX: concrete arrays through the kernels, traced ones through jax.numpy, in every transform, with and without x64."""

import gc
import tracemalloc

import numpy as np
import pytest

import keepnorm as kn
from tests import oracle

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
    """Sums are held in float32 here: a few units in the last place, at any offset, where x64 gives one."""
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
