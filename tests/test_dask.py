"""dask: lazy, one pass for the moments, blockwise for the rest, no rechunk, one thread for each chunk."""

import gc
import tracemalloc

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.engines.host import pool
from tests import oracle
from tests.tolerance import assert_moments, assert_output

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")


@pytest.fixture(autouse=True)
def nothing_is_computed():
    """Fail where anything but the test itself computes."""

    def refuse(*_, **__):
        raise AssertionError("a graph was computed")

    with dask.config.set(scheduler=refuse):
        yield


def now(x, scheduler="synchronous"):
    return x.compute(scheduler=scheduler)


def operands(rng, chunks=(2, 3, 4, 5)):
    x = (rng.standard_normal((6, 8, 4, 7)) + 50).astype(np.float32)
    return x, da.from_array(x, chunks=chunks), (rng.standard_normal(8) + 1).astype(np.float32)


@pytest.mark.parametrize("keep", [(), 0, 1, (0, 1), (1, 3), (0, 1, 2, 3)], ids=str)
def test_moments_of_chunked_and_kept_axes(rng, keep):
    x, lazy, _ = operands(rng)
    m = kn.moments(lazy, keep)
    mean, var, std = dask.compute(m.mean, m.var, m.std, scheduler="synchronous")
    assert m.count == kn.moments(x, keep).count
    assert_moments(type("Read", (), {"mean": mean, "var": var, "std": std}), oracle.moments(x, keep), np.float32)


def test_count_mean_and_variance_take_one_pass(rng):
    reads = []
    x, _, _ = operands(rng)
    lazy = da.from_array(x, chunks=3).map_blocks(
        lambda block: (reads.append(1), block)[1], dtype=x.dtype, meta=np.empty((0,) * 4, "f4")
    )
    m = kn.moments(lazy, 1)
    dask.compute(m.mean, m.var, scheduler="synchronous")
    assert len(reads) == lazy.npartitions


def test_chunks_stay_as_they_are(rng):
    x, lazy, p = operands(rng)
    for y in (kn.normalize(lazy, 1, p, p), kn.layer_norm(lazy, axes=(-1, -2)), kn.affine(lazy, p, p, keep=1)):
        assert y.chunks == lazy.chunks
        assert y.dtype == x.dtype
        assert isinstance(y._meta, np.ndarray)
    assert kn.moments(lazy, (0, 1)).mean.chunks == lazy.chunks[:2]


@pytest.mark.parametrize("chunks", [(2, 3, 4, 5), (6, 8, 4, 7), (1, 1, 1, 1)], ids=str)
def test_groups_that_a_chunk_cuts(rng, chunks):
    x, lazy, p = operands(rng, chunks)
    y = kn.group_norm(lazy, p, p, groups=4, channel=1)
    reference = kn.group_norm(x, p, p, groups=4, channel=1)
    assert y.shape == x.shape
    assert [y.chunks[a] for a in (0, 2, 3)] == [lazy.chunks[a] for a in (0, 2, 3)]
    np.testing.assert_allclose(now(y), reference, rtol=1e-6, atol=1e-6)


def test_masks(rng):
    x, lazy, _ = operands(rng)
    where = rng.random((6, 1, 4, 7)) < 0.5
    for mask in (where, da.from_array(where, chunks=2)):
        m = kn.moments(lazy, 1, where=mask)
        np.testing.assert_array_equal(now(m.count), np.broadcast_to(where, x.shape).sum((0, 2, 3)))
        np.testing.assert_allclose(now(m.var), oracle.moments(x, 1, where).var.ravel(), rtol=2**-23)
        assert_output(now(kn.normalize(lazy, 1, where=mask)), oracle.normalize(x, 1, where=where), x.size)


def test_gradients_are_lazy(rng):
    x, lazy, p = operands(rng)
    _, vjp = kn.normalize_vjp(lazy, 1, p, p)
    found, (_, exact) = vjp(lazy), kn.normalize_vjp(x, 1, p, p)
    for mine, other in zip(found, exact(x), strict=True):
        assert isinstance(mine, da.Array)
        np.testing.assert_allclose(now(mine), other, rtol=1e-4, atol=1e-3)


def test_merged_lazily(rng):
    x, lazy, _ = operands(rng)
    both = kn.moments(lazy[:2], 1) + kn.moments(lazy[2:], 1)
    assert isinstance(both.mean, da.Array)
    np.testing.assert_allclose(now(both.var), oracle.moments(x, 1).var.ravel(), rtol=2**-23)
    seen = kn.Accumulator(keep=1)
    for start in range(0, 6, 2):
        seen.update(lazy[start : start + 2])
    np.testing.assert_array_equal(now(seen.moments.mean), kn.moments(x, 1).mean)


def test_moments_of_numpy_normalise(rng):
    x, lazy, _ = operands(rng)
    m = kn.moments(x, 1)
    assert now(kn.normalize(lazy, 1, moments=m)).tobytes() == kn.normalize(x, 1, moments=m).tobytes()


def test_an_unknown_shape_is_told_what_to_call(rng):
    _, lazy, _ = operands(rng)
    with pytest.raises(ValueError, match=r"call x.compute_chunk_sizes\(\) first"):
        kn.moments(lazy[da.from_array(np.arange(6) > 2, chunks=2)], 1)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_one_thread_for_each_chunk(rng, monkeypatch, scheduler):
    from keepnorm.kernels.jit import threads

    counts = set()
    monkeypatch.setattr("keepnorm.engines.host.engine.threads_for", lambda *_: (counts.add(threads.available()), 1)[1])
    _, lazy, _ = operands(rng)
    now(kn.normalize(lazy, 1), scheduler)
    assert counts == {1}


def test_a_chunk_is_not_copied(monkeypatch):
    monkeypatch.setattr(pool, "LARGE", 1 << 30)  # what is kept for large results nobody sees
    x = np.ones((64, 256, 256), np.float32)
    out, m = np.empty_like(x), kn.moments(x, 1)
    y = kn.normalize(da.from_array(x, chunks=x.shape), 1, moments=m)
    da.store(y, out, scheduler="synchronous")  # compute() would copy its result once more
    gc.collect()
    tracemalloc.start()
    try:
        da.store(y, out, scheduler="synchronous")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.nbytes <= peak <= x.nbytes * 1.01


def test_chunks_with_a_mask_are_refused_before_anything_is_computed(rng):
    x, lazy, _ = operands(rng)
    masked, where = (da.from_array(np.ma.masked_array(a, x > 50)) for a in (x, x > 0))
    weight = da.from_array(np.ma.masked_array(np.ones(8, np.float32), np.arange(8) == 1))
    calls = {
        "x": lambda: kn.moments(masked, 1),
        "where": lambda: kn.moments(lazy, 1, where=where),
        "a weight, a bias or dy": lambda: kn.batch_norm(lazy, weight, channel=1),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"{name} is a masked array"):
            call()
    with pytest.raises(TypeError, match="dy is a masked array"):
        kn.normalize_vjp(lazy, 1)[1](masked)


@pytest.mark.parametrize("size", [1e160, 1e-170])
def test_float64_of_any_magnitude(size):
    """A deviation is right where float64 cannot hold a variance, and so is what it normalises."""
    values = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 9.0], [5.0, 4.0]])
    x = da.from_array(values * size, chunks=(3, 1))
    m = kn.moments(x, 1)
    assert_output(now(m.std) / size, values.std(0), 4)
    assert_output(now((m + m).std) / size, values.std(0), 8)
    for given in (None, m):
        y = kn.normalize(x, 1, moments=given, eps=0)
        assert_output(now(y), oracle.normalize(values, 1, eps=0), 4)
