"""The call of a framework is read as that framework means it, and never executed."""

import re
from contextlib import suppress

import numpy as np
import pytest

import keepnorm as kn
from tests.test_explain import CASES

NCHW, NHWC, BTD, ROWS = (32, 64, 56, 28), (32, 56, 28, 64), (8, 10, 512), (32, 50)

# call: shape, kept axes, affine axes (None: the kept ones)
READ = {
    "torch.nn.BatchNorm2d(64)": (NCHW, (1,), None),
    "nn.BatchNorm2d(num_features=width, eps=1e-3)(x)": (NCHW, (1,), None),
    "torch.nn.BatchNorm1d(50)": (ROWS, (1,), None),
    "torch.nn.BatchNorm3d(4)": ((2, 4, 5, 6, 7), (1,), None),
    "torch.nn.SyncBatchNorm(64)": (NCHW, (1,), None),
    "F.batch_norm(x, m, v, training=True)": (NCHW, (1,), None),
    "torch.nn.InstanceNorm2d(64)": (NCHW, (0, 1), (1,)),
    "torch.nn.LayerNorm(512)": (BTD, (0, 1), (2,)),
    "nn.LayerNorm([64, 56, 28])": (NCHW, (0,), (1, 2, 3)),
    "F.layer_norm(x, (512,))": (BTD, (0, 1), (2,)),
    "torch.nn.RMSNorm(512)": (BTD, (0, 1), (2,)),
    "torch.mean(x, dim=(0, 2, 3))": (NCHW, (1,), None),
    "torch.var_mean(x, 0, correction=0)": (ROWS, (1,), None),
    "transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])": ((3, 24, 24), (0,), None),
    "keras.layers.BatchNormalization()": (NHWC, (3,), None),
    "tf.keras.layers.BatchNormalization(axis=1)(x, training=True)": (NCHW, (1,), None),
    "layers.BatchNormalization(axis=[1, 2, 3])": (NHWC, (1, 2, 3), None),
    "BatchNormalization(axis=-1)": (NHWC, (3,), None),
    "keras.layers.LayerNormalization(axis=[1, 2, 3])": (NHWC, (0,), (1, 2, 3)),
    "keras.layers.GroupNormalization(groups=-1)": (NHWC, (0, 3), (3,)),
    "keras.layers.Normalization(axis=None)": (ROWS, (), None),
    "keras.ops.moments(x, axes=[0, 1, 2])": (NHWC, (3,), None),
    "flax.linen.BatchNorm(use_running_average=False)": (NHWC, (3,), None),
    "nn.BatchNorm(use_running_average=not train, axis=1)": (NCHW, (1,), None),
    "nn.LayerNorm(epsilon=1e-6)": (BTD, (0, 1), (2,)),
    "nnx.LayerNorm(512, rngs=rngs)": (BTD, (0, 1), (2,)),
    "nnx.BatchNorm(64, rngs=nnx.Rngs(0))": (NHWC, (3,), None),
    "linen.InstanceNorm()": (NHWC, (0, 3), (3,)),
    "hk.BatchNorm(True, True, 0.9)": (NHWC, (3,), None),
    "hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)": (BTD, (0, 1), (2,)),
    "BatchNormalization(X, scale, B, input_mean, input_var, training_mode=1)": (NCHW, (1,), None),
    'onnx.helper.make_node("LayerNormalization", ["X", "S", "B"], ["Y"], axis=2)': (NCHW, (0, 1), (2, 3)),
    'helper.make_node("MeanVarianceNormalization", ["X"], ["Y"])': (NCHW, (1,), None),
    "x.mean(axis=0)": (ROWS, (1,), None),
    "x.mean()": (ROWS, (), None),
    "np.mean(x, (0, 2, 3))": (NCHW, (1,), None),
    "m = np.nanstd(x, axis=-1, keepdims=True)": (ROWS, (0,), None),
    "jnp.var(x, axis=(0, 1))": (BTD, (2,), None),
    "tf.nn.moments(x, axes=[0, 1, 2])": (NHWC, (3,), None),
    "tf.reduce_mean(x, [1, 2])": (NHWC, (0, 3), None),
    "scipy.stats.zscore(x)": (ROWS, (1,), None),
    "StandardScaler().fit_transform(x)": (ROWS, (1,), None),
}


