"""The command line: right answers from every kind of file, bounded memory, and one line on stderr for what cannot be read."""

import json
import sys
from contextlib import ExitStack

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.cli.main import main
from keepnorm.stats import accumulate
from keepnorm.stats.options import Options
from keepnorm.stats.readers.numpy_files import open_npy


@pytest.fixture
def x(rng):
    return (rng.standard_normal((9, 5, 4, 3)) * 3 + 50).astype(np.float32)


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
    def call(*arguments):
        code, out, err = run("stats", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def save_zarr(path, x):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(path), shape=x.shape, chunks=(2, 3, 4, 2), dtype=x.dtype)[:] = x


def save_fortran(path, x):
    np.save(path, np.asfortranarray(x))


FILES = {
    "c.npy": np.save,
    "f.npy": save_fortran,
    "one.npz": lambda path, x: np.savez(path, x=x),
    "packed.npz": lambda path, x: np.savez_compressed(path, x=x),
    "chunks.zarr": save_zarr,
}


def agree(answer, x, keep):
    """JSON holds the public answer; pieces may differ from the whole in the last place."""
    expected = kn.moments(x, keep)
    assert (answer["count"], answer["keep"]) == (expected.count, list(expected.keep))
    for key in ("mean", "var", "std"):
        np.testing.assert_allclose(answer[key], getattr(expected, key), rtol=2e-7)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [-1, 0, (1, 3), (0, 1, 2, 3), ()])
@pytest.mark.parametrize("box_bytes", [2**25, 100])
def test_every_format_gives_the_moments_of_the_array(name, keep, box_bytes, x, tmp_path, stats, monkeypatch):
    monkeypatch.setattr(accumulate, "BOX_BYTES", box_bytes)
    FILES[name](tmp_path / name, x)
    text = ",".join(map(str, keep)) if isinstance(keep, tuple) else keep
    agree(stats(tmp_path / name, "--keep", text), x, keep)


def test_small_boxes_are_several(x, tmp_path, monkeypatch):
    """Otherwise the test above proves nothing about pieces."""
    monkeypatch.setattr(accumulate, "BOX_BYTES", 100)
    np.save(tmp_path / "x.npy", x)
    with ExitStack() as cleanup:
        run = accumulate.Run(open_npy(tmp_path / "x.npy", "", Options(), cleanup), -1, Options())
        boxes = [run.sources[0].read(task.box)[0] for task in run.tasks()]
    assert len(boxes) == run.steps > 10
    assert max(box.nbytes for box in boxes) <= 100
    assert sum(box.size for box in boxes) == x.size


def test_several_files_are_one_data_set(x, tmp_path, stats):
    np.save(tmp_path / "a.npy", x[:4])
    np.save(tmp_path / "b.npy", x[4:])
    agree(stats(tmp_path / "a.npy", tmp_path / "b.npy", "--keep", "n h w c -> c"), x, -1)


def test_negative_axes_and_no_axes_can_be_written(x, tmp_path, stats):
    np.save(tmp_path / "x.npy", x)
    agree(stats(tmp_path / "x.npy", "--keep", "-2,-1"), x, (-2, -1))
    agree(stats(tmp_path / "x.npy", "--keep", ""), x, ())


def test_images_of_different_sizes_are_one_data_set(rng, tmp_path, stats):
    image = pytest.importorskip("PIL.Image")
    pixels = []
    for i in range(3):
        folder = tmp_path / "photos" / str(i)
        folder.mkdir(parents=True)
        pixels.append(rng.integers(0, 256, (5 + i, 4, 3), dtype=np.uint8))
        image.fromarray(pixels[-1]).save(folder / "photo.png")
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    answer = stats(tmp_path / "photos", "--keep", "n h w c -> c")
    every = np.concatenate([p.reshape(-1, 3) for p in pixels]).astype(np.float64)
    assert (answer["count"], answer["keep"]) == (len(every), [3])
    np.testing.assert_allclose(answer["mean"], every.mean(0), rtol=1e-7)
    np.testing.assert_allclose(answer["var"], every.var(0), rtol=2e-7)


def test_grey_and_palette_images(rng, tmp_path, stats):
    image = pytest.importorskip("PIL.Image")
    grey = image.fromarray(rng.integers(0, 256, (5, 4), dtype=np.uint8))
    grey.save(tmp_path / "grey.png")
    assert len(stats(tmp_path / "grey.png", "--keep", "-1")["mean"]) == 1
    grey.convert("P").save(tmp_path / "palette.png")
    assert len(stats(tmp_path / "palette.png", "--keep", "-1")["mean"]) == 3


