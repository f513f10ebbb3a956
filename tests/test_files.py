"""Files as people have them: every format and oddity gives the values that were written, or one line that says why not."""

import importlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import ExitStack
from itertools import product

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.cli.main import main
from keepnorm.stats import accumulate
from keepnorm.stats.answers import load
from keepnorm.stats.options import Options
from keepnorm.stats.readers.numpy_files import open_npy, open_npz
from tests.tolerance import MOMENT_ULPS, assert_within, state, ulp


@pytest.fixture
def run(capsys):
    """Run a command; give back its exit code, stdout and stderr."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def stats(run):
    def call(*arguments, keep=-1):
        code, out, err = run("stats", *arguments, "--keep", keep, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def refused(run):
    """One line on stderr that holds these words, and exit code 2."""

    def call(*arguments, words, keep=-1):
        code, out, err = run("stats", *arguments, "--keep", keep)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        for word in words:
            assert word in err
        return err

    return call


def agree(answer, columns):
    """Mean and standard deviation of each kept cell, against float64 over the values that were written."""
    columns = [np.asarray(c, np.float64).ravel() for c in columns]
    counts = np.broadcast_to(answer["count"], len(columns))
    assert counts.tolist() == [c.size for c in columns]
    mean, std = np.array([c.mean() for c in columns]), np.array([c.std() for c in columns])
    drift = 8 * state(max(c.size for c in columns)) * np.maximum(std, np.abs(mean))
    assert_within(np.ravel(answer["mean"]), mean, MOMENT_ULPS * ulp(mean, "float32") + drift, "mean")
    assert_within(np.ravel(answer["std"]), std, MOMENT_ULPS * ulp(std, "float32") + drift, "std")


def bands(x):
    return [x[..., c] for c in range(x.shape[-1])]


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("planar", [False, True])
def test_a_tiff_has_all_its_bits_and_bands(dtype, planar, rng, tmp_path, stats):
    tifffile = pytest.importorskip("tifffile")
    x = (rng.random((6, 5, 4)) * 200 - (50 if dtype[0] != "u" else 0)).astype(dtype) * np.array(
        1 if dtype[1] == "1" else 9, dtype
    )
    stored, config = (np.moveaxis(x, -1, 0), "separate") if planar else (x, "contig")
    tifffile.imwrite(tmp_path / "x.tif", stored, planarconfig=config, photometric="minisblack")
    agree(stats(tmp_path / "x.tif"), bands(x))


def test_every_page_and_frame_counts(tmp_path, stats):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("tifffile")
    frames = [image.fromarray(np.full((10, 10), v, np.uint8)) for v in (10, 20, 90)]
    for name in ("s.tiff", "s.gif", "s.png", "s.webp"):
        more = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **more)
        answer = stats(tmp_path / name)
        assert np.ravel(answer["mean"])[0] == 40, name
        assert (answer["count"], answer["items"]) == (300, 3), name


def test_a_16_bit_colour_png_keeps_its_bits(tmp_path, stats):
    codecs = pytest.importorskip("imagecodecs")
    x = np.full((8, 8, 3), (1000, 2000, 3000), np.uint16)
    (tmp_path / "x.png").write_bytes(codecs.png_encode(x))
    agree(stats(tmp_path / "x.png"), bands(x))


def test_depths_do_not_mix_silently(tmp_path, stats, refused):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "a.png")
    image.fromarray(np.full((4, 4), 0, np.uint16)).save(tmp_path / "b.png")
    refused(tmp_path, words=("b.png", "uint16", "--scale auto"))
    assert stats(tmp_path, "--scale", "auto")["mean"] == [0.5]


def test_modes_do_not_mix_silently(tmp_path, stats, refused):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((4, 4, 3), 60, np.uint8)).save(tmp_path / "b.png")
    image.fromarray(np.full((4, 4), 30, np.uint8)).save(tmp_path / "a.png")
    refused(tmp_path, words=("b.png", "3 channels (RGB)", "1 channel (L)", "--mode RGB"))
    assert stats(tmp_path, "--mode", "RGB")["mean"] == [45, 45, 45]
    assert stats(tmp_path, "--mode", "L")["mean"] == [45]


def test_what_is_bad_is_skipped_and_counted(tmp_path, run, stats, refused):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((4, 4), 30, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (tmp_path / "._a.png").write_bytes(b"x" * 40)
    refused(tmp_path, words=("bad.jpg",))
    answer = stats(tmp_path, "--on-error", "skip")
    assert (answer["mean"], answer["files"], list(answer["skipped"])) == ([30], 1, [str(tmp_path / "bad.jpg")])
    assert "bad.jpg" in run("stats", tmp_path, "--keep", "-1", "--on-error", "report")[2]


def test_linked_folders_are_read_and_circles_end(tmp_path, stats):
    for name, v in (("real", 200), ("set/a", 10)):
        (tmp_path / name).mkdir(parents=True)
        np.save(tmp_path / name / "i.npy", np.full((4, 1), v))
    (tmp_path / "set/b").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "set/c").symlink_to(tmp_path / "set", target_is_directory=True)
    assert stats(tmp_path / "set")["mean"] == [105]
    assert stats(tmp_path / "set", "--no-follow-links")["mean"] == [10]


def test_a_folder_of_arrays_is_one_data_set(tmp_path, stats):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.full((3, 2), i, np.float32))
    answer = stats(tmp_path)
    assert (answer["mean"], answer["files"], answer["items"], answer["values"]) == ([1.5, 1.5], 4, 12, 24)


def test_an_upper_case_name_is_the_same_format(tmp_path, stats):
    np.savez(tmp_path / "up.npz", x=np.ones((2, 2)))
    (tmp_path / "up.npz").rename(tmp_path / "UP.NPZ")
    assert stats(f"{tmp_path / 'UP.NPZ'}:x")["mean"] == [1, 1]


def test_gaps_of_a_geotiff_take_no_part(tmp_path, stats):
    tifffile = pytest.importorskip("tifffile")
    x = np.array([[500, -9999], [400, 600]], np.int16)
    tifffile.imwrite(tmp_path / "x.tif", x, extratags=[(42113, "s", 0, "-9999", True)])
    agree(stats(tmp_path / "x.tif"), [[500, 400, 600]])
    agree(stats(tmp_path / "x.tif", "--nodata", "none"), [x])
    agree(stats(tmp_path / "x.tif", "--nodata", "500"), [[-9999, 400, 600]])


@pytest.mark.parametrize("form", ["nc", "zarr2", "zarr3"])
def test_packing_and_gaps_follow_the_cf_conventions(form, rng, tmp_path, stats):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr" if form != "nc" else "netCDF4")
    raw = rng.integers(-2000, 2000, (20, 6, 5)).astype(np.int16)
    raw[0, 0] = -32768
    data = xarray.Dataset({"tas": (("time", "lat", "lon"), raw)})
    data.tas.attrs |= {"scale_factor": 0.01, "add_offset": 280.0}
    if form == "nc":
        data.tas.attrs["_FillValue"] = np.int16(-32768)
        data.to_netcdf(tmp_path / "t.nc")
        path = tmp_path / "t.nc"
    else:
        data = xarray.decode_cf(data.assign(tas=data.tas.assign_attrs(_FillValue=np.int16(-32768))))
        path = tmp_path / "t.zarr"
        data.to_zarr(path, zarr_format=int(form[-1]), consolidated=False)
    real = np.where(raw == -32768, np.nan, raw * 0.01 + 280.0)
    agree(stats(path, keep="lat"), [v[~np.isnan(v)] for v in np.moveaxis(real, 1, 0)])
    agree(stats(path, keep="1"), [v[~np.isnan(v)] for v in np.moveaxis(real, 1, 0)])


def test_fits_nifti_and_hdf5_are_scaled_as_they_say(tmp_path, stats):
    fits = pytest.importorskip("astropy.io.fits")
    nibabel = pytest.importorskip("nibabel")
    h5py = pytest.importorskip("h5py")
    x = np.arange(24, dtype=np.uint16).reshape(2, 3, 4) + 40000
    fits.PrimaryHDU(x).writeto(tmp_path / "x.fits")
    voxels = nibabel.Nifti1Image(x.astype(np.int32), np.eye(4))
    voxels.header.set_slope_inter(2, 5)
    nibabel.save(voxels, tmp_path / "x.nii.gz")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["deep/x"] = x
    agree(stats(tmp_path / "x.fits", keep=0), x)
    agree(stats(tmp_path / "x.h5", keep=0), x)
    agree(stats(tmp_path / "x.nii.gz", keep=0), np.asarray(nibabel.load(tmp_path / "x.nii.gz").dataobj))


@pytest.mark.parametrize("form", ["parquet", "feather", "csv"])
def test_columns_of_tables_leave_out_nulls(form, rng, tmp_path, stats, refused):
    pa = pytest.importorskip("pyarrow")
    writers = {"parquet": ("parquet", "write_table"), "feather": ("feather", "write_feather"), "csv": ("csv", "write_csv")}

    a, b = rng.standard_normal(1000) + 1e6, rng.standard_normal(1000)
    there = np.arange(1000) % 7 != 0
    table = pa.table({"a": a, "b": pa.array([v if t else None for v, t in zip(b, there, strict=True)])})
    write = getattr(importlib.import_module(f"pyarrow.{writers[form][0]}"), writers[form][1])
    write(table, tmp_path / f"t.{form}")
    agree(stats(tmp_path / f"t.{form}"), [a, b[there]])
    agree(stats(f"{tmp_path}/t.{form}:b"), [b[there]])
    write(table.append_column("s", pa.array(["x"] * 1000)), tmp_path / f"t.{form}")
    refused(tmp_path / f"t.{form}", words=("column s",))


def test_a_tar_of_pictures_is_a_folder_of_them(tmp_path, stats):
    image = pytest.importorskip("PIL.Image")
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for v in (10, 30):
            data = io.BytesIO()
            image.fromarray(np.full((4, 4, 3), v, np.uint8)).save(data, "PNG")
            entry = tarfile.TarInfo(f"{v}.png")
            entry.size = len(data.getvalue())
            archive.addfile(entry, io.BytesIO(data.getvalue()))
            archive.addfile(tarfile.TarInfo(f"{v}.cls"))
    answer = stats(tmp_path / "shard.tar")
    assert (answer["mean"], answer["items"]) == ([20, 20, 20], 2)


def test_a_pattern_and_a_list_name_files(tmp_path, stats, monkeypatch):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((2, 1), i))
    assert stats(tmp_path / "[01].npy")["mean"] == [0.5]
    (tmp_path / "list").write_text(f"{tmp_path}/1.npy\n{tmp_path}/2.npy\n")
    assert stats("--files-from", tmp_path / "list")["mean"] == [1.5]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/2.npy\n"))
    assert stats("--files-from", "-")["mean"] == [2]


def test_nan_is_propagated_omitted_or_refused(tmp_path, stats, refused):
    np.save(tmp_path / "x.npy", np.array([[1.0, np.nan], [3.0, 4.0]]))
    assert stats(tmp_path / "x.npy")["mean"] == [2, None]
    assert stats(tmp_path / "x.npy", "--nan", "omit")["mean"] == [2, 4]
    refused(tmp_path / "x.npy", "--nan", "raise", words=("x.npy", "NaN"))


def test_the_average_of_each_items_own_deviation_stands_beside_the_pooled_one(rng, tmp_path, stats):
    image = pytest.importorskip("PIL.Image")
    x = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    for i, picture in enumerate(x):
        image.fromarray(picture).save(tmp_path / f"{i}.png")
    np.save(tmp_path / "x.npy", x)
    own = x.astype(np.float64).std((1, 2)).mean(0)
    for answer in (stats(tmp_path / "*.png", "--per-item", "--min-max"), stats(tmp_path / "x.npy", "--per-item", "--min-max")):
        agree(answer, bands(x))
        assert_within(answer["std_per_item"], own, 2 * ulp(own, "float32"), "per item")
        assert (answer["min"], answer["max"]) == (x.min((0, 1, 2)).tolist(), x.max((0, 1, 2)).tolist())


def test_json_and_saved_states_come_back_to_the_last_bit(rng, tmp_path, run, stats):
    x = rng.standard_normal((7, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    taken = kn.Moments.from_dict(stats(tmp_path / "x.npy"))
    np.testing.assert_array_equal(taken.m2, kn.stats(tmp_path / "x.npy", -1).m2)
    x[0, 0] = np.inf
    np.save(tmp_path / "x.npy", x)
    answer = stats(tmp_path / "x.npy", "--save", tmp_path / "s.npz")
    (tmp_path / "s.json").write_text(json.dumps(answer))
    expected = kn.stats(tmp_path / "x.npy", -1)
    for saved, name in product(("s.json", "s.npz"), ("shift", "delta", "m2")):
        np.testing.assert_array_equal(getattr(load(str(tmp_path / saved)), name), getattr(expected, name))
    code, out, err = run("merge", tmp_path / "s.npz", tmp_path / "s.json", "--json")
    assert code == 0, err
    assert json.loads(out)["count"] == 14
    assert json.loads(out)["mean"][1:] == answer["mean"][1:]


def test_the_line_to_paste_is_python(rng, tmp_path, run):
    np.save(tmp_path / "x.npy", rng.random((5, 4, 3)))
    for form in ("torchvision", "albumentations", "keras", "numpy", "xarray"):
        code, out, _ = run("stats", tmp_path / "x.npy", "--keep", "-1", "--as", form)
        assert code == 0
        compile(out, form, "exec")
    for form, lines in (("--yaml", "mean: ["), ("--csv", "axis2,count,mean,var,std")):
        assert lines in run("stats", tmp_path / "x.npy", "--keep", "-1", form)[1]


def test_pipes_and_devices_are_refused_before_they_are_opened(tmp_path, refused):
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    refused(tmp_path / "pipe.npy", words=("pipe.npy", "a pipe"))
    refused(tmp_path / "zero.npy", words=("zero.npy", "a device"))


def test_a_name_cannot_command_the_terminal(tmp_path, refused):
    (tmp_path / "a\x1b[31m\nb.npy").write_bytes(b"x")
    assert "\x1b" not in refused(tmp_path / "a\x1b[31m\nb.npy", words=("\\x1b[31m",))


def test_unknown_names_are_refused_never_guessed(tmp_path, refused):
    (tmp_path / "x.grib").write_bytes(b"GRIB")
    refused(tmp_path / "x.grib", words=("x.grib", "*.grib"))
    (tmp_path / "x.fits").write_bytes(b"SIMPLE  =                    T".ljust(2880))
    refused(tmp_path / "x.fits", words=("x.fits",))


def test_a_file_that_is_cut_while_it_is_read_is_an_error_not_a_bus_error(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1000, 100)))
    with ExitStack() as cleanup:
        (source,) = open_npy(tmp_path / "x.npy", "", Options(), cleanup)
        os.truncate(tmp_path / "x.npy", 4096)
        with pytest.raises(ValueError, match="cut off while it was read"):
            source.read((slice(0, 1000), slice(0, 100)))


def test_damaged_headers_and_archives_are_one_line(rng, tmp_path):
    """2,000 mutations of each: every one is read, or refused by an error that the command takes."""
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    np.savez_compressed(tmp_path / "x.npz", x=np.arange(6.0).reshape(3, 2))
    for name, reader in (("x.npy", open_npy), ("x.npz", open_npz)):
        good = (tmp_path / name).read_bytes()
        refusals = 0
        for _ in range(2000):
            bad = bytearray(good)
            for place in rng.integers(0, min(len(bad), 400), rng.integers(1, 4)):
                bad[place] = rng.integers(0, 256)
            (tmp_path / f"m{name}").write_bytes(bad)
            with ExitStack() as cleanup:
                try:
                    (source,) = reader(tmp_path / f"m{name}", "", Options(), cleanup)
                    source.read(tuple(slice(0, n) for n in source.shape))
                except (ValueError, TypeError, OSError) as error:
                    refusals += str(error).startswith(f"{tmp_path}/m{name}")
        assert refusals > 500


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2**80, 0), "<f8"), ((2**48, 0), "<f8"), ((2**40,), "<f8"), ((-1,), "<f8"), ((3,), "|V0"), ((3,), "|V2")],
)
def test_a_header_cannot_promise_what_is_not_there(shape, dtype, tmp_path, refused):
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"\0" * 64)
    refused(tmp_path / "x.npy", words=("x.npy",), keep=0)


def test_an_archive_cannot_unpack_more_than_it_promises(tmp_path, refused):
    data = io.BytesIO()
    np.save(data, np.ones(1))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", data.getvalue() + b"\0" * 2**26)
    refused(tmp_path / "x.npz", words=("x.npz", "more bytes"), keep=0)


def test_a_zarr_of_nothing_is_refused(tmp_path, refused):
    pytest.importorskip("zarr")
    (tmp_path / "x.zarr").mkdir()
    meta = {"zarr_format": 2, "shape": [2**50], "chunks": [2**20], "dtype": "<f4", "compressor": None, "fill_value": 0}
    (tmp_path / "x.zarr" / ".zarray").write_text(json.dumps(meta | {"order": "C", "filters": None}))
    refused(tmp_path / "x.zarr", words=("x.zarr", "the store holds"), keep="")
    for wrong in ({"chunks": [0]}, {"shape": "x"}):
        (tmp_path / "x.zarr" / ".zarray").write_text(json.dumps(meta | {"order": "C", "filters": None} | wrong))
        refused(tmp_path / "x.zarr", words=("x.zarr",), keep="")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, refused):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((100, 100), np.uint8)).save(tmp_path / "x.png")
    refused(tmp_path / "x.png", "--max-pixels", "9999", words=("x.png", "--max-pixels"))


def test_a_picture_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path):
    from keepnorm.atomic import written

    (tmp_path / "x.png").write_text("good")

    def draw():
        with written(tmp_path / "x.png") as beside:
            beside.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        draw()
    assert (tmp_path / "x.png").read_text() == "good"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("keep", [(1, 2), (0, 1), (0, 1, 2), (2,), (0,), ()])
@pytest.mark.parametrize("order", ["C", "F"])
def test_kept_cells_that_do_not_fit_the_memory_are_cut(keep, order, rng, tmp_path, monkeypatch):

    monkeypatch.setattr(accumulate, "STATE_BYTES", 2**20)
    x = rng.standard_normal((6, 50, 7)).astype(np.float32)
    np.save(tmp_path / "x.npy", np.asarray(x, order=order))
    found = kn.stats(tmp_path / "x.npy", keep, memory=2**26)
    over = tuple(a for a in range(3) if a not in keep)
    exact = x.astype(np.float64).mean(over)
    assert found.count == x.size // max(exact.size, 1)
    assert_within(found.mean, exact, MOMENT_ULPS * ulp(exact, "float32") + 8 * state(x.size), "mean")


def test_a_run_that_is_stopped_anywhere_goes_on_with_the_same_bits(rng, tmp_path, monkeypatch):
    from keepnorm.stats.summary import Watch, summarize

    monkeypatch.setattr(accumulate, "BOX_BYTES", 2**13)
    paths = []
    for i in range(4):
        paths.append(str(tmp_path / f"{i}.npy"))
        np.save(paths[-1], rng.standard_normal((90, 52)).astype(np.float32))
    options = {"checkpoint": str(tmp_path / "c"), "min_max": True}
    whole = summarize(paths, 1, {"min_max": True})
    stops = 0
    for after in (1, 2, 1, 3, 1, 1, 99):
        steps = []
        watch = Watch(step=lambda s=steps: s.append(1), stopped=lambda s=steps, n=after: len(s) >= n)
        found = summarize(paths, 1, options, watch)
        stops += not found.complete
        if found.complete:
            break
    assert stops > 3
    assert found.complete
    for name in ("count", "shift", "delta", "m2"):
        np.testing.assert_array_equal(getattr(found.moments, name), getattr(whole.moments, name))
    np.testing.assert_array_equal(found.low, whole.low)
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_of_other_options_is_refused(rng, tmp_path):
    from keepnorm.stats.summary import Watch, summarize

    np.save(tmp_path / "x.npy", rng.standard_normal((4, 3)))
    paths = [str(tmp_path / "x.npy"), str(tmp_path / "x.npy")]
    options = {"checkpoint": str(tmp_path / "c")}
    assert not summarize(paths, 1, options, Watch(stopped=iter([False, True, True]).__next__)).complete
    with pytest.raises(ValueError, match="options"):
        kn.stats(paths, 1, scale=2.0, **options)


def test_python_and_the_command_give_the_same(rng, tmp_path, stats):
    np.save(tmp_path / "x.npy", rng.standard_normal((9, 3)))
    assert stats(tmp_path / "x.npy")["mean"] == kn.stats(tmp_path / "x.npy", -1).mean.tolist()
    with pytest.raises(TypeError, match="no option colour"):
        kn.stats(tmp_path / "x.npy", -1, colour="red")


@pytest.mark.parametrize("keep", ["1,2", "0,2", "0,1,2"])
def test_an_answer_that_does_not_fit_the_memory_is_written_slab_by_slab(keep, rng, tmp_path, run, monkeypatch):
    monkeypatch.setattr(accumulate, "STATE_BYTES", 2**20)
    np.save(tmp_path / "x.npy", rng.standard_normal((6, 50, 7)))
    small = ("stats", tmp_path / "x.npy", "--keep", keep, "--memory", "64MB")
    code, _, err = run(*small)
    assert (code, "--save FILE.npz" in err, err.count("\n")) == (2, True, 1)
    assert run(*small, "--save", tmp_path / "s.npz")[0] == 0
    whole = kn.stats(tmp_path / "x.npy", tuple(map(int, keep.split(","))))
    found = load(str(tmp_path / "s.npz"))
    assert (found.keep, found.ndim) == (whole.keep, whole.ndim)
    for name in ("mean", "std"):
        exact = np.asarray(getattr(whole, name))
        assert_within(getattr(found, name), exact, ulp(exact, "float64") * 64, name)


COMMAND = [sys.executable, "-m", "keepnorm", "stats"]


@pytest.fixture
def interruptible():
    """SIGINT as from a terminal: a shell has it ignored in what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_prints_what_was_read_and_the_next_run_goes_on(number, code, tmp_path, run, monkeypatch):
    """The signal comes after the first of many pieces."""
    monkeypatch.setattr(accumulate, "BOX_BYTES", 2**10)
    np.save(tmp_path / "a.npy", np.ones((999, 2)))
    work = accumulate.Run.work

    def interrupted(self, task):
        if task.step == 3:
            signal.raise_signal(number) if threading.current_thread() is threading.main_thread() else os.kill(
                os.getpid(), number
            )
        return work(self, task)

    monkeypatch.setattr(accumulate.Run, "work", interrupted)
    arguments = ("stats", tmp_path / "a.npy", "--keep", 1, "--json", "--checkpoint", tmp_path / "c")
    found = run(*arguments)
    assert found[0] == code
    assert not json.loads(found[1])["complete"]
    assert 0 < json.loads(found[1])["values"] < 1998
    assert "goes on" in found[2]
    monkeypatch.setattr(accumulate.Run, "work", work)
    again = json.loads(run(*arguments)[1])
    assert (again["complete"], again["values"], again["mean"]) == (True, 1998, [1, 1])


@pytest.mark.parametrize(("shell", "code"), [("2>&-", 0), (">&-", 2), ("| head -1", 0), ("> /dev/full", 2)])
def test_closed_and_full_streams_lose_no_answer_silently(shell, code, tmp_path):
    if "full" in shell and not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full here")
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(3, 2))
    command = f"{shlex.join([*COMMAND, str(tmp_path / 'a.npy')])} --keep -1 {shell}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("error" in done.stderr) == bool(code)
