"""Dialects: what comes in goes out again, crossing keeps the output, and the table is true of the frameworks."""

import os
from itertools import product

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.dialects import CONVENTIONS, arguments, dump, load
from tests.tolerance import assert_output, assert_within, ulp


def arrays(rng, channels=5):
    """Weight, bias, running mean and running variance, with bits that no arithmetic would leave alone."""
    values = rng.standard_normal((4, channels)).astype("f4")
    return values[0], values[1], values[2] * 1e3, np.abs(values[3]) + np.float32(0.1)


def keras_state(rng):
    return dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), arrays(rng), strict=True))


def torch_state(rng):
    names = ("weight", "bias", "running_mean", "running_var")
    return {**dict(zip(names, arrays(rng), strict=True)), "num_batches_tracked": np.asarray(7, np.int64)}


def flax_state(rng):
    weight, bias, mean, var = arrays(rng)
    return {"params": {"scale": weight, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}


def haiku_state(rng):
    weight, bias, mean, var = (a.reshape(1, 1, 1, 5) for a in arrays(rng))
    share = np.float32(1) - np.float32(0.9) ** np.float32(3)
    counter = np.asarray(3, np.int32)
    return {
        "scale": weight,
        "offset": bias,
        "mean_ema": {"hidden": mean * share, "average": mean, "counter": counter},
        "var_ema": {"hidden": var * share, "average": var, "counter": counter},
    }


def onnx_state(rng):
    weight, bias, mean, var = arrays(rng)
    return {"scale": weight, "B": bias, "input_mean": mean, "input_var": var, "epsilon": 2e-3, "momentum": 0.8}


def nnx_state(rng):
    return dict(zip(("scale", "bias", "mean", "var"), arrays(rng), strict=True))


def mlx_state(rng):
    return {name: value for name, value in torch_state(rng).items() if name != "num_batches_tracked"}


STATES = {
    "keras": keras_state,
    "tf_keras_fused": keras_state,
    "torch": torch_state,
    "flax": flax_state,
    "flax_nnx": nnx_state,
    "haiku": haiku_state,
    "onnx": onnx_state,
    "mlx": mlx_state,
}


def same_bits(got, needed):
    assert list(got) == list(needed)
    for name, value in needed.items():
        if isinstance(value, dict):
            same_bits(got[name], value)
        elif value is None or isinstance(value, float):
            assert got[name] == value
        else:
            assert (got[name].dtype, got[name].shape) == (value.dtype, value.shape), name
            assert got[name].tobytes() == value.tobytes(), name


def test_every_dialect_has_a_state_here():
    assert set(STATES) == set(CONVENTIONS)


@pytest.mark.parametrize("dialect", STATES)
def test_loading_and_dumping_is_the_identity(rng, dialect):
    state = STATES[dialect](rng)
    bn = load(dialect, state)
    same_bits(dump(dialect, bn), state)
    bn(np.ones((2, 5, 2, 5), np.float32), training=False)
    same_bits(dump(dialect, bn), state)


@pytest.mark.parametrize("dialect", STATES)
def test_a_state_is_copied_both_ways(rng, dialect):
    state = STATES[dialect](rng)
    bn = load(dialect, state)
    weight = bn.weight.copy()
    name = CONVENTIONS[dialect].names["weight"]
    holder = state[name[0]] if len(name) > 1 else state
    holder[name[-1]] *= 2
    np.testing.assert_array_equal(bn.weight, weight)
    dumped = dump(dialect, bn)
    (dumped[name[0]] if len(name) > 1 else dumped)[name[-1]][...] = 0
    np.testing.assert_array_equal(bn.weight, weight)


@pytest.mark.parametrize(
    ("dialect", "wrap"),
    [
        ("torch", lambda s: {f"features.bn1.{k}": v for k, v in s.items()}),
        ("torch", lambda s: {k: v for k, v in s.items() if k.startswith("running")}),
        ("keras", lambda s: {f"batch_normalization_3/{k}:0": v for k, v in s.items()}),
        ("keras", lambda s: {k: v for k, v in s.items() if k != "gamma"}),
        ("flax", lambda s: {outer: {"BatchNorm_0": inner} for outer, inner in s.items()}),
        ("flax", lambda s: {"batch_stats": s["batch_stats"]}),
        ("flax_nnx", lambda s: {**s, "scale": None}),
        (
            "haiku",
            lambda s: {
                "params": {"batch_norm": {k: s[k] for k in ("scale", "offset")}},
                "state": {f"batch_norm/~/{k}": s[k] for k in ("mean_ema", "var_ema")},
            },
        ),
    ],
)
def test_prefixes_and_absent_parameters_come_back_as_they_were(rng, dialect, wrap):
    state = wrap(STATES[dialect](rng))
    same_bits(dump(dialect, load(dialect, state)), state)


@pytest.mark.parametrize(("source", "target"), list(product(STATES, STATES)))
def test_crossing_keeps_the_output_of_inference(rng, source, target):
    bn = load(source, STATES[source](rng), keep=-1)
    told = arguments(target, bn)
    word = CONVENTIONS[target].arguments
    other = load(
        target,
        dump(target, bn, ndim=4),
        keep=-1,
        eps=told[word["eps"]],
        momentum=told[word["momentum"]],
    )
    x = (rng.standard_normal((4, 3, 2, 5)) * 50).astype("f4")
    np.testing.assert_array_equal(other(x, training=False), bn(x, training=False))
    assert abs(other.decay - bn.decay) < 1e-12
    assert other.correction == CONVENTIONS[target].correction


def test_momentum_is_in_the_dialects_meaning(rng):
    for dialect, state in STATES.items():
        decay = load(dialect, state(rng), momentum=0.25).decay
        assert decay == (0.25 if CONVENTIONS[dialect].momentum == "old" else 0.75)
    assert load("torch", torch_state(rng)).decay == 0.9
    assert load("keras", keras_state(rng)).decay == 0.99
    assert load("onnx", onnx_state(rng)).decay == 0.8
    bn = load("torch", torch_state(rng), momentum="cumulative")
    assert bn.decay is None
    assert arguments("torch", bn)["momentum"] is None
    assert "momentum" not in arguments("keras", bn)
    x = np.arange(10, dtype="f4").reshape(2, 5)
    mean = bn.running.mean * 7 / 8 + x.mean(0) / 8
    bn(x, training=True)
    assert_within(bn.running.mean, mean, 2 * ulp(mean, "f4"))
    assert dump("torch", bn)["num_batches_tracked"] == 8


def test_eps_is_the_dialects_own(rng):
    for dialect, state in STATES.items():
        assert load(dialect, state(rng)).eps == (2e-3 if dialect == "onnx" else CONVENTIONS[dialect].eps)
        assert load(dialect, state(rng), eps=0.5).eps == 0.5


def test_the_count_takes_the_variance_to_the_other_correction(rng):
    x = (rng.standard_normal((6, 5)) * 3).astype("f4")
    bn = kn.BatchNorm(5, keep=-1, decay=0.0, correction=1)
    bn(x, training=True)
    as_it_is, right = dump("keras", bn)["moving_variance"], dump("keras", bn, count=bn.state.count)["moving_variance"]
    np.testing.assert_array_equal(as_it_is, bn.state.var)
    population = x.astype("f8").var(0)
    assert_within(right, population, 2 * ulp(population, "f4"))
    back = load("keras", dump("keras", bn, count=6), count=6)
    sample = dump("torch", back, count=back.state.count)["running_var"]
    assert_within(sample, x.astype("f8").var(0, ddof=1), 3 * ulp(sample, "f4"))
    np.testing.assert_array_equal(dump("torch", bn, count=6)["running_var"], bn.state.var)


def test_several_kept_axes_live_where_the_framework_has_them(rng):
    mean, var = rng.random((2, 5, 7)).astype("f4")
    state = {"params": {"scale": mean, "bias": var}, "batch_stats": {"mean": mean, "var": var}}
    bn = load("flax", state, keep=(1, 3))
    assert bn(np.ones((2, 5, 3, 7), np.float32), training=False).shape == (2, 5, 3, 7)
    same_bits(dump("flax", bn), state)
    assert dump("haiku", bn, ndim=4)["scale"].shape == (1, 5, 1, 7)
    for dialect in ("keras", "torch", "onnx"):
        with pytest.raises(ValueError, match=rf"{dialect} keeps one axis; got .* shape \(5, 7\)"):
            dump(dialect, bn)


def test_a_framework_without_absent_parameters_gets_ones_and_zeros():
    bn = kn.BatchNorm(3, keep=1, affine=False)
    np.testing.assert_array_equal(dump("onnx", bn)["scale"], np.ones(3))
    assert "weight" not in dump("torch", bn)
    bn.bias = np.ones(3, np.float32)
    np.testing.assert_array_equal(dump("torch", bn)["weight"], np.ones(3))
    assert "gamma" not in dump("keras", bn)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: load("pytorch", s), ValueError, "dialect must be one of keras, .*got 'pytorch'"),
        (lambda _: load("torch", [1, 2]), TypeError, "state must map torch's own names.*got list"),
        (lambda s: load("keras", s), ValueError, "holds weight, which is none of gamma, beta"),
        (lambda s: load("torch", {"weight": s["weight"]}), ValueError, "lacks running_mean; got .'weight'."),
        (
            lambda s: load("torch", s | {"bn2.weight": s["weight"]}),
            ValueError,
            "one batch norm; got both weight and bn2.weight",
        ),
        (lambda s: load("torch", s | {"bias": np.ones(3)}), ValueError, r"bias must have the shape .* \(5,\); got \(3,\)"),
        (lambda s: load("torch", s, keep=(1, 2)), ValueError, r"needs a running mean with 2 axes; got shape \(5,\)"),
        (lambda s: load("torch", s, momentum=1.5), ValueError, "momentum must be between 0 and 1; got 1.5"),
        (lambda s: load("mlx", s, momentum="cumulative"), ValueError, "none of|momentum must be a number"),
        (lambda s: dump("torch", s), TypeError, "dump takes a BatchNorm; got dict"),
        (lambda s: dump("haiku", load("torch", s)), ValueError, "say ndim="),
        (lambda s: arguments("jax", load("torch", s)), ValueError, "got 'jax'"),
    ],
)
def test_errors_say_what_was_got(rng, call, error, message):
    with pytest.raises(error, match=message):
        call(torch_state(rng))