def test_json_has_null_where_a_number_is_not_finite(tmp_path, stats):
    np.save(tmp_path / "x.npy", np.array([[1.0, np.nan], [3.0, 4.0]]))
    assert stats(tmp_path / "x.npy", "--keep", 1)["mean"] == [2.0, None]
    np.save(tmp_path / "empty.npy", np.zeros((0, 2)))
    answer = stats(tmp_path / "empty.npy", "--keep", 1)
    assert {k: answer[k] for k in ("count", "mean", "var", "std", "keep")} == {
        "count": 0,
        "mean": [None, None],
        "var": [None, None],
        "std": [None, None],
        "keep": [1],
    }


def test_without_json_a_person_can_read_it(x, tmp_path, run):
    np.save(tmp_path / "x.npy", x)
    code, out, _ = run("stats", tmp_path / "x.npy", "--keep", 3)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["count", "keep", "mean", "var", "std", "read"]


def cut(path):
    """The first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def broken_image(folder):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.arange(3000, dtype=np.uint8).reshape(50, 20, 3)).save(folder / "b.png")
    cut(folder / "b.png")


def broken_zarr(folder):
    pytest.importorskip("zarr")
    (folder / "b.zarr").mkdir()
    (folder / "b.zarr" / "zarr.json").write_text("{")


def broken_chunk(folder):
    save_zarr(folder / "b.zarr", np.random.default_rng(0).random((9, 5, 4, 3)))
    for chunk in (folder / "b.zarr" / "c").rglob("*"):
        if chunk.is_file():
            cut(chunk)


def half(name, save):
    def make(folder):
        save(folder / name, np.random.default_rng(0).random((20, 3)))
        cut(folder / name)

    return make


BAD = {
    "no such path": ("b.npy", lambda _: None, "no such file"),
    "half a .npy": ("b.npy", half("b.npy", np.save), "cut off"),
    "half a .npz": ("b.npz", half("b.npz", np.savez), "not a .npz"),
    "not a .npy": ("b.npy", lambda f: (f / "b.npy").write_text("hello"), "does not start as one"),
    "nothing in a .npy": ("b.npy", lambda f: (f / "b.npy").touch(), "does not start as one"),
    "not a .npz": ("b.npz", lambda f: (f / "b.npz").write_text("hello"), "not a .npz"),
    "two arrays": ("b.npz", lambda f: np.savez(f / "b.npz", u=np.ones(2), v=np.ones(2)), "b.npz:u"),
    "no such member": ("b.npz:w", lambda f: np.savez(f / "b.npz", u=np.ones(2)), "b.npz:u"),
    "objects": ("b.npy", lambda f: np.save(f / "b.npy", np.array([{}], object)), "only numbers"),
    "a record": ("b.npy", lambda f: np.save(f / "b.npy", np.zeros(2, "i4,f4")), "only numbers"),
    "strings": ("b.npy", lambda f: np.save(f / "b.npy", np.array(["a"])), "only real numbers"),
    "complex": ("b.npy", lambda f: np.save(f / "b.npy", np.ones(2) * 1j), "complex"),
    "a document": ("b.doc", lambda f: (f / "b.doc").write_text("1,2"), "stats reads"),
    "an empty folder": ("b", lambda f: (f / "b").mkdir(), "without files that are read"),
    "half an image": ("b.png", broken_image, "not an image"),
    "not an image": ("b.png", lambda f: (f / "b.png").write_text("hello"), "not an image"),
    "not a zarr store": ("b.zarr", broken_zarr, "not a zarr store"),
    "half a chunk": ("b.zarr", broken_chunk, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_one_line_on_stderr_and_exit_code_2(case, tmp_path, run):
    name, make, message = case
    make(tmp_path)
    code, out, err = run("stats", tmp_path / name, "--keep", 0)
    assert (code, out) == (2, "")
    assert err.startswith("keepnorm: error: ")
    assert message in err
    assert str(tmp_path / name).partition(":")[0] in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("keep", "message"),
    [("9", "got 9"), ("1,1", "twice"), ("foo", "the name foo"), ("a b -> b", "2 axes"), ("a b c (d e) -> d", "")],
)
def test_a_wrong_keep_is_one_line_too(keep, message, x, tmp_path, run):
    np.save(tmp_path / "x.npy", x)
    code, _, err = run("stats", tmp_path / "x.npy", "--keep", keep)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_files_that_do_not_fit_together_are_named(x, tmp_path, run):
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", x[..., :2])
    code, _, err = run("stats", tmp_path / "a.npy", tmp_path / "b.npy", "--keep", "-1")
    assert code == 2
    assert "b.npy" in err


def test_images_are_not_kept_apart(tmp_path, run):
    image = pytest.importorskip("PIL.Image")
    for name in ("a.png", "b.png"):
        image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / name)
    code, _, err = run("stats", tmp_path, "--keep", "0,3")
    assert code == 2
    assert "axis 0" in err


@pytest.mark.parametrize(
    ("package", "name"),
    [("PIL", "b.png"), ("zarr", "b.zarr"), ("tifffile", "b.tif"), ("pyarrow", "b.parquet"), ("nibabel", "b.nii")],
)
def test_a_missing_extra_says_what_to_install(package, name, tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).mkdir() if name.endswith(".zarr") else (tmp_path / name).touch()
    code, _, err = run("stats", tmp_path / name, "--keep", 0)
    assert code == 2
    assert 'pip install "keepnorm[' in err


def test_stats_works_without_tqdm(x, tmp_path, stats, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    np.save(tmp_path / "x.npy", x)
    agree(stats(tmp_path / "x.npy", "--keep", 0), x, 0)


def test_memory_is_bounded(run_python, tmp_path):
    """A sparse file of 1 GiB: its pages pass through, they do not stay."""
    np.lib.format.open_memmap(tmp_path / "big.npy", mode="w+", dtype=np.float32, shape=(2**22, 64))
    code = """