@pytest.mark.parametrize("call", READ)
def test_a_call_is_read_as_its_framework_means_it(call):
    shape, keep, affine = READ[call]
    e = kn.explain_call(call, shape)
    assert e.kept == keep
    assert e.affine == (keep if affine is None else affine)
    assert e.notes
    for note in e.notes:
        assert note in " ".join(str(e).split())


def test_groups_are_read():
    for call, shape, channel in (
        ("torch.nn.GroupNorm(4, 64)", NCHW, 1),
        ("GroupNormalization(X, scale, bias, num_groups=4)", NCHW, 1),
        ("keras.layers.GroupNormalization(4)", NHWC, 3),
        ("flax.linen.GroupNorm(num_groups=4)", NHWC, 3),
        ("nn.GroupNorm(num_groups=4)", NHWC, 3),
    ):
        e = kn.explain_call(call, shape)
        assert e.kind == "group"
        assert e.axes.kept_shape == (32, 4)
        assert e.axes.source_affine_shape == (64,)
        assert f"splits axis {channel}, the channels, into 4 groups of 16" in e.notes[0]


LAYERS = r"torch\.nn|keras\.layers|flax\.linen|Normalization\(X|\.mean\(|var_mean|ops\.moments|nn\.moments|ReduceMean"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_explain_prints_is_read_back(case):
    """Each spelling of a choice is read as that choice; where axes are moved on the way, that is said."""
    shape, keep, affine, sizes, _ = case
    e = kn.explain(shape, keep, affine=affine, **sizes)
    read = 0
    for code in e.calls.values():
        if not re.search(LAYERS, code):
            continue
        if re.search("movedim|swapaxes|reshape|Reshape|Transpose", code):
            with pytest.raises(ValueError, match=r"changes the axes|one call in Python"):
                kn.explain_call(code, shape)
            continue
        back = kn.explain_call(code, shape)
        assert (back.axes.kept_shape, back.reduced, back.kept) == (e.axes.kept_shape, e.reduced, e.kept), code
        assert back.affine == e.affine or "Norm" not in code, code
        read += 1
    assert read or e.kind in ("general", "group")


@pytest.mark.parametrize(
    ("call", "shape", "said"),
    [
        ("keras.layers.BatchNormalization(axis=[1, 2, 3])", NHWC, "Keras 3 takes one axis only"),
        ("keras.layers.BatchNormalization(axis=[1, 2, 3])", NHWC, "LayerNormalization(axis=[1, 2, 3])"),
        ("keras.layers.BatchNormalization(axis=1)", NHWC, "Usually meant: the axis of the channels"),
        ("x.mean(axis=0)", NCHW, "say axis=(1, 2, 3)."),
        ("torch.mean(x, dim=1)", NCHW, "say dim=(0, 2, 3)."),
        ("torch.nn.BatchNorm2d(64)", NHWC, "num_features is 64 and axis 1 of x has size 56"),
        ("torch.nn.BatchNorm2d(64)", NHWC, "x.movedim(-1, 1)"),
        ("torch.nn.BatchNorm2d(64)", (32, 64), "BatchNorm2d takes 4 axes; x has 2"),
        ("torch.nn.BatchNorm1d(10)", BTD, "x.movedim(-1, 1)"),
        ("torch.nn.LayerNorm(28)", NCHW, "one row of a picture"),
        ("torch.nn.LayerNorm(64)", NCHW, "normalized_shape is (64,) and the last sizes of x are (28,)"),
        ("torch.nn.GroupNorm(1, 64)", NCHW, "One group"),
        ("torch.nn.GroupNorm(64, 64)", NCHW, "that is instance norm"),
        ("tf.reduce_mean(x)", NCHW, "one number for the whole array"),
    ],
)
def test_what_is_usually_meant_is_said(call, shape, said):
    e = kn.explain_call(call, shape)
    assert said in " ".join(e.notes)
    assert all(f"<p>{note}</p>" in e._repr_html_() for note in e.notes if not re.search("['<>&]", note))


