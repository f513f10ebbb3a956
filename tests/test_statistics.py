"""Moments that people can use at once: in other shapes, units and files, compared, taken apart, and accumulated."""

import json
import pickle
from fractions import Fraction

import numpy as np
import pytest

import keepnorm as kn
from tests import oracle
from tests.backends import kind
from tests.tolerance import assert_moments, assert_output, assert_within, state, ulp


def data(offset=1e5):
    return np.random.default_rng(4).standard_normal((6, 5, 4, 3)) * 2 + offset + np.arange(4)[:, None] * 50


@pytest.mark.parametrize("keep", [(), 1, 3, (1, 3), (2, 3), (1, 2, 3)])
def test_pooled_moments_are_those_of_the_data(keep):
    x = data()
    m = kn.moments(x, (1, 2, 3)).pool(keep)
    assert_moments(m, oracle.moments(x, keep), "float64", "pooled")
    assert m.count == kn.moments(x, keep).count
    assert (m.keep, m.ndim) == (kn.moments(x, keep).keep, 4)


def test_pooled_moments_of_masked_and_weighted_and_huge_values():
    x = data(0.0)
    mask = np.random.default_rng(1).random(x.shape) > 0.6
    mask[:, 2, 1] = False  # a cell without a value
    assert_moments(kn.moments(x, (1, 2), where=mask).pool(1), oracle.moments(x, 1, mask), "float64", "masked")
    w = mask * np.random.default_rng(2).random(x.shape)
    assert kn.moments(x, (1, 2), weights=w).pool(2).allclose(kn.moments(x, 2, weights=w), rtol=1e-13)
    for size in (1e160, 1e-170):
        scaled = kn.moments(x * size, (1, 2))
        assert scaled.pool(1).allclose(kn.moments(x * size, 1), rtol=1e-13)
    assert np.isinf(kn.moments(np.array([[1.0, np.inf], [2.0, 3.0]]), (0, 1)).pool(0).mean[0])


@pytest.mark.parametrize("name", ["torch", "jax", "dask", "array API"])
def test_a_state_of_any_library_pools_scales_and_broadcasts(name):
    k = kind(name)
    x = data(10.0).astype("f4")
    m = kn.moments(k.make(x), (1, 3))
    assert_moments(Seen(k, m.pool(3)), oracle.moments(x, 3), "float32", name)
    mean, _, std = m.broadcast(k.make(x))
    assert mean.shape == std.shape == (1, 5, 1, 3)
    double = Seen(k, m.scaled(2.0, 1.0))
    assert_moments(double, oracle.moments(2.0 * x.astype("f8") + 1.0, (1, 3)), "float32", name)


class Seen:
    def __init__(self, k, m):
        self.mean, self.var, self.std = k.read(m.mean), k.read(m.var), k.read(m.std)


def test_scaled_moments_keep_the_digits_of_packed_data():
    packed = np.random.default_rng(6).integers(-30000, 30000, (40, 3)).astype("i2")
    a, b = np.array([0.01, 0.5, -2.0]), np.array([273.15, 0.0, 1e9])
    got = kn.moments(packed, 1).scaled(a, b)
    right = oracle.moments(packed * a + b, 1)
    assert_within(got.shift + got.delta, right.mean.ravel(), 2 * ulp(right.mean.ravel(), "float64"), "mean")
    assert_within(got.m2 / 40, (oracle.moments(packed, 1).var * a**2).ravel(), 4 * state(40) * right.var.ravel(), "var")
    # The mean is in two parts, which together have more digits than a float64 near 1e9.
    far, values = kn.moments(packed, 1).scaled(0.01, 1e9), packed[:, 0].tolist()
    exact = Fraction(0.01) * sum(values) / len(values) + 10**9
    assert abs(Fraction(float(far.shift[0])) + Fraction(float(far.delta[0])) - exact) < Fraction(1, 10**12)
    for wrong, error in (("2", TypeError), (np.ones(2), ValueError), (True, TypeError)):
        with pytest.raises(error, match="a must be"):
            kn.moments(packed, 1).scaled(wrong)