import resource, sys
import numpy as np
from keepnorm.cli.main import main
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
np.save(sys.argv[2], np.zeros((8, 64), np.float32))
assert main(["stats", sys.argv[2], "--keep", "1", "--json"]) == 0
before = peak()
assert main(["stats", sys.argv[1], "--keep", "1", "--json"]) == 0
print((peak() - before) // 1024)
"""
    out = run_python(code, tmp_path / "big.npy", tmp_path / "small.npy")
    assert json.loads(out.splitlines()[1])["count"] == 2**22
    assert int(out.splitlines()[2]) < 200


def test_explain_prints_the_explanation(run):
    code, out, _ = run("explain", "32,3,224,224", "--keep", 1)
    assert code == 0
    assert out == str(kn.explain((32, 3, 224, 224), 1)) + "\n"
    code, out, _ = run("explain", "(2, 8, 5)", "--keep", "n (g c) l -> n g", "--affine", "g c", "--size", "g=4")
    assert code == 0
    assert "torch.nn.GroupNorm(4, 8" in out


@pytest.mark.parametrize("arguments", [("a,b", "--keep", "1"), ("2,3", "--keep", "2"), ("2,3", "--keep", "0", "--size", "g")])
def test_explain_refuses_in_one_line(arguments, run):
    code, out, err = run("explain", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_doctor_names_engines_layer_cache_and_gpu(run):
    code, out, _ = run("doctor")
    assert code == 0
    for word in ("keepnorm", "host", "numba", "threading layer", "cache folder", "GPU"):
        assert word in out


def test_demo_tells_the_truth_about_the_photographs(run, tmp_path, monkeypatch):
    """NumPy's float32 mean of the first channel is 99.40, the exact one 99.93, and ours is the exact one."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from keepnorm.cli import demo

    monkeypatch.setattr(demo, "find_spec", lambda _: None)  # the frameworks have their own session
    code, out, err = run("demo", "--save", tmp_path / "demo.png")
    assert code == 0, err
    red, green, blue = (line.split()[1:] for line in out.splitlines() if line.startswith(("red", "green", "blue")))
    assert red[:3] == ["99.93", "99.93", "99.40"]
    assert red[3:] == ["95.10", "95.10", "93.76"]
    assert (green[0], green[3], blue[0], blue[3]) == (green[1], green[4], blue[1], blue[4])
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_demo_that_cannot_save_says_so(run, tmp_path):
    pytest.importorskip("matplotlib")
    code, _, err = run("demo", "--save", tmp_path / "no" / "such" / "folder.png")
    assert code == 2
    assert err.count("\n") == 1


def test_python_m_keepnorm_is_the_command(run_python):
    out = run_python(
        "import runpy, sys; sys.argv = ['keepnorm', 'explain', '2,3', '--keep', '1']; runpy.run_module('keepnorm')"
    )
    assert "batch normalisation" in out
