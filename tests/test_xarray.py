"""xarray: names as keep; dimensions, coordinates, attributes and the name stay; dask inside stays lazy."""

import copy
import json
import pickle

import numpy as np
import pytest

import keepnorm as kn

xr = pytest.importorskip("xarray")


@pytest.fixture
def field(rng):
    return xr.DataArray(
        rng.standard_normal((4, 3, 5, 6)).astype(np.float32) + 280,
        dims=("time", "channel", "y", "x"),
        coords={"channel": list("rgb"), "time": range(4), "height": (("y", "x"), rng.random((5, 6)))},
        attrs={"units": "K"},
        name="temperature",
    )


@pytest.fixture
def weight():
    return xr.DataArray(np.array([1.0, 2.0, 3.0], np.float32), dims="channel", coords={"channel": list("rgb")})


def test_labels_stay(field):
    y = kn.normalize(field, "channel")
    assert y.attrs == field.attrs
    assert y.name == field.name
    assert y.dims == field.dims
    xr.testing.assert_identical(y.coords.to_dataset(), field.coords.to_dataset())
    np.testing.assert_array_equal(y.values, kn.normalize(field.values, 1))


@pytest.mark.parametrize("keep", ["channel", ("time", "channel"), ("y", "x"), 1, "n c h w -> c"], ids=str)
def test_moments_have_the_kept_dimensions(field, keep):
    m = kn.moments(field, keep)
    positions = {"channel": 1, "n c h w -> c": 1, ("time", "channel"): (0, 1), ("y", "x"): (2, 3)}.get(keep, keep)
    dims = tuple(field.dims[a] for a in ((positions,) if isinstance(positions, int) else positions))
    for part, exact in ((m.mean, kn.moments(field.values, positions).mean), (m.std, kn.moments(field.values, positions).std)):
        assert part.dims == dims
        np.testing.assert_array_equal(part.values, exact)
        assert set(part.coords) == {name for name, c in field.coords.items() if set(c.dims) <= set(dims)}
    assert pickle.loads(pickle.dumps(m + m)).mean.dims == dims


def test_named_norms(field, weight):
    w = weight.values
    for ours, exact in (
        (kn.batch_norm(field, weight, weight, channel="channel"), kn.batch_norm(field.values, w, w, channel=1)),
        (kn.instance_norm(field, weight, channel="channel", batch="time"), kn.instance_norm(field.values, w, channel=1)),
        (kn.layer_norm(field, axes=("y", "x")), kn.layer_norm(field.values, axes=(2, 3))),
        (kn.group_norm(field, weight, groups=3, channel="channel"), kn.group_norm(field.values, w, groups=3, channel=1)),
        (kn.rms_norm(field, axes="x"), kn.rms_norm(field.values, axes=-1)),
        (kn.affine(field, weight, keep="channel"), kn.affine(field.values, w, keep=1)),
        (kn.normalize(field, "time", weight, affine="channel"), kn.normalize(field.values, 0, w, affine=1)),
        (kn.normalize(field, "channel", moments=kn.moments(field, "channel")), kn.normalize(field.values, 1)),
    ):
        assert ours.dims == field.dims
        np.testing.assert_array_equal(ours.values, exact)


def test_parameters_are_matched_by_name(field, rng):
    w = xr.DataArray(rng.random((6, 3)).astype(np.float32), dims=("x", "channel"))
    y = kn.normalize(field, ("channel", "x"), w)
    np.testing.assert_array_equal(y.values, kn.normalize(field.values, (1, 3), np.ascontiguousarray(w.values.T)))


def test_masks_are_matched_by_name(field):
    where = field.isel(time=0, drop=True).transpose("x", "channel", "y") > 280
    exact = field.values[:1] > 280
    np.testing.assert_array_equal(
        kn.moments(field, "channel", where=where).mean.values, kn.moments(field.values, 1, where=exact).mean
    )


def test_gradients_have_labels(field, weight):
    y, vjp = kn.normalize_vjp(field, "channel", weight)
    gradients = vjp(y.transpose("x", ...))
    _, exact = kn.normalize_vjp(field.values, 1, weight.values)
    np.testing.assert_array_equal(gradients.x.values, exact(y.values).x)
    np.testing.assert_array_equal(gradients.weight.values, exact(y.values).weight)
    assert (gradients.x.dims, gradients.weight.dims, gradients.bias) == (field.dims, ("channel",), None)


def test_dask_inside_stays_lazy(field):
    da = pytest.importorskip("dask.array")
    lazy = field.chunk(time=2)
    assert isinstance(kn.normalize(lazy, "channel").data, da.Array)
    assert isinstance(kn.moments(lazy, "channel").mean.data, da.Array)
    np.testing.assert_allclose(kn.normalize(lazy, "channel").values, kn.normalize(field.values, 1), atol=1e-6)


def test_errors_name_the_dimensions(field, weight):
    with pytest.raises(ValueError, match=r"'depth' is no dimension of x; got the dimensions \('time', 'channel', 'y', 'x'\)"):
        kn.normalize(field, "depth")
    with pytest.raises(ValueError, match=r"weight must have the affine dimensions \('channel',\); got \('band',\)"):
        kn.normalize(field, "channel", weight.rename(channel="band"))
    with pytest.raises(ValueError, match="cannot align"):
        kn.normalize(field, "channel", weight.assign_coords(channel=list("bgr")))
    with pytest.raises(ValueError, match="where must have dimensions of x"):
        kn.moments(field, "channel", where=weight.rename(channel="band") > 0)
    with pytest.raises(TypeError, match="pass one DataArray"):
        kn.normalize(field.to_dataset(), "channel")