def test_warnings_come_with_it():
    assert "channels first" in kn.explain_call("keras.layers.BatchNormalization()", (1024, 30, 64, 64)).warnings[0]


def test_pytorch_agrees_with_what_is_said_of_it():
    torch = pytest.importorskip("torch")
    scope = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    for call, (shape, keep, _) in READ.items():
        if re.match(r"(torch\.)?nn\.(Batch|Instance|Layer)Norm\w*\([\d\[]", call):
            shape = tuple(min(n, 600) for n in shape)
            x = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
            theirs = eval(call, scope)(torch.from_numpy(x)).detach().numpy()
            np.testing.assert_allclose(theirs, kn.normalize(x, keep), atol=2e-4, err_msg=call)
    for call, shape in (("nn.BatchNorm2d(64)", NHWC), ("nn.BatchNorm2d(64)", (32, 64)), ("nn.LayerNorm(64)", NCHW)):
        assert "PyTorch refuses it" in " ".join(kn.explain_call(call, shape).notes)
        with pytest.raises((RuntimeError, ValueError)):
            eval(call, scope)(torch.zeros(shape))


def test_keras_agrees_with_what_is_said_of_it():
    keras = pytest.importorskip("keras")
    read = [call for call in READ if re.match(r"keras\.layers\.(Batch|Layer|Group)", call)]
    for call in ("keras.layers.BatchNormalization(axis=1)", *read):
        layer = eval(call, {"keras": keras})
        shape = NCHW if "axis=1)" in call else READ[call][0]
        agrees(call, shape, lambda x, layer=layer: keras.ops.convert_to_numpy(layer(x, **training(layer))), 1e-3)
    with pytest.raises(TypeError):
        keras.layers.BatchNormalization(axis=[1, 2, 3])  # "Keras 3 takes one axis only"


def training(layer):
    return {"training": True} if type(layer).__name__ == "BatchNormalization" else {}


def test_flax_agrees_with_what_is_said_of_it():
    pytest.importorskip("flax")
    import flax.linen
    import jax

    key = jax.random.key(0)
    for call in (
        "flax.linen.BatchNorm(use_running_average=False)",
        "flax.linen.BatchNorm(False, 1)",
        "flax.linen.BatchNorm(use_running_average=False, axis=(1, 2, 3))",
        "flax.linen.LayerNorm()",
        "flax.linen.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=-1)",
        "flax.linen.GroupNorm(4)",
        "flax.linen.GroupNorm()",
        "flax.linen.InstanceNorm()",
    ):
        layer = eval(call, {"flax": flax})
        agrees(call, NHWC, lambda x, layer=layer: layer.init_with_output(key, x)[0], 1e-5)


def test_numpy_and_onnx_agree_with_what_is_said_of_them():
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 5, 6))
    for call in ("x.mean(axis=0)", "x.mean((0, -1))", "x.mean()", "np.mean(x, -1)", "np.var(x, axis=(0, 2, 3))"):
        theirs = eval(call, {"np": np, "x": x})
        assert theirs.shape == kn.explain_call(call, x).axes.kept_shape
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    helper = onnx.helper
    for axis in (1, 2, 3, -2):
        call = f'helper.make_node("LayerNormalization", ["X", "S"], ["Y"], axis={axis}, epsilon=1e-5)'
        e = kn.explain_call(call, x)
        value = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in "XSY"]
        graph = helper.make_graph([eval(call, {"helper": helper})], "one", value[:2], value[2:])
        model = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
        theirs = model.run(None, {"X": x, "S": np.ones(e.axes.affine_shape)})[0]
        np.testing.assert_allclose(theirs, kn.normalize(x, e.kept), atol=1e-5)


