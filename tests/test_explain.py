"""An explanation is right: its roles and counts, and every framework's spelling gives our numbers when it is run."""

import sys
import warnings
from importlib import import_module

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.explain.explanation import explain

# name: shape, keep, affine, sizes, and what the normalisation is called
CASES = {
    "batch, channels first": ((6, 4, 5, 3), 1, None, {}, "batch"),
    "batch, channels last": ((6, 5, 3, 4), -1, None, {}, "batch"),
    "batch, features": ((6, 4), 1, None, {}, "batch"),
    "batch, in the middle of five": ((2, 3, 4, 2, 3), 2, None, {}, "batch"),
    "layer, last": ((6, 4, 5), "b t d -> b t", "d", {}, "layer"),
    "layer, last two": ((6, 4, 5), 0, (1, 2), {}, "layer"),
    "instance": ((3, 4, 5, 6), (0, 1), 1, {}, "instance"),
    "instance, channels last": ((3, 5, 6, 4), "n h w c -> n c", "c", {}, "instance"),
    "group": ((3, 8, 5, 6), "n (g c) h w -> n g", "g c", {"g": 2}, "group"),
    "group, channels last": ((3, 5, 6, 8), "n h w (g c) -> n g", "g c", {"g": 2}, "group"),
    "several kept": ((4, 5, 6, 7), (1, 3), None, {}, "general"),
    "interleaved groups": ((3, 8, 5), "n (c g) l -> n g", None, {"g": 2}, "general"),
    "everything reduced": ((4, 5, 6), (), None, {}, "all reduced"),
}