class TestCellsBelongTogetherByLabel:
    @pytest.fixture
    def x(self, rng):
        coords = {"lat": [10, 20, 30, 40], "lon": list("abc"), "run": 7}
        return xr.DataArray(rng.standard_normal((6, 4, 3)), dims=("time", "lat", "lon"), coords=coords)

    @pytest.fixture
    def moved(self, x):
        """The same values with other axes first, other ends first, and labels in another order."""
        return x[:, ::-1].isel(lon=[1, 2, 0]).transpose("lon", "lat", "time")

    def test_merged(self, x, moved):
        exact = kn.moments(x, ("lat", "lon"))
        for first, second in ((x, moved), (moved, x)):
            for merged in (self.added(first, second), self.accumulated(first, second)):
                assert merged.count == 12
                xr.testing.assert_allclose(merged.mean.transpose("lat", "lon").sortby(["lat", "lon"]), exact.mean, rtol=1e-15)
                xr.testing.assert_allclose(merged.var.transpose("lat", "lon").sortby(["lat", "lon"]), exact.var, rtol=1e-14)
                assert merged.mean.dims == tuple(d for d in first.dims if d != "time")
                assert merged.mean.coords["run"] == 7

    def added(self, first, second):
        return kn.moments(first, ("lat", "lon")) + kn.moments(second, ("lat", "lon"))

    def accumulated(self, first, second):
        seen = kn.Accumulator(("lat", "lon"))
        seen.update(first)
        seen.update(second)
        return seen.moments

    def test_masked_counts_move_with_their_cells(self, x):
        m, other = kn.moments(x, "lat", where=x > 0), kn.moments(x[:, ::-1], "lat", where=x[:, ::-1] > 0)
        np.testing.assert_array_equal((m + other).count, 2 * m.count)

    def test_given(self, x, moved):
        m = kn.moments(x, ("lat", "lon"))
        exact = kn.normalize(x, ("lat", "lon"), moments=m)
        for ours in (
            kn.normalize(moved, ("lat", "lon"), moments=m),
            kn.batch_norm(moved, channel=("lat", "lon"), moments=m),
            kn.normalize_vjp(moved, ("lat", "lon"), moments=m)[0],
        ):
            assert ours.dims == moved.dims
            xr.testing.assert_identical(ours.transpose(*x.dims).sortby(["lat", "lon"]), exact)

    def test_from_lazy_data(self, x, moved):
        pytest.importorskip("dask.array")
        merged = kn.moments(x.chunk(time=2), ("lat", "lon")) + kn.moments(moved.chunk(time=2), ("lat", "lon"))
        xr.testing.assert_allclose(merged.mean.compute(), kn.moments(x, ("lat", "lon")).mean, rtol=1e-15)

    def test_without_coordinates_by_name_alone(self, x):
        bare = x.drop_vars(["lat", "lon"])
        merged = kn.moments(bare, ("lat", "lon")) + kn.moments(x.transpose("lon", "lat", "time"), ("lat", "lon"))
        xr.testing.assert_allclose(merged.mean, kn.moments(x, ("lat", "lon")).mean, rtol=1e-15)

    def test_others_are_refused_by_name(self, x):
        m, shifted = kn.moments(x, "lat"), x.assign_coords(lat=[30, 40, 50, 60])
        labels = "other labels on dimension 'lat': 50, 60 there, but 10, 20 is needed"
        with pytest.raises(ValueError, match=labels):
            m + kn.moments(shifted, "lat")
        with pytest.raises(ValueError, match="dimension 'lat': 10, 20 there, but 50, 60 is needed"):
            kn.normalize(shifted, "lat", moments=m)
        with pytest.raises(ValueError, match=r"dimensions \('station',\) do not go with the dimensions \('lat',\)"):
            m + kn.moments(x.rename(lat="station"), "station")
        seen = kn.Accumulator("lat")
        seen.update(x)
        with pytest.raises(ValueError, match=labels):
            seen.update(shifted)
        xr.testing.assert_identical(seen.moments.mean, m.mean)
        with pytest.raises(ValueError, match="dimension 'lat'"):
            m + kn.moments(x[:, :2], "lat")

    def test_labels_are_saved(self, x):
        dates = x.assign_coords(lat=np.array(["2020-01-01", "2020-01-02", "2021-01-01", "NaT"], "M8[ns]"))
        for data in (x, dates, x.assign_coords(lat=[0.5, 1.5, 2.5, 3.5]), x.drop_vars("lat")):
            m = kn.moments(data, ("lat", "lon"))
            for copied in (
                kn.Moments.from_dict(json.loads(json.dumps(m.to_dict()))),
                pickle.loads(pickle.dumps(m)),
                copy.deepcopy(m),
            ):
                xr.testing.assert_identical(copied.mean, m.mean)
                xr.testing.assert_identical((copied + m).mean, m.mean)
