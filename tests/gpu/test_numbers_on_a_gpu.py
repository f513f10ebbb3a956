"""The contract on a real device: the simulator's cases, and the sizes that it cannot reach."""

import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from tests import oracle, tolerance
from tests.layouts import LAYOUTS

SHAPES = [(9,), (3, 1000), (1000, 3), (4, 16, 9, 9), (4, 9, 9, 16), (2, 100_000), (7, 513), (64, 33, 5)]
ROLES = [
    (s, k) for s in SHAPES for k in [(), (0,), (len(s) - 1,), tuple(range(len(s) - 1)), (1,)] if max(k, default=0) < len(s)
]
HALVES = ["float16", ml_dtypes.bfloat16]


def name_of(value):
    return np.dtype(value).name if not isinstance(value, tuple) else str(value)


def values(rng, shape, dtype="float32", offset=0.0):
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    return (rng.standard_normal(shape) + offset).astype(dtype)


def check_moments(got, on, x, keep, what=""):
    cells = oracle.moments(x, keep)
    dtype = np.float64 if x.dtype.itemsize == 8 and on.name != "jax" else np.float32
    shape = got.mean.shape
    mean, var = (np.reshape(v, shape) for v in (cells.mean, cells.var))
    state = tolerance.state(np.reshape(cells.count, shape))
    tolerance.assert_within(on.get(got.mean), mean, tolerance.ulp(mean, dtype) + state * np.sqrt(var), f"{what} mean")
    tolerance.assert_within(on.get(got.var), var, tolerance.ulp(var, dtype) + 8 * state * var, f"{what} var")


@pytest.mark.parametrize(("shape", "keep"), sorted(set(ROLES)), ids=str)
def test_moments_of_every_role(on, shape, keep, rng):
    x = values(rng, shape, offset=100)
    check_moments(kn.moments(on.put(x), keep), on, x, keep)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [(1,), (2,), (0, 1)], ids=str)
def test_every_layout(on, layout, keep, rng):
    x = LAYOUTS[layout](values(rng, (5, 24, 33), offset=-30))
    there = on.put(x)
    check_moments(kn.moments(there, keep), on, x, keep)
    y = on.get(kn.normalize(there, keep))
    tolerance.assert_output(y, oracle.normalize(x, keep), x.size)


@pytest.mark.parametrize("dtype", [*HALVES, "float32", "float64", "uint8", "int16", "int64"], ids=name_of)
@pytest.mark.parametrize(("shape", "keep"), [((3, 4000), (0,)), ((4000, 24), (1,))], ids=["runs", "lanes"])
def test_every_dtype(on, dtype, shape, keep, rng):
    if on.name == "jax" and np.dtype(dtype).itemsize == 8:
        pytest.skip("JAX has 64 bits only where it was asked to")
    if on.name == "cupy" and np.dtype(dtype).name == "bfloat16":
        pytest.skip("CuPy has no bfloat16 in every version")
    x = values(rng, shape, dtype, offset=3)
    there = on.put(x)
    check_moments(kn.moments(there, keep), on, x, keep)
    y = kn.normalize(there, keep)
    exact = oracle.normalize(x, keep)
    result = dtype if np.dtype(dtype).kind not in "iu" else "float64" if x.itemsize == 8 else "float32"
    limit = tolerance.OUTPUT_ULPS * tolerance.ulp(np.maximum(np.abs(exact), 1), result) + 1e-13
    tolerance.assert_within(on.get(y), exact, limit)


@pytest.mark.parametrize(("keep", "affine"), [((1,), None), ((0,), (1,)), ((0,), (1, 2)), ((0, 1), (1, 2))], ids=str)
@pytest.mark.parametrize("center", [True, False])
def test_gradients(on, keep, affine, center, rng):
    x, dy = values(rng, (6, 40, 50), offset=2), values(rng, (6, 40, 50))
    axes = keep if affine is None else affine
    weight = values(rng, tuple(x.shape[a] for a in axes))
    y, vjp = kn.normalize_vjp(on.put(x), keep, on.put(weight), on.put(weight), affine=affine, center=center)
    exact = oracle.gradients(x, dy, keep, weight, affine=affine, center=center)
    tolerance.assert_output(on.get(y), oracle.normalize(x, keep, weight, weight, affine=affine, center=center), x.size)
    for got, reference in zip(vjp(on.put(dy)), exact[:3], strict=True):
        largest = np.maximum(np.abs(reference).max(), 1)
        tolerance.assert_gradient(on.get(got), reference.reshape(got.shape), largest, x.size)


@pytest.mark.parametrize("keep", [(0,), (1,)], ids=["runs", "lanes"])
def test_masks_outliers_and_infinities(on, keep, rng):
    x = values(rng, (50, 50), offset=4)
    where = rng.random(x.shape) < 0.6
    cells = oracle.moments(x, keep, where)
    m = kn.moments(on.put(x), keep, where=on.put(where))
    np.testing.assert_array_equal(on.get(m.count), cells.count.ravel())
    np.testing.assert_allclose(on.get(m.mean), cells.mean.ravel(), rtol=2e-7)
    np.testing.assert_allclose(on.get(m.var), cells.var.ravel(), rtol=3e-7)
    x[3, 5] = np.inf
    m = kn.moments(on.put(x), keep)
    cell = 3 if keep == (0,) else 5
    assert on.get(m.mean)[cell] == np.inf
    assert np.isfinite(np.delete(on.get(m.mean), cell)).all()


def test_the_same_bits_every_time_and_in_any_batch(on, rng):
    x = values(rng, (8, 300_000), offset=5)
    first, second = (kn.moments(on.put(x), 0) for _ in range(2))
    part = kn.moments(on.put(x[:3]), 0)
    for row in ("shift", "delta", "m2"):
        np.testing.assert_array_equal(on.get(getattr(first, row)), on.get(getattr(second, row)))
        np.testing.assert_array_equal(on.get(getattr(part, row)), on.get(getattr(first, row))[:3])


def test_a_card_and_a_processor_agree(on, rng):
    for shape, keep in [((8, 64, 28, 28), 1), ((8, 28, 28, 64), 3), ((512, 1000), 0)]:
        x = values(rng, shape, offset=50)
        ours, theirs = kn.normalize(on.put(x), keep), kn.normalize(x, keep)
        tolerance.assert_within(
            on.get(ours), theirs.astype(np.float64), tolerance.ulp(np.maximum(np.abs(theirs), 1), "float32")
        )


@pytest.mark.slow
def test_more_than_2_to_the_31_values(torch):
    free, _ = torch.cuda.mem_get_info()
    if free < 2**31 * 6:
        pytest.skip(f"needs 12 GiB of free device memory; got {free / 2**30:.1f}")
    x = torch.ones(2**31 + 5, dtype=torch.float16, device="cuda")
    x[-5:] = 3
    m = kn.moments(x, ())
    assert m.count == 2**31 + 5
    mean = 1 + 10 / (2**31 + 5)
    assert float(m.delta + m.shift) == pytest.approx(mean, rel=1e-15)
    y = kn.normalize(x, ())
    assert float(y[0]) == pytest.approx((1 - mean) / np.sqrt(float(m.var) + 1e-5), rel=1e-2)
    assert float(y[-1]) == pytest.approx((3 - mean) / np.sqrt(float(m.var) + 1e-5), rel=1e-3)
