"""The estimator for scikit-learn: it passes scikit-learn's checks, and agrees with StandardScaler, to more digits."""

import numpy as np
import pytest

import keepnorm as kn
from tests import oracle
from tests.tolerance import assert_output, assert_within, ulp

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from keepnorm.layers.sklearn import Standardizer


@pytest.mark.filterwarnings("ignore")  # the checks warn of what they skip
@parametrize_with_checks([Standardizer()])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def table():
    rng = np.random.default_rng(2)
    return rng.standard_normal((50, 4)) * [1, 0, 5, 1e-3] + [1e3, 3, 0, 1]


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
def test_a_table_is_standardised_as_scikit_learn_does(with_mean, with_std):
    x = table()
    new = x[:7] + 0.5
    ours = Standardizer(with_mean=with_mean, with_std=with_std).fit(x)
    theirs = StandardScaler(with_mean=with_mean, with_std=with_std).fit(x)
    np.testing.assert_allclose(ours.transform(new), theirs.transform(new), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.inverse_transform(ours.transform(new)), new, rtol=1e-12)
    assert ours.n_samples_seen_ == theirs.n_samples_seen_ == 50
    np.testing.assert_allclose(ours.scale_, StandardScaler().fit(x).scale_, rtol=1e-9)


def test_gaps_count_for_nothing_and_stay():
    x = table()
    x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
    ours, theirs = Standardizer().fit(x), StandardScaler().fit(x)
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(ours.n_samples_seen_, theirs.n_samples_seen_)


def test_sample_weights():
    x, w = table(), np.random.default_rng(0).integers(0, 4, 50)
    ours, theirs = Standardizer().fit(x, sample_weight=w), StandardScaler().fit(x, sample_weight=w)
    np.testing.assert_allclose(ours.var_, theirs.var_, rtol=1e-9, atol=1e-12)
    assert ours.n_samples_seen_ == w.sum()
    repeated = Standardizer().fit(np.repeat(x, w, axis=0))
    np.testing.assert_allclose(ours.var_, repeated.var_, rtol=1e-12)


def test_batches_add_up_and_fit_forgets():
    x = table()
    one = Standardizer()
    for part in np.array_split(x, 4):
        one.partial_fit(part)
    assert one.moments_.allclose(kn.moments(x, 1), rtol=1e-13)
    assert one.fit(x[:9]).moments_ == kn.moments(x[:9], 1, nan_policy="omit")
    with pytest.raises(ValueError, match="features"):
        one.partial_fit(x[:, :3])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_keep_their_channels(dtype):
    x = np.random.default_rng(1).standard_normal((6, 8, 9, 3)) + np.array([0, 100, 1000])
    x = x.astype(dtype)
    s = Standardizer(keep=-1).fit(x)
    assert_output(s.transform(x), oracle.normalize(x, 3, eps=0), x.size)
    assert_within(s.mean_, oracle.moments(x, 3).mean.ravel(), ulp(1000.0, "float64"), "mean")
    np.testing.assert_allclose(s.inverse_transform(s.transform(x)), x, rtol=1e-6 if dtype == "float32" else 1e-13, atol=1e-5)
    assert s.transform(x[:, :4]).shape == (6, 4, 9, 3)  # the size of an image is no feature
    pixels = Standardizer(keep="n h w c -> h w c").fit(x)
    assert pixels.mean_.shape == (8, 9, 3)
    with pytest.raises(ValueError, match="3 axes, but Standardizer was fitted to arrays of 4"):
        s.transform(x[0])


def test_float32_tables_with_a_large_mean_keep_their_digits():
    x = (np.random.default_rng(3).standard_normal((20_000, 2)) + 1e4).astype(np.float32)
    assert_output(Standardizer().fit(x).transform(x), oracle.normalize(x, 1, eps=0), x.size)


def test_it_stands_in_a_pipeline_and_is_cloned():
    x = table()
    assert clone(Standardizer(keep=1, constant="nan")).get_params()["constant"] == "nan"
    y = make_pipeline(Standardizer()).fit_transform(x)
    np.testing.assert_allclose(y.std(0), [1, 0, 1, 1], atol=1e-9)
    assert list(Standardizer().fit(x).get_feature_names_out()) == ["x0", "x1", "x2", "x3"]
    with pytest.raises(TypeError, match="with_mean must be True or False"):
        Standardizer(with_mean="yes").fit(x)
    with pytest.raises(ValueError, match="variance 0"):
        Standardizer(constant="error").fit(x).transform(x)