def test_a_state_of_another_library_is_scaled_by_numpys_arrays():
    k = kind("torch")
    m = kn.moments(k.make(data(10.0).astype("f4")), 3)
    np.testing.assert_allclose(k.read(m.scaled(np.array([1.0, 2.0, 3.0])).mean), k.read(m.mean) * [1, 2, 3], rtol=1e-6)


def test_what_is_left_without_a_part():
    x = data(1e3)
    whole, part = kn.moments(x, 3), kn.moments(x[:2], 3)
    assert (whole - part).allclose(kn.moments(x[2:], 3), rtol=1e-12)
    mask = np.random.default_rng(1).random(x.shape) > 0.5
    masked = kn.moments(x, 3, where=mask) - kn.moments(x[:2], 3, where=mask[:2])
    assert masked.allclose(kn.moments(x[2:], 3, where=mask[2:]), rtol=1e-12)
    assert (whole - whole).count == 0
    assert np.isnan((whole - whole).mean).all()
    huge = kn.moments(x * 1e160, 3) - kn.moments(x[:2] * 1e160, 3)
    assert huge.allclose(kn.moments(x[2:] * 1e160, 3), rtol=1e-11)
    with pytest.raises(ValueError, match="no more values than the whole; got a cell with -"):
        _ = part - whole
    for size in (1e7, 1e12):  # which leaves some digits, and none
        wild = np.concatenate([x, np.random.default_rng(0).standard_normal((2, 5, 4, 3)) * size])
        with pytest.raises(ValueError, match="too few digits"):
            _ = kn.moments(wild, 3) - kn.moments(wild[6:], 3)
    with pytest.raises(TypeError):
        _ = whole - 1


def test_a_rolling_window_adds_and_takes_away():
    batches = data(100.0).reshape(8, 15, 3)
    window = sum(kn.moments(b, 1) for b in batches[:3])
    for old, new in zip(batches, batches[3:], strict=False):
        window = window + kn.moments(new, 1) - kn.moments(old, 1)
    assert window.allclose(kn.moments(batches[5:].reshape(-1, 3), 1), rtol=1e-12)


def test_one_set_of_statistics_serves_both_layouts():
    x = data(3.0).astype("f4")
    m = kn.moments(x, -1)
    first = np.moveaxis(x, -1, 1)
    np.testing.assert_array_equal(
        kn.normalize(first, 1, moments=m.moved(1, 4)), np.moveaxis(kn.normalize(x, -1, moments=m), -1, 1)
    )
    two = kn.moments(x, (1, 3))
    turned = two.moved((2, 0), 3)  # axis 1 of x is now axis 2, its axis 3 axis 0
    np.testing.assert_array_equal(turned.mean, two.mean.T)
    assert (turned.keep, turned.ndim) == ((0, 2), 3)
    for keep, ndim, says in (((0, 1), 4, "where each of the 1"), (4, 4, "between -4 and 3"), (0, True, "ndim must be")):
        with pytest.raises(ValueError, match=says):
            m.moved(keep, ndim)


def test_broadcast_moments_fit_the_data():
    x = data(3.0)
    mean, var, std = kn.moments(x, (1, 3)).broadcast(x)
    exact = oracle.moments(x, (1, 3))
    assert mean.shape == exact.mean.shape
    np.testing.assert_array_equal(std, kn.moments(x, (1, 3)).broadcast(4).std)
    assert_output((x - mean) / np.sqrt(var + 1e-5), oracle.normalize(x, (1, 3)), x.size)
    for wrong, says in ((3, "4 axes do not go with 3"), (x[:, :2], "do not fit x with shape")):
        with pytest.raises(ValueError, match=says):
            kn.moments(x, (1, 3)).broadcast(wrong)
    with pytest.raises(TypeError, match="broadcast takes the data"):
        kn.moments(x, 1).broadcast("x")