def agrees(call, shape, layer, eps):
    """A layer of ones and zeros gives what normalize does with the axes that were read."""
    x = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    axes = kn.explain_call(call, shape).axes
    ours = kn.normalize(x.reshape(axes.shape), axes.keep, eps=eps).reshape(shape)
    np.testing.assert_allclose(np.asarray(layer(x)), ours, atol=2e-4, err_msg=call)


@pytest.mark.parametrize(
    "shape", [(), (3,), (0,), (1, 1), (0, 3), (4, 0, 5), (2, 3, 4), (2, 64, 0, 1), (3, 4, 5, 6), (2, 2, 2, 2, 2, 2)]
)
def test_any_shape_has_an_answer_or_an_error_of_its_own(shape):
    for call in (
        *READ,
        "nn.GroupNorm(2, 4)",
        "layers.GroupNormalization(-1)",
        "np.mean(x, ())",
        "BatchNormalization(axis=[])",
    ):
        try:
            text = str(kn.explain_call(call, shape))
        except ValueError as error:
            text = str(error)
            assert text.startswith("call "), text
        assert text


def test_nothing_is_executed(tmp_path):
    path = tmp_path / "made"
    for call in (
        f"x.mean(axis=open({str(path)!r}, 'w'))",
        f"torch.nn.BatchNorm2d(open({str(path)!r}, 'w'))",
        f"__import__('pathlib').Path({str(path)!r}).touch() or x.mean(0)",
    ):
        with suppress(ValueError):
            kn.explain_call(call, NCHW)
        assert not path.exists()


@pytest.mark.parametrize(
    ("call", "shape", "error", "message"),
    [
        (7, NCHW, TypeError, "call must be the text of a call.*got 7"),
        ("x.mean(axis=0)", 7, TypeError, "got 7"),
        ("x.mean(axis=", NCHW, ValueError, "one call in Python.*got"),
        ("\0", NCHW, ValueError, "one call in Python"),
        ("(" * 1000, NCHW, ValueError, "one call in Python"),
        ("x" * 3000, NCHW, ValueError, "at most 2,000 characters; got 3,000"),
        ("", NCHW, ValueError, "must be a norm, a mean or a variance.*got ''"),
        ("torch.relu(x)", NCHW, ValueError, "must be a norm, a mean or a variance.*got 'torch.relu"),
        ("torch.nn.BatchNorm2d(64)(x.permute(0, 3, 1, 2))", NHWC, ValueError, "permute changes the axes"),
        ("x.mean(axis=axes)", NCHW, ValueError, "must give axis as numbers.*got"),
        ("x.mean(axis=4)", NCHW, ValueError, "axes of x, which has 4 axes"),
        ("x.mean(axis=(0, -4))", NCHW, ValueError, "name each axis once"),
        ("x.mean(axis=True)", NCHW, ValueError, "as an integer"),
        ("x.mean(axis='time')", NCHW, ValueError, "as an integer"),
        ("torch.nn.BatchNorm2d(64)", (64,), ValueError, "needs at least 2 axes"),
        ("torch.nn.GroupNorm(5, 64)", NCHW, ValueError, "64 into 5 groups"),
        ("torch.nn.GroupNorm(0, 64)", NCHW, ValueError, "num_groups as a whole number"),
        ("keras.layers.GroupNormalization(4, axis=0)", NHWC, ValueError, "axis 0"),
        ("torch.nn.LayerNorm(width)", NCHW, ValueError, "normalized_shape as numbers"),
        ("torch.nn.LayerNorm([1, 2, 3, 4, 5])", NCHW, ValueError, "which has 4 axes"),
        ("StandardScaler()", NCHW, ValueError, "a table of 2 axes"),
        ("x.mean(axis=10**10**10)", NCHW, ValueError, "as numbers"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_why(call, shape, error, message):
    with pytest.raises(error, match=message):
        kn.explain_call(call, shape)