# The rows of the table, as facts about the frameworks that are installed.


def steps(rng, number=3):
    return [(rng.standard_normal((6, 5)) * 3 + 2).astype("f4") for _ in range(number)]


def close(got, needed, what):
    """The peers compute in float32, some of them with E[x^2] - E[x]^2."""
    needed = np.asarray(needed, "f8")
    assert_within(np.asarray(got), needed, 32 * ulp(np.maximum(np.abs(needed), 4.0), "f4"), what)


def test_fact_torch(rng):
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm1d(5)
    bn = load("torch", layer.state_dict())
    assert (layer.eps, layer.momentum) == (bn.eps, CONVENTIONS["torch"].default_momentum)
    for x in steps(rng):
        close(bn(x, training=True), layer(torch.from_numpy(x)).detach(), "output")
    for name, value in layer.state_dict().items():
        close(dump("torch", bn)[name], value, name)
    layer.load_state_dict({name: torch.as_tensor(value) for name, value in dump("torch", bn).items()})
    before = layer.running_mean.clone()
    layer(torch.ones(0, 5))
    bn(np.ones((0, 5), "f4"), training=True)
    assert torch.equal(layer.running_mean, before)
    assert layer.num_batches_tracked == bn.state.updates == 4
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.ones(1, 5))
    cumulative = torch.nn.BatchNorm1d(5, momentum=None)
    bn = load("torch", cumulative.state_dict(), momentum="cumulative")
    for x in steps(rng):
        bn(x, training=True)
        cumulative(torch.from_numpy(x))
    close(bn.running.var, cumulative.running_var, "cumulative")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's variables, in NumPy 2
