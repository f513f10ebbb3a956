"""What an error advises runs: the weight, the mask or the data that did not fit are taken as the message says."""

import re

import numpy as np
import pytest

import keepnorm as kn
from tests import oracle, tolerance

X = np.arange(240, dtype=np.float32).reshape(2, 3, 5, 8) % 7
W = np.arange(1, 9, dtype=np.float32)


def said(call):
    """The error's message, short as it should be, and what it says to say."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    text = str(caught.value)
    assert len(text) < 600
    return text.rpartition("; say ")[2].split(" or ") if "; say " in text else []


@pytest.mark.parametrize(
    ("keep", "sizes", "weight", "advice"),
    [
        ("n h w (g c) -> n g", {"g": 2}, W, ['affine="g c"']),
        ("n h w (g c) -> g", {"c": 4}, W, ['affine="g c"']),
        ("n h w (g c) -> n", {"g": 2}, np.ones((2, 4), np.float32), ['affine="n c"', 'affine="g c"']),
        ("n h w c -> n", {}, W, ['affine="c"']),
        ("n ... -> n", {}, W, ["affine=3"]),
        ((0, 3), {}, W, ["affine=3"]),
        ((0, 1), {}, W, ["affine=3"]),
        (0, {}, np.ones((5, 8), np.float32), ["affine=(2, 3)"]),
        (3, {}, W.reshape(1, 8, 1, 1), ["weight.reshape(8,)"]),
        (0, {}, np.ones(4, np.float32), []),
    ],
)
def test_a_weight_on_other_axes_is_told_its_affine(keep, sizes, weight, advice):
    assert said(lambda: kn.normalize(X, keep, weight, **sizes)) == advice
    assert said(lambda: kn.normalize_vjp(X, keep, weight, **sizes)) == advice
    for spelling in advice:
        if spelling.startswith("affine="):
            y = kn.normalize(X, keep, weight, affine=eval(spelling.removeprefix("affine=")), **sizes)
            assert y.shape == X.shape
        else:
            kn.normalize(X, keep, eval(spelling), **sizes)


def test_the_axes_that_are_kept_come_first():
    cube = np.ones((2, 8, 8, 8), np.float32)
    assert said(lambda: kn.normalize(cube, "n h w (g c) -> n g", W, g=2)) == ['affine="g c"']


def test_a_weight_that_could_be_on_two_axes_is_told_both():
    square = np.ones((2, 8, 8, 3), np.float32)
    assert said(lambda: kn.normalize(square, 0, W)) == ["affine=1", "affine=2"]


def test_a_transposed_weight_is_told():
    with pytest.raises(ValueError, match=r"in the order of x: say weight\.T"):
        kn.normalize(X, (2, 3), np.ones((8, 5), np.float32))


def test_a_function_without_affine_axes_advises_none():
    assert said(lambda: kn.layer_norm(X, W[:3], axes=-1)) == []
    assert said(lambda: kn.affine(X, W, keep=1)) == []
    assert said(lambda: kn.batch_norm(X, W, channel=1)) == []


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((2, 3), "where[..., None, None]"),
        ((2, 3, 5), "where[..., None]"),
        ((2, 5, 8), "where[:, None]"),
        ((3, 5), "where[None, ..., None]"),
        ((2, 5), "where[:, None, :, None]"),
        ((2, 5, 8, 3), "numpy.moveaxis(where, -1, 1)"),
        ((2, 8, 3, 5), "numpy.moveaxis(where, 1, -1)"),
        ((2, 3, 5, 8, 1), "where.reshape(2, 3, 5, 8)"),
        ((7,), None),
        ((2, 3, 5, 9), None),
    ],
)
def test_a_mask_that_does_not_broadcast_is_told_how(rng, shape, advice):
    where = rng.random(shape) < 0.7
    for call in (kn.moments, kn.normalize, kn.normalize_vjp):
        got = said(lambda call=call: call(X, 1, where=where))
        assert [a.split(", in PyTorch")[0] for a in got] == (
            [] if advice is None else [advice.replace("None, ...", "None, :, :")]
        )
    if advice is not None:
        kn.moments(X, 1, where=eval(got[0].split(", in PyTorch")[0], {"where": where, "numpy": np}))


def test_a_mask_of_batch_and_time_fits_with_a_new_axis(rng):
    x, where = rng.standard_normal((4, 6, 3)), rng.random((4, 6)) < 0.5
    assert said(lambda: kn.moments(x, -1, where=where)) == ["where[..., None]"]
    tolerance.assert_moments(
        kn.moments(x, -1, where=where[..., None]), oracle.moments(x, -1, where[..., None]), np.float64, "with an axis"
    )


def test_many_axes_are_not_searched():
    many = np.ones((1,) * 20 + (2,) * 12, np.float32)
    assert said(lambda: kn.normalize(many, 31, np.ones((2,) * 6 + (3,), np.float32))) == []
    assert said(lambda: kn.normalize(many, 31, where=np.ones((3,) + (2,) * 12, bool))) == []


def stand_in(library, **members):
    """An object of a library that need not be installed."""
    return type("Thing", (), {"__module__": f"{library}.inner", "shape": (4, 3), "dtype": np.dtype("f4")} | members)()


FILES = ("h5py", "h5netcdf", "zarr", "netCDF4", "nibabel", "tensorstore")


@pytest.mark.parametrize("library", FILES)
@pytest.mark.parametrize("name", ["moments", "normalize"])
def test_what_lies_in_a_file_is_gone_through_and_not_loaded(library, name):
    with pytest.raises(TypeError, match=r"seen = keepnorm\.Accumulator\(keep\), seen\.update\(") as caught:
        getattr(kn, name)(stand_in(library), 1)
    text = str(caught.value)
    assert len(text) < 600
    assert not re.search(r"asarray\(x\)|x\[\.\.\.\]|x\[:\]|to_numpy\(\)|get_fdata", text)
    lazy = {"netCDF4": "xarray.open_dataset", "zarr": "dask.array.from_zarr", "tensorstore": ".read().result()"}
    assert lazy.get(library, "dask.array.from_array") in text


@pytest.mark.parametrize(
    ("library", "advice"),
    [
        ("pandas", "chunksize"),
        ("polars", "iter_slices"),
        ("pyarrow", "to_batches"),
        ("PIL", "keepnorm stats"),
        ("scipy", "x.toarray()"),
        ("tensorflow", "x.numpy()"),
    ],
)
def test_other_libraries_are_told_what_to_pass(library, advice):
    with pytest.raises(TypeError, match=re.escape(advice)) as caught:
        kn.normalize(stand_in(library), 1)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "x", [[np.ones((2, 3)), np.ones((1, 3))], iter([np.ones((2, 3))]), (1.0, 2.0)], ids=["list", "iterator", "tuple"]
)
def test_batches_are_told_of_the_accumulator(x):
    with pytest.raises(TypeError, match=r"seen\.update\(batch\)"):
        kn.moments(x, 1)


def test_the_advice_for_hdf5_gives_the_moments(tmp_path, rng):
    h5py = pytest.importorskip("h5py")
    values = rng.standard_normal((200, 3)).astype(np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        x = file.create_dataset("x", data=values)
        with pytest.raises(TypeError, match=r"x\[i : i \+ 64\]"):
            kn.moments(x, 1)
        seen = kn.Accumulator(1)
        for i in range(0, len(x), 64):
            seen.update(x[i : i + 64])
    tolerance.assert_moments(seen.moments, oracle.moments(values, 1), np.float32, "in pieces")


def test_the_advice_for_zarr_gives_the_moments(tmp_path, rng):
    zarr = pytest.importorskip("zarr")
    values = rng.standard_normal((200, 3)).astype(np.float32)
    x = zarr.open(str(tmp_path / "x.zarr"), mode="w", shape=values.shape, chunks=(64, 3), dtype="f4")
    x[...] = values
    with pytest.raises(TypeError, match="keepnorm stats"):
        kn.moments(x, 1)
    seen = kn.Accumulator(1)
    for i in range(0, x.shape[0], 64):
        seen.update(x[i : i + 64])
    tolerance.assert_moments(seen.moments, oracle.moments(values, 1), np.float32, "in pieces")
