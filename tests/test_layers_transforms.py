"""The transform for images gives torchvision's numbers, in every library and layout; the accessor gives the functions'."""

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.layers.transforms import Normalize
from tests.backends import kind
from tests.tolerance import assert_output

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def exact(x, axis):
    shape = [3 if a == axis % x.ndim else 1 for a in range(x.ndim)]
    return (x.astype("f8") - np.reshape(MEAN, shape)) / np.reshape(STD, shape)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "dask", "xarray"])
@pytest.mark.parametrize(("shape", "channel"), [((3, 5, 4), -3), ((2, 3, 5, 4), -3), ((5, 4, 3), -1), ((2, 5, 4, 3), -1)])
def test_images_of_any_library_and_layout(name, shape, channel):
    k = kind(name)
    x = np.random.default_rng(0).random(shape).astype("f4")
    transform = Normalize(MEAN, STD, channel=channel)
    y = transform(k.make(x))
    assert isinstance(y, k.type)
    assert_output(k.read(y), exact(x, channel), x.size)
    np.testing.assert_allclose(k.read(transform.inverse(y)), x, rtol=1e-6, atol=1e-7)


def test_bytes_are_scaled():
    x = np.random.default_rng(0).integers(0, 256, (7, 6, 3)).astype("u1")
    assert_output(Normalize(MEAN, STD, channel=-1, scale=255)(x), exact(x / 255, -1), x.size)


def test_moments_take_the_place_of_lists(tmp_path):
    x = np.random.default_rng(0).random((9, 6, 5, 3)).astype("f4")
    kn.moments(x, -1).save(tmp_path / "seen.npz")
    seen = kn.Moments.load(tmp_path / "seen.npz")
    first = np.moveaxis(x, -1, 1)
    np.testing.assert_array_equal(Normalize(seen)(first), kn.normalize(first, 1, eps=0))
    assert repr(Normalize([1], [2])) == "Normalize(mean=[1.0], std=[2.0], channel=-3, scale=1.0)"


def test_a_deviation_of_0_leaves_the_differences():
    transform = Normalize([0.5, 1.0], [0.0, 2.0], channel=-1)
    x = np.array([[0.75, 5.0]])
    np.testing.assert_array_equal(transform(x), [[0.25, 2.0]])
    np.testing.assert_array_equal(transform.inverse(transform(x)), x)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ({"mean": MEAN}, TypeError, "std is missing"),
        ({"mean": kn.moments(np.ones((2, 3)), 1), "std": STD}, TypeError, "got both"),
        ({"mean": kn.moments(np.ones((2, 3)), (0, 1))}, ValueError, "one kept axis"),
        ({"mean": MEAN, "std": STD, "channel": True}, TypeError, "channel must be an int"),
        ({"mean": MEAN, "std": STD, "scale": 0}, ValueError, "scale must be a positive number"),
        ({"mean": MEAN, "std": [-1, 1, 1]}, ValueError, "std must be at least 0"),
        ({"mean": MEAN, "std": [1]}, ValueError, "must have one shape"),
    ],
)
def test_wrong_words_are_named(words, error, says):
    with pytest.raises(error, match=says):
        Normalize(**words)


def test_an_image_of_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"moments have shape \(3,\)"):
        Normalize(MEAN, STD)(np.ones((4, 5, 5)))
    with pytest.raises(TypeError, match="image must be an array"):
        Normalize(MEAN, STD)("photo.jpg")


def test_the_accessor_of_xarray():
    xr = pytest.importorskip("xarray")
    import keepnorm.layers.xarray  # noqa: F401

    rng = np.random.default_rng(0)
    x = xr.DataArray(rng.random((6, 4)), dims=("time", "lat"), coords={"lat": [1, 2, 3, 4]})
    xr.testing.assert_identical(x.kn.normalize("lat", eps=0.1), kn.normalize(x, "lat", eps=0.1))
    assert x.kn.moments("lat", nan_policy="omit").allclose(kn.moments(x, "lat"), rtol=1e-14)
    assert "DataArray" not in repr(kn.moments(x, "lat"))
    xr.testing.assert_allclose(x.kn.anomaly("lat"), x - x.mean("time"))
    assert x.kn.anomaly("lat").dims == x.dims