def test_fact_keras(rng):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    layer = keras.layers.BatchNormalization()
    layer.build((6, 5))
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    bn = load("keras", dict(zip(names, layer.get_weights(), strict=True)))
    assert (layer.epsilon, layer.momentum) == (bn.eps, bn.decay)
    for x in steps(rng):
        close(bn(x, training=True), keras.ops.convert_to_numpy(layer(x, training=True)), "output")
    for name, value in zip(names, layer.get_weights(), strict=True):
        close(dump("keras", bn)[name], value, name)
    layer(np.ones((1, 5), "f4"), training=True)
    bn(np.ones((1, 5), "f4"), training=True)
    close(bn.running.var, layer.get_weights()[3], "one value gives variance 0")


def test_fact_flax_linen_and_nnx(rng):
    jax = pytest.importorskip("jax")
    nn, nnx = pytest.importorskip("flax.linen"), pytest.importorskip("flax.nnx")
    linen, layer = nn.BatchNorm(), nnx.BatchNorm(5, rngs=nnx.Rngs(0))
    variables = linen.init(jax.random.key(0), np.ones((6, 5), "f4"), use_running_average=False)
    first, second = load("flax", variables), load("flax_nnx", nnx.state(layer))
    assert (linen.epsilon, linen.momentum) == (layer.epsilon, layer.momentum) == (first.eps, first.decay)
    for x in steps(rng):
        y, changed = linen.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        variables = {**variables, **changed}
        close(first(x, training=True), y, "linen")
        close(second(x, training=True), layer(x, use_running_average=False), "nnx")
    for name in ("mean", "var"):
        close(dump("flax", first)["batch_stats"][name], variables["batch_stats"][name], name)
        close(dump("flax_nnx", second)[name], nnx.state(layer)[name], name)
    assert linen.apply(variables, jax.numpy.ones((2, 5), "float16"), use_running_average=True).dtype == np.float32


