"""The words of statistics mean what they mean in the libraries that people have them from, at the versions that are pinned."""

import numpy as np
import pytest

import keepnorm as kn


def data():
    rng = np.random.default_rng(21)
    x = rng.standard_normal((60, 4)) * [1, 10, 0.1, 100] + [0, 1e3, -5, 2e4]
    gaps = np.where(rng.random(x.shape) < 0.2, np.nan, x)
    return x, gaps, rng.integers(1, 5, 60), rng.random(60)


def close(ours, theirs, rtol=1e-11):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=rtol)


def test_numpy():
    x, gaps, times, weights = data()
    m = kn.moments(gaps, 1, nan_policy="omit")
    close(m.mean, np.nanmean(gaps, 0))
    close(m.var, np.nanvar(gaps, 0))
    close(m.variance(correction=1), np.nanvar(gaps, 0, ddof=1))
    close(m.std, np.nanstd(gaps, 0))
    weighted = kn.moments(x, 1, weights=weights[:, None])
    close(weighted.mean, np.average(x, 0, weights))
    close(weighted.var, np.diag(np.cov(x.T, aweights=weights, ddof=0)))
    close(kn.moments(x, 1, weights=times[:, None]).variance(correction=1), np.diag(np.cov(x.T, fweights=times)))


def test_scipy():
    stats = pytest.importorskip("scipy.stats")
    x, gaps, _, _ = data()
    for policy in ("propagate", "omit"):
        close(kn.normalize(gaps, 1, eps=0, nan_policy=policy), stats.zscore(gaps, 0, nan_policy=policy), 1e-9)
    with pytest.raises(ValueError, match="NaN"):
        kn.normalize(gaps, 1, nan_policy="raise")
    with pytest.raises(ValueError, match="nan"):
        stats.zscore(gaps, 0, nan_policy="raise")
    close(kn.moments(x, 1).stderr, stats.sem(x, 0))
    close(kn.moments(gaps, 1, nan_policy="omit").stderr, stats.sem(gaps, 0, nan_policy="omit"))
    close(kn.normalize(x[:5], 1, eps=0, moments=kn.moments(x, 1)), stats.zmap(x[:5], x, 0), 1e-9)


def test_scikit_learn():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x, gaps, _, weights = data()
    constant = np.column_stack([x, np.full(60, 7.0)])
    theirs = preprocessing.StandardScaler().fit(constant, sample_weight=weights)
    m = kn.moments(constant, 1, weights=weights[:, None])
    close(m.mean, theirs.mean_)
    close(m.var, theirs.var_)
    new = constant[:3] + 1
    ours = kn.normalize(new, 1, eps=0, moments=m, constant="center")
    close(ours, theirs.transform(new), 1e-9)
    close(kn.denormalize(ours[:, :4], 1, eps=0, moments=kn.moments(x, 1, weights=weights[:, None])), new[:, :4], 1e-9)
    close(theirs.inverse_transform(ours), new, 1e-9)
    with_gaps = preprocessing.StandardScaler().fit(gaps)  # which leaves NaN out
    close(kn.moments(gaps, 1, nan_policy="omit").var, with_gaps.var_, 1e-9)
    in_parts = preprocessing.StandardScaler()
    seen = kn.Accumulator(1)
    for part in np.split(x, 4):
        in_parts.partial_fit(part)
        seen.update(part)
    close(seen.var, in_parts.var_, 1e-9)


def test_statsmodels():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    x, _, times, _ = data()
    theirs = weightstats.DescrStatsW(x, weights=times, ddof=1)
    m = kn.moments(x, 1, weights=times[:, None])
    close(m.mean, theirs.mean)
    close(m.variance(correction=1), theirs.var)
    close(m.deviation(correction=1), theirs.std)
    close(m.sum_weights, np.full(4, theirs.sum_weights))
    close(m.stderr, theirs.std_mean)


def test_xarray():
    xr = pytest.importorskip("xarray")
    rng = np.random.default_rng(5)
    values = rng.normal(280, 10, (6, 4, 5))
    values[0, 1, 2] = np.nan
    x = xr.DataArray(values, dims=("time", "lat", "lon"), coords={"lat": [-60.0, -20.0, 20.0, 60.0]})
    area = np.cos(np.deg2rad(x.lat))
    theirs = x.weighted(area)  # which leaves NaN out
    m = kn.moments(x, "time", weights=area, nan_policy="omit")
    close(m.mean, theirs.mean(("lat", "lon")))
    close(m.var, theirs.var(("lat", "lon")))
    close(m.sum_weights, theirs.sum_of_weights(("lat", "lon")))
    assert m.mean.dims == ("time",)