def test_given_means_and_deviations():
    m = kn.Moments.from_mean_std([0.5, 0.25], [0.5, 2], keep=-1, ndim=4)
    np.testing.assert_array_equal(m.var, np.array([0.25, 4], "f4"))
    assert m.mean.dtype == np.float32
    assert kn.Moments.from_mean_var([1, 2], [3, 4], keep=0, ndim=1).mean.dtype == np.float32
    assert kn.Moments.from_mean_std(np.array([1.0]), np.array([3.0]), keep=0, ndim=1, count=4).var.dtype == np.float64
    with pytest.raises(ValueError, match="std must be at least 0; got -1"):
        kn.Moments.from_mean_std([0.0], [-1.0], keep=0, ndim=1)


def test_moments_compare():
    x = data()
    m = kn.moments(x, 1)
    assert m == kn.moments(x, 1)
    assert m != kn.moments(x, 3)
    assert m != kn.moments(x + 1e-9, 1)
    assert m.allclose(kn.moments(x + 1e-9, 1))
    assert not m.allclose(kn.moments(x + 1, 1), rtol=1e-9)
    assert not m.allclose(kn.moments(x[:3], 1))
    assert m != 1
    nothing = kn.moments(x, 1, where=np.zeros(x.shape, bool))
    assert nothing == kn.moments(x, 1, where=np.zeros(x.shape, bool))
    for name in ("torch", "jax"):
        k = kind(name)
        assert kn.moments(k.make(x.astype("f4")), 1) == kn.moments(x.astype("f4"), 1)
    assert kn.moments(kind("dask").make(x), 1).allclose(m, rtol=1e-14)
    with pytest.raises(TypeError, match="unhashable"):
        hash(m)
    xr = pytest.importorskip("xarray")
    up = xr.DataArray(x[0, :, 0], dims=("lat", "lon"), coords={"lat": [0, 1, 2, 3, 4]})
    assert kn.moments(up, "lat") == kn.moments(up[::-1], "lat")  # cells with labels belong together by them
    assert kn.moments(up, "lat") != kn.moments(up.assign_coords(lat=[5, 6, 7, 8, 9]), "lat")
    with pytest.raises(TypeError, match="allclose compares with Moments"):
        m.allclose(m.mean)


@pytest.mark.parametrize("suffix", ["npz", "json"])
def test_a_saved_state_comes_back_to_the_last_bit(tmp_path, suffix):
    x = data()
    mask = np.random.default_rng(1).random(x.shape) > 0.5
    states = {
        "plain": kn.moments(x, (1, 3)),
        "masked": kn.moments(x, (1, 3), where=mask),
        "weighted": kn.moments(x, (1, 3), weights=np.random.default_rng(0).random((6, 1, 1, 1))),
        "huge": kn.moments(x * 1e160, 1),
        "given": kn.Moments.from_mean_var([0.1], [0.2], keep=0, ndim=2),
        "infinite": kn.moments(np.array([[np.inf, np.nan, 1.0], [1.0, 2.0, 4.0]]), 1),
        "of no axes": kn.moments(x, ()),
    }
    for name, m in states.items():
        path = tmp_path / f"{name}.{suffix}"
        m.save(path)
        back = kn.Moments.load(path)
        for part in ("shift", "delta", "m2", "count", "sum_weights", "exponent"):
            np.testing.assert_array_equal(getattr(back, part), getattr(m, part), err_msg=f"{name} {part}")
        assert (back.keep, back.ndim, back.dtype) == (m.keep, m.ndim, m.dtype)


def test_a_file_of_moments_is_whole_or_not_there(tmp_path, monkeypatch):
    m, path = kn.moments(data(), 1), tmp_path / "m.npz"
    m.save(path)
    before = path.read_bytes()

    def full(file, **_):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        kn.moments(data(0.0), 1).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