# framework of the spelling: what must be importable, and how its array is made from NumPy's
MADE_BY = {
    "NumPy": ("numpy", lambda x, _: x),
    "PyTorch": ("torch", lambda x, m: m["torch"].from_numpy(x)),
    "Keras": ("keras", lambda x, m: m["keras"].ops.convert_to_tensor(x)),
    "Flax": ("flax.linen", lambda x, m: m["jax"].numpy.asarray(x)),
    "tf.nn.moments": ("tensorflow", lambda x, m: m["tf"].constant(x)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kind_is_named(case):
    shape, keep, affine, sizes, kind = case
    assert explain(shape, keep, affine=affine, **sizes).kind == kind


@pytest.mark.parametrize("framework", MADE_BY)
def test_each_spelling_gives_our_numbers(framework, rng):
    package, make = MADE_BY[framework]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a framework says of itself at import is not ours
        root = pytest.importorskip(package.partition(".")[0])
        modules = {root.__name__: root}
        for name, short in (("flax.linen", "flax.linen"), ("jax", "jax"), ("tensorflow", "tf"), ("numpy", "np")):
            if name.partition(".")[0] in (root.__name__, "numpy") or (name == "jax" and root.__name__ == "flax"):
                modules[short] = import_module(name)
        for name, (shape, keep, affine, sizes, _) in CASES.items():
            x = rng.standard_normal(shape).astype(np.float32)
            code = explain(shape, keep, affine=affine, **sizes).calls[framework]
            scope = dict(modules) | {"x": make(x, modules)}
            if framework == "Flax":
                scope["key"] = modules["jax"].random.key(0)
            exec(code, scope)
            y = scope["y"]
            if framework == "Keras":
                y = root.ops.convert_to_numpy(y)
            elif framework == "PyTorch":
                y = y.detach()
            ours = kn.normalize(x, keep, **sizes)
            np.testing.assert_allclose(np.asarray(y), ours, rtol=2e-4, atol=2e-5, err_msg=f"{name}: {code}")


def test_our_own_spelling_runs(rng):
    for shape, keep, affine, sizes, _ in CASES.values():
        x = rng.standard_normal(shape).astype(np.float32)
        scope = {"keepnorm": kn, "x": x}
        exec(explain(x, keep, affine=affine, **sizes).calls["keepnorm"], scope)
        assert np.array_equal(scope["y"], kn.normalize(x, keep, affine=affine, **sizes))


def test_parameters_are_what_keras_counts():
    """200 for 50 features and 120 for 30 channels, half of them trained."""
    for shape, keep, total in (((8, 50), -1, 200), ((1024, 30, 64, 64), 1, 120)):
        e = explain(shape, keep)
        assert (e.parameters, e.parameters + e.running) == (total // 2, total)
        assert f"{total}, which is what Keras counts" in str(e)


def test_onnx_transposes_channels_that_are_not_dimension_1():
    assert "Transpose" not in explain((2, 3, 4, 5), 1).calls["ONNX"]
    there, back = explain((2, 4, 5, 3), -1).calls["ONNX"].splitlines()
    assert "perm=[0, 3, 1, 2]" in there
    assert "perm=[0, 2, 3, 1]" in back


def test_nothing_reduced_has_no_spelling():
    """torch.var_mean(x, ()) reduces everything, x.var(()) nothing."""
    assert set(explain((3, 4), (0, 1)).calls) == {"keepnorm"}


def test_names_of_an_xarray_are_axes():
    xarray = pytest.importorskip("xarray")
    x = xarray.DataArray(np.zeros((2, 3, 4)), dims=("time", "channel", "site"))
    assert explain(x, "channel").kept == (1,)
    assert explain(x, ("time", "site")).kept == (0, 2)


def test_html_escapes_and_holds_every_call():
    html = explain((2, 3, 4), "a b c -> b")._repr_html_()
    assert "-&gt;" in html
    assert html.count("<pre>") == 7


@pytest.mark.parametrize(
    ("shape", "keep", "error", "message"),
    [
        ("32,3", 1, TypeError, "got '32,3'"),
        (7, 0, TypeError, "got 7"),
        ((2, 3.0), 0, TypeError, "ints only"),
        ((2, -3), 0, ValueError, "at least 0"),
        ((2, 3), 5, ValueError, "got 5"),
    ],
)
def test_a_wrong_shape_is_an_error(shape, keep, error, message):
    with pytest.raises(error, match=message):
        explain(shape, keep)


@pytest.mark.parametrize(
    "shape", [(), (5,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6), (4,) * 12, (10**6,) * 8, (0, 3)]
)
def test_the_cube_of_any_shape_is_valid_and_small(shape):
    from xml.etree import ElementTree

    picture = explain(shape, tuple(range(0, len(shape), 2))).svg()
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert len(picture) < 200_000


def test_the_cube_gives_values_that_share_a_mean_one_colour():
    def colours(keep):
        return {
            part.split('"')[0].rsplit(",", 1)[0] for part in explain((3, 3, 3), keep).svg().split('fill="')[1:] if "%" in part
        }

    assert [len(colours(keep)) for keep in ((), 0, 1, 2, (0, 2))] == [1, 3, 3, 3, 9]


def test_the_cube_has_the_names_of_the_axes_and_escapes_them():
    e = explain((2, 3, 4), "n c t -> c")
    assert "c: 3" in e.svg()
    assert "a&amp;b: 3" in e.svg(("n", "a&b", "t"))
    with pytest.raises(ValueError, match="one name for each of the 3 axes; got"):
        e.svg(("n", "c"))


# shape, keep, affine, and the beginning of each warning
WARNED = {
    "one value in each cell": ((1, 5), 1, None, ["Each cell has one value"]),
    "everything kept": ((3, 4), (0, 1), None, ["Each cell has one value"]),
    "every pixel": ((32, 56, 28, 3), (1, 2, 3), None, ["Only axis 0 is reduced: each of 4,704 places"]),
    "the batch in a batch norm": ((32, 64), 0, None, ["Weight and bias live on axis 0. If that is the batch"]),
    "the batch in an instance norm": ((8, 16, 5, 6), (0, 1), None, ["Weight and bias live on axis 0"]),
    "channels last, kept first": ((32, 224, 200, 3), 1, None, ["The sizes (32, 224, 200, 3) look like channels last"]),
    "channels first, kept last": ((1024, 30, 64, 64), -1, None, ["The sizes (1024, 30, 64, 64) look like channels first"]),
    "instance norm, mixed up": ((8, 56, 56, 64), (0, 1), 1, ["The sizes (8, 56, 56, 64) look like channels last"]),
    "volumes, mixed up": ((2, 32, 32, 32, 4), 1, None, ["The sizes (2, 32, 32, 32, 4) look like channels last"]),
    "a kept axis of size 1": ((8, 1, 28, 28), 1, None, ["Kept axis 1 has size 1: one mean and one variance for the whole"]),
    "one of two of size 1": ((8, 1, 5, 6), (1, 2), None, ["Kept axis 1 has size 1: keeping or reducing it"]),
    "no values": ((0, 3), 1, None, ["x has no values"]),
}
USUAL = {
    "batch norm": ((32, 64, 56, 56), 1, None),
    "batch norm, channels last": ((32, 56, 56, 64), -1, None),
    "batch norm of colours": ((32, 3, 224, 224), 1, None),
    "batch norm after a Dense layer": ((32, 50), 1, None),
    "layer norm": ((8, 10, 512), (0, 1), 2),
    "instance norm": ((8, 16, 32, 32), (0, 1), 1),
    "statistics of a picture": ((3, 224, 224), 0, None),
    "as many channels as pixels in a row": ((8, 32, 32, 32), 1, None),
    "one mean": ((4, 5), (), None),
}


@pytest.mark.parametrize(("shape", "keep", "affine", "beginnings"), WARNED.values(), ids=WARNED)
def test_what_is_probably_not_meant_is_warned_of(shape, keep, affine, beginnings):
    e = explain(shape, keep, affine=affine)
    assert len(e.warnings) == len(beginnings)
    for said, beginning in zip(e.warnings, beginnings, strict=True):
        assert said.startswith(beginning)
        assert said in " ".join(str(e).split())
        assert f"<li>{said}</li>" in e._repr_html_()


@pytest.mark.parametrize(("shape", "keep", "affine"), USUAL.values(), ids=USUAL)
def test_what_is_usual_is_not_warned_of(shape, keep, affine):
    e = explain(shape, keep, affine=affine)
    assert e.warnings == []
    assert "Look twice" not in str(e)
    assert "Look twice" not in e._repr_html_()


def test_plot_gives_values_that_share_a_mean_one_colour():
    pytest.importorskip("matplotlib")
    plane = explain((2, 3, 2), 1).plot().axes[0]
    grid = np.asarray(plane.images[0].get_array())
    assert grid.shape == (2, 6)
    assert len(np.unique(grid)) == 3
    assert np.array_equal(grid[0], grid[1])


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"keepnorm\[plot\]"):
        explain((2, 3), 1).plot()


@pytest.mark.parametrize("shape", [(4,) * 12, (4,) * 40, (2,) * 70, (10**6,) * 8, (7,), ()])
def test_plot_is_bounded_and_its_title_is_uncut(shape):
    pytest.importorskip("matplotlib")
    drawing = explain(shape, tuple(range(0, len(shape), 2))).plot()
    assert max(drawing.axes[0].images[0].get_array().shape) <= 64
    assert max(drawing.get_size_inches()) < 20
    drawing.canvas.draw()
    title, whole = drawing._suptitle.get_window_extent(), drawing.bbox
    assert whole.x0 <= title.x0
    assert title.x1 <= whole.x1
    assert title.y1 <= whole.y1


def test_a_notebook_shows_the_plot():
    pytest.importorskip("matplotlib")
    assert explain((2, 3), 1).plot()._repr_png_().startswith(b"\x89PNG")