def test_fact_haiku(rng):
    hk, jax = pytest.importorskip("haiku"), pytest.importorskip("jax")
    net = hk.transform_with_state(lambda x, training: hk.BatchNorm(True, True, 0.9)(x, training))
    x = steps(rng)[0]
    params, state = net.init(jax.random.key(0), x, True)
    bn = load("haiku", {"params": params, "state": state}, momentum=0.9)
    for x in steps(rng):
        y, state = net.apply(params, state, None, x, True)
        close(bn(x, training=True), y, "output")
    got = dump("haiku", bn)
    for average, values in state.items():
        for name, value in values.items():
            close(got["state"][average][name], value, f"{average} {name}")
    again = {"params": params, "state": state}
    again = jax.tree.map(np.asarray, jax.tree.map(np.asarray, again))
    same_bits(dump("haiku", load("haiku", again)), again)


def test_fact_onnx(rng):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnx.reference")
    words = ["X", "scale", "B", "input_mean", "input_var"]
    node = onnx.helper.make_node("BatchNormalization", words, ["Y", "mean", "var"], training_mode=1)
    infos = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in [*words, "Y", "mean", "var"]]
    graph = onnx.helper.make_graph([node], "g", infos[:5], infos[5:])
    run = onnx.reference.ReferenceEvaluator(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)])
    ).run
    state = {k: v for k, v in onnx_state(rng).items() if k not in ("epsilon", "momentum")}
    bn = load("onnx", state)
    for x in steps(rng):
        y, state["input_mean"], state["input_var"] = run(None, {"X": x, **state})
        assert_output(bn(x, training=True), np.asarray(y, "f8"), x.size, size=np.full(x.shape, 8.0))
    # The state starts at a mean of 1e3, whose units in the last place the peer's float32 steps lose.
    assert_within(bn.running.mean, state["input_mean"], 8 * ulp(np.full(5, 3e3), "f4"))
    close(bn.running.var, state["input_var"], "var")


def test_fact_tf_keras_fused(rng):
    tf = pytest.importorskip("tensorflow")
    x = rng.standard_normal((2, 3, 1, 5)).astype("f4")
    ones, zeros = np.ones(5, "f4"), np.zeros(5, "f4")

    def fused(eps, **given):
        return tf.compat.v1.nn.fused_batch_norm(x, ones, zeros, epsilon=eps, is_training=not given, **given)

    sample = kn.moments(x, -1).variance(correction=1)
    close(fused(1e-3)[2], sample, "the variance that it gives back is the sample's")
    # Older versions raised eps to 1.001e-5, cuDNN's least value then; this one does not.
    bn = load("tf_keras_fused", dict(zip(("moving_mean", "moving_variance"), (zeros, ones), strict=True)), eps=1e-7)
    bn.state = bn.state._replace(var=ones * np.float32(1e-6))
    y = fused(1e-7, mean=zeros, variance=ones * 1e-6)[0]
    assert_within(bn(x, training=False), np.asarray(y, "f8"), 32 * ulp(y, "f4"))


def test_fact_mlx(rng):
    mx, nn = pytest.importorskip("mlx.core"), pytest.importorskip("mlx.nn")
    layer = nn.BatchNorm(5)
    bn = load("mlx", layer.state)
    assert (layer.eps, layer.momentum) == (bn.eps, CONVENTIONS["mlx"].default_momentum)
    for x in steps(rng):
        close(bn(x, training=True), layer(mx.array(x)), "output")
    for name, value in layer.state.items():
        close(dump("mlx", bn)[name], value, name)
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(mx.ones((1, 5)))