def test_what_is_no_file_of_moments_is_refused(tmp_path):
    m, path = kn.moments(data(), 1), tmp_path / "m.json"
    with pytest.raises(ValueError, match=r"must end in \.npz or \.json"):
        m.save(tmp_path / "m.pkl")
    with pytest.raises(ValueError, match=r"must end in \.npz or \.json"):
        kn.Moments.load(tmp_path / "m.txt")
    for text in ("", "[]", "{}", json.dumps({"shift": [1]}), json.dumps(m.to_dict() | {"version": 99}), "null"):
        path.write_text(text)
        with pytest.raises(ValueError, match="not a file of moments"):
            kn.Moments.load(path)
    (tmp_path / "m.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(ValueError, match="not a file of moments"):
        kn.Moments.load(tmp_path / "m.npz")
    with pytest.raises(FileNotFoundError):
        kn.Moments.load(tmp_path / "none.npz")


def test_load_reads_what_the_command_saved(tmp_path):
    from keepnorm.cli.main import main

    x = data(5.0).astype("f4")
    np.save(tmp_path / "x.npy", x)
    for suffix in ("npz", "json"):
        path = tmp_path / f"m.{suffix}"
        assert main(["stats", str(tmp_path / "x.npy"), "--keep", "3", "--save", str(path)]) == 0
        assert kn.Moments.load(path) == kn.moments(x, 3)


def test_a_large_state_has_a_short_repr():
    for shape, keep in (((5, 300, 300), (1, 2)), ((3, 9, 9, 9), (1, 2, 3)), ((4, 1000), 1), ((3,), ())):
        text = repr(kn.moments(np.random.default_rng(0).random(shape), keep))
        assert len(text) < 600
        assert text.startswith("Moments(count=")
        assert "\n" not in text


def test_dask_computes_a_state_in_one_read():
    dask = pytest.importorskip("dask")
    import dask.array as da

    x, reads = data(), []

    def block(values):
        if values.size:
            reads.append(1)
        return values

    lazy = da.from_array(x, chunks=(2, 5, 4, 3)).map_blocks(block, dtype=x.dtype)
    m = kn.moments(lazy, 1)
    assert dask.is_dask_collection(m)
    assert not dask.is_dask_collection(kn.moments(x, 1))
    (done,) = dask.compute(m, scheduler="synchronous")
    assert len(reads) == 3
    assert isinstance(done.mean, np.ndarray)
    assert done.allclose(kn.moments(x, 1), rtol=1e-14)
    reads.clear()
    with dask.config.set(scheduler="synchronous"):
        assert kn.Moments.from_dict(m.to_dict()) == done
        assert len(reads) == 3
        (held,) = dask.persist(m)
        reads.clear()
        assert held == done
        assert dask.optimize(m)[0] == done
    assert len(reads) <= 3


class TestAccumulator:
    def test_has_the_numbers_at_hand(self):
        x = data(7.0)
        seen = kn.Accumulator(3)
        assert repr(seen) == "Accumulator(keep=3: nothing yet)"
        for batch in x:
            seen.update(batch[None])
        exact = oracle.moments(x, 3)
        assert_moments(seen, exact, "float64", "stream")
        assert repr(seen).startswith("Accumulator(keep=3: Moments(count=120, mean=[")

    def test_workers_add_up(self):
        x = data(7.0)
        parts = [kn.Accumulator(3) for _ in range(3)]
        for i, batch in enumerate(x):
            parts[i % 2].update(batch[None], by=["even" if i % 2 else "odd"])
        both = sum(parts)
        assert both.moments.allclose(kn.moments(x, 3), rtol=1e-14)
        assert both.groups["even"].allclose(kn.moments(x[1::2], 3), rtol=1e-14)
        assert pickle.loads(pickle.dumps(parts[0])).moments == parts[0].moments
        with pytest.raises(ValueError, match="do not add up"):
            _ = parts[0] + kn.Accumulator(2)
        with pytest.raises(TypeError):
            _ = parts[0] + 1

    def test_a_saved_stream_goes_on_with_the_same_bits(self):
        x = data(7.0)
        one = kn.Accumulator("n h w c -> c", nan_policy="omit")
        for batch in x[:3]:
            one.update(batch[None], by=["a"])
        other = kn.Accumulator.from_dict(json.loads(json.dumps(one.to_dict())))
        for seen in (one, other):
            for batch in x[3:]:
                seen.update(batch[None], by=["b"])
        assert one.moments == other.moments
        assert one.groups.keys() == other.groups.keys() == {"a", "b"}
        assert all(one.groups[label] == other.groups[label] for label in "ab")
        for wrong in ({}, {"keep": 1, "slots": 3}, {"keep": 1, "slots": [{}]}, [], {"keep": 1, "slots": [], "sizes": 3}):
            with pytest.raises((TypeError, ValueError)):
                kn.Accumulator.from_dict(wrong)

    def test_takes_gaps_and_weights(self):
        x = data(7.0)
        w = np.random.default_rng(0).random((6, 1, 1, 1))
        x[0, 1, 2] = np.nan
        seen = kn.Accumulator(3, nan_policy="omit")
        for at in (slice(0, 2), slice(2, 6)):
            seen.update(x[at], weights=w[at])
        assert seen.moments.allclose(kn.moments(x, 3, nan_policy="omit", weights=w), rtol=1e-14)

    def test_labels_split_the_entries_of_a_batch(self):
        x = data(7.0)
        mask, labels = np.random.default_rng(3).random((6, 1, 1, 3)) > 0.3, np.array([1, 2, 1, 3, 3, 1])
        mask[:, 0, 0, 0] = True
        for make in (np.asarray, kind("torch").make, kind("jax").make):
            seen = kn.Accumulator(3)
            for at in (slice(0, 4), slice(4, 6)):
                seen.update(make(x[at].astype("f4")), make(mask[at]), by=labels[at])
            assert sorted(seen.groups) == [1, 2, 3]
            for label, m in seen.groups.items():
                mine = labels == label
                right = oracle.moments(x[mine].astype("f4"), 3, mask[mine])
                np.testing.assert_allclose(np.asarray(m.mean), right.mean.ravel(), rtol=1e-6)
        before = seen.moments
        for wrong, says in ((labels[:2], "a label for each entry"), ([[1]] * 6, "unhashable|label")):
            with pytest.raises((TypeError, ValueError), match=says):
                seen.update(x, by=wrong)
        assert seen.moments == before
        with pytest.raises(ValueError, match="axis must be reduced"):
            kn.Accumulator(0).update(x, by=labels)

    def test_labelled_weights_go_with_their_entries(self):
        xr = pytest.importorskip("xarray")
        x = xr.DataArray(data(7.0)[..., 0], dims=("time", "lat", "lon"))
        w = xr.DataArray(np.arange(1.0, 7.0), dims="time")
        area = xr.DataArray(np.arange(1.0, 6.0), dims="lat")
        seen = kn.Accumulator("lon")
        seen.update(x, weights=w, by=list("aabbab"))
        seen.update(x, weights=area, by=list("cccccc"))
        mine = [0, 1, 4]
        assert seen.groups["a"].allclose(kn.moments(x[mine], "lon", weights=w[mine]), rtol=1e-13)
        assert seen.groups["c"].allclose(kn.moments(x, "lon", weights=area), rtol=1e-13)

    def test_a_refused_batch_leaves_groups_as_they_were(self):
        x = data(7.0)
        seen = kn.Accumulator(3)
        seen.update(x, by=[1] * 6)
        before = seen.to_dict()
        with pytest.raises(ValueError, match="different cells"):
            seen.update(x[..., :2], by=[1, 2] * 3)
        assert seen.to_dict() == before

    def test_takes_batches_of_several_libraries(self):
        x = data(7.0).astype("f4")
        seen = kn.Accumulator(3)
        for i, name in enumerate(("numpy", "torch", "jax", "numpy")):
            seen.update(kind(name).make(x[i : i + 1]))
        assert seen.moments.allclose(kn.moments(x[:4], 3))


def test_a_batch_norm_is_undone():
    x = data(7.0).astype("f4")
    bn = kn.BatchNorm(3, keep=-1)
    bn.weight, bn.bias = np.array([1.0, 2.0, -0.5], "f4"), np.array([0.0, 1.0, 2.0], "f4")
    for _ in range(3):
        bn(x, training=True)
    y = bn(x, training=False)
    np.testing.assert_allclose(bn.inverse(y), x, rtol=1e-5)
    bn.weight = np.zeros(3, "f4")
    with pytest.raises(ValueError, match="weight must not hold 0"):
        bn.inverse(y)


def test_the_package_shows_what_is_public():
    assert isinstance(kn.__version__, str)
    names = [n for n in dir(kn) if not n.startswith("__")]
    assert sorted(names) == sorted(kn.__all__)
