"""BatchNorm: running moments in every convention, policies, gradients, and a state that survives."""

import copy
import importlib
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import array_api_strict
import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from keepnorm.renorm import BatchRenorm
from tests import oracle
from tests.tolerance import assert_gradient, assert_output, assert_within, ulp

KEEPS = [-1, 1, (1, 2), (1, 2, 3), (0, -1)]


def batches(rng, number=3, shape=(5, 4, 3, 6), offset=2.0):
    return [(rng.standard_normal(shape) * 3 + offset).astype("f4") for _ in range(number)]


def make(keep, shape=(5, 4, 3, 6), **options):
    return kn.BatchNorm(oracle.kept_shape(np.empty(shape), keep), keep=keep, **options)


def rounded(values, updates=3):
    """Every update rounds once to float32, the values that it had on the way; these are of the size of 1 or larger."""
    return updates * ulp(np.maximum(np.abs(values), 1), "f4")


def variance(x, keep, correction):
    """The exact variance of each kept cell."""
    cells = oracle.moments(x, keep)
    return (cells.var * cells.count / (cells.count - correction)).reshape(oracle.kept_shape(x, keep))


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("correction", [0, 1])
def test_running_moments_are_the_exponential_average(rng, keep, correction):
    bn = make(keep, decay=0.8, correction=correction)
    mean, var = np.zeros(bn.shape), np.ones(bn.shape)
    for x in batches(rng):
        y = bn(x, training=True)
        assert_output(y, oracle.normalize(x, keep), x.size, "training output")
        mean = 0.8 * mean + 0.2 * oracle.moments(x, keep).mean.reshape(bn.shape)
        var = 0.8 * var + 0.2 * variance(x, keep, correction)
    assert_within(bn.running.mean, mean, rounded(mean), "mean")
    assert_within(bn.running.var, var, rounded(var), "var")
    assert bn.running.mean.dtype == np.float32
    assert bn.state.updates == 3


def test_inference_uses_the_running_moments_and_changes_nothing(rng):
    bn = make(1)
    first, second, third = batches(rng)
    bn(first, training=True)
    bn(second, training=True)
    before = bn.state
    y = bn(third, training=False)
    assert bn.state is before
    np.testing.assert_array_equal(y, kn.normalize(third, 1, bn.weight, bn.bias, moments=bn.running))
    np.testing.assert_array_equal(bn(third[:2], training=False), y[:2])


def test_training_has_to_be_said(rng):
    bn, (x,) = make(1), batches(rng, 1)
    with pytest.raises(TypeError, match="training"):
        bn(x)
    for wrong in (None, 1, "yes"):
        with pytest.raises(TypeError, match=f"training must be True or False; got {wrong!r}"):
            bn(x, training=wrong)
    assert bn.state.updates == 0


@pytest.mark.parametrize("correction", [0, 1])
def test_cumulative_average_counts_every_batch_the_same(rng, correction):
    bn = make(1, decay=None, correction=correction)
    seen = batches(rng)
    for x in seen:
        bn(x, training=True)
    mean = np.mean([oracle.moments(x, 1).mean.ravel() for x in seen], axis=0)
    var = np.mean([variance(x, 1, correction) for x in seen], axis=0)
    assert_within(bn.running.mean, mean, rounded(mean))
    assert_within(bn.running.var, var, rounded(var))


def test_masked_batches_weigh_by_their_counts_in_a_cumulative_average(rng):
    bn = make(1, decay=None)
    seen = batches(rng)
    masks = [rng.random((5, 1, 3, 6)) < share for share in (0.9, 0.2, 0.5)]
    for x, where in zip(seen, masks, strict=True):
        bn(x, training=True, where=where)
    pooled = oracle.moments(np.concatenate(seen), 1, np.concatenate(masks))
    assert_within(bn.running.mean, pooled.mean.ravel(), rounded(pooled.mean.ravel()))
    assert bn.state.count.tolist() == [int(masks[-1].sum())] * 4


def test_masked_exponential_average_is_of_the_masked_moments(rng):
    bn = make(1, decay=0.8, correction=1)
    (x,) = batches(rng, 1)
    where = rng.random((5, 1, 3, 6)) < 0.4
    y = bn(x, training=True, where=where)
    cells = oracle.moments(x, 1, where)
    assert_output(y, oracle.normalize(x, 1, where=where), x.size, "every value is normalised")
    mean, sample = cells.mean.ravel(), (cells.var * cells.count / (cells.count - 1)).ravel()
    assert_within(bn.running.mean, 0.2 * mean, ulp(mean, "f4"))
    assert_within(bn.running.var, 0.8 + 0.2 * sample, ulp(0.8 + sample, "f4"))


@pytest.mark.parametrize("decay", [0.8, None])
def test_a_cell_that_the_mask_leaves_empty_keeps_its_running_moments(rng, decay):
    bn = make(1, decay=decay)
    x, second, _ = batches(rng)
    where = np.ones((1, 4, 1, 1), bool)
    where[0, 2] = False
    bn(x, training=True, where=where)
    assert bn.running.mean[2] == 0
    assert bn.running.var[2] == 1
    assert np.isfinite(bn.running.mean).all()
    bn(second, training=True)
    share = 1.0 if decay is None else 0.2  # the first batch that cell 2 has seen
    mean = share * oracle.moments(second, 1).mean.ravel()[2]
    assert_within(bn.running.mean[2], mean, ulp(mean, "f4"))


@pytest.mark.parametrize("decay", [0.8, None])
def test_merged_moments_of_several_devices_update_as_the_whole_batch(rng, decay):
    whole, parts = make(1, decay=decay), make(1, decay=decay)
    for x in batches(rng):
        whole(x, training=True)
        parts.update(sum(kn.moments(part, 1) for part in np.array_split(x, [1, 4])))
    assert_within(parts.running.mean, whole.running.mean, ulp(whole.running.mean, "f4"))
    assert_within(parts.running.var, whole.running.var, ulp(whole.running.var, "f4"))
    assert parts.state.count == whole.state.count == 90


def test_debiased_average_weighs_the_batches_to_one(rng):
    bn = make(1, decay=0.9, debias=True)
    seen = batches(rng)
    for x in seen:
        bn(x, training=True)
    weights = np.array([0.9**2, 0.9, 1]) * 0.1 / (1 - 0.9**3)
    mean = weights @ [oracle.moments(x, 1).mean.ravel() for x in seen]
    assert_within(bn.running.mean, mean, rounded(mean))


def test_singleton_policies():
    x = np.ones((1, 3), np.float32)
    with pytest.raises(ValueError, match=r"more than one value per cell.*count of 1"):
        kn.BatchNorm(3, keep=1)(x, training=True)
    for correction in (0, 1):
        bn = kn.BatchNorm(3, keep=1, singleton="zero", correction=correction, decay=0.5)
        bn.bias = np.array([1, 2, 3], np.float32)
        np.testing.assert_array_equal(bn(x, training=True), [[1, 2, 3]])
        np.testing.assert_array_equal(bn.running.mean, [0.5] * 3)
        np.testing.assert_array_equal(bn.running.var, [0.5] * 3)
    where = np.array([[True, True, True], [False, True, True]])
    with pytest.raises(ValueError, match="count of 1"):
        kn.BatchNorm(3, keep=1)(np.ones((2, 3), np.float32), training=True, where=where)


def test_empty_policies():
    x = np.ones((0, 3), np.float32)
    for policy, mean in (("skip", 0), ("nan", np.nan)):
        bn = kn.BatchNorm(3, keep=1, empty=policy)
        assert bn(x, training=True).shape == (0, 3)
        np.testing.assert_array_equal(bn.running.mean, [mean] * 3)
        assert bn.state.updates == 1
    bn = kn.BatchNorm(3, keep=1, empty="error")
    with pytest.raises(ValueError, match="count of 0"):
        bn(x, training=True)
    assert bn.state.updates == 0
    where = np.array([[True, True, False], [True, True, False]])
    bn = kn.BatchNorm(3, keep=1, empty="nan")
    bn(np.ones((2, 3), np.float32), training=True, where=where)
    np.testing.assert_array_equal(np.isnan(bn.running.mean), [False, False, True])


@pytest.mark.parametrize(
    "again",
    [
        lambda bn: pickle.loads(pickle.dumps(bn)),
        copy.copy,
        copy.deepcopy,
        lambda bn: type(bn).from_dict(json.loads(json.dumps(bn.to_dict()))),
    ],
    ids=["pickle", "copy", "deepcopy", "dict"],
)
@pytest.mark.parametrize(
    "kind",
    [
        lambda: kn.BatchNorm(4, keep=1, decay=0.7),
        lambda: kn.BatchNorm((4, 3), keep=(1, 2), decay=None, correction=0, singleton="zero"),
        lambda: kn.BatchNorm(4, keep="n c h w -> c", affine=False, debias=True, dtype="float64"),
        lambda: BatchRenorm(4, keep=1, r_max=2.0, d_max=1.0),
    ],
    ids=["plain", "cumulative", "pattern", "renorm"],
)
def test_the_state_survives_bit_for_bit_and_goes_on_alike(rng, again, kind):
    bn = kind()
    first, second, third = batches(rng)
    bn(first, training=True, where=rng.random((5, 1, 1, 6)) < 0.5)
    other = again(bn)
    assert type(other) is type(bn)
    before = bn.state
    other(second, training=True)
    assert bn.state is before  # copies do not share what training changes
    bn(second, training=True)
    np.testing.assert_array_equal(other.state.mean, bn.state.mean)
    np.testing.assert_array_equal(other.state.var, bn.state.var)
    np.testing.assert_array_equal(other(third, training=False), bn(third, training=False))
    assert repr(other) == repr(bn)


def test_updates_of_many_threads_are_all_counted(rng):
    bn = kn.BatchNorm(6, keep=-1, decay=None)
    seen = [kn.moments(x, -1) for x in batches(rng, 8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bn.update, seen * 25))
    assert bn.state.updates == 200
    mean = np.mean([m.mean for m in seen], axis=0)
    assert_within(bn.running.mean, mean, rounded(mean, updates=200))


def test_fold_is_the_inference(rng):
    bn, (x, *_) = make(-1), batches(rng)
    bn.weight, bn.bias = rng.random((2, 6)).astype("f4")
    bn(x, training=True)
    scale, shift = bn.fold(dtype="float64")
    assert_output(bn(x, training=False), x * scale + shift, x.size)
    assert [a.dtype for a in bn.fold()] == [np.float32] * 2
    bn.weight = bn.bias = None
    scale, shift = bn.fold(dtype="float64")
    assert_output(bn(x, training=False), x * scale + shift, x.size)


@pytest.mark.parametrize("keep", KEEPS)
def test_vjp_is_the_gradient_of_training_and_of_inference(rng, keep):
    x, dy, _ = batches(rng)
    for training in (None, True, False):
        bn = make(keep)
        bn.weight, bn.bias = rng.random((2, *bn.shape)).astype("f4")
        given = None
        if training is False:
            bn(dy, training=True)
            state = [a.reshape(oracle.moments(x, keep).mean.shape).astype("f8") for a in (bn.state.mean, bn.state.var)]
            given = oracle.Cells(np.ones(()), state[0], np.zeros(()), state[1], state[1])
        y, vjp = bn.vjp(x, training=training)
        got = vjp(dy)
        exact = oracle.gradients(x, dy, keep, bn.weight, given=given)[:3]
        for name, ours, right in zip(("x", "weight", "bias"), got, exact, strict=True):
            assert_gradient(ours, right, np.abs(right).max(), x.size, f"{name}, training={training}")
        assert_output(y, oracle.normalize(x, keep, bn.weight, bn.bias, cells=given), x.size)


def test_vjp_updates_only_where_training_is_said(rng):
    first, second = make(1), make(1)
    x, *_ = batches(rng)
    first.vjp(x)
    first.vjp(x, training=False)
    assert first.state.updates == 0
    y, _ = first.vjp(x, training=True)
    np.testing.assert_array_equal(y, second(x, training=True))
    np.testing.assert_array_equal(first.state.mean, second.state.mean)
    np.testing.assert_array_equal(first.state.var, second.state.var)


def test_vjp_without_weight_and_on_an_empty_batch(rng):
    bn = make(1, affine=False)
    x, dy, _ = batches(rng)
    _, vjp = bn.vjp(x)
    assert vjp(dy)[1:] == (None, None)
    _, vjp = make(1).vjp(x[:0], training=True)
    got = vjp(dy[:0])
    assert got.x.shape == (0, 4, 3, 6)
    np.testing.assert_array_equal(got.bias, np.zeros(4))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8"])
def test_dtypes(rng, dtype):
    x = (rng.random((6, 4, 5)) * 50).astype(dtype)
    bn = kn.BatchNorm(4, keep=1)
    y = bn(x, training=True)
    assert y.dtype == {"f2": "f2", "f8": "f8", "i8": "f8"}.get(dtype, "f4")
    assert bn(x, training=False).dtype == y.dtype
    assert bn.running.mean.dtype == np.float32
    wide = kn.BatchNorm(4, keep=1, dtype="float64")
    wide(x, training=True)
    assert wide.running.mean.dtype == np.float64


def test_another_library_in_the_same_kind_out(rng):
    bn, twin = make(1), make(1)
    for x in batches(rng):
        strict = array_api_strict.asarray(x)
        y = bn(strict, training=True)
        assert type(y) is type(strict)
        assert_output(np.asarray(y), twin(x, training=True).astype("f8"), x.size)
    assert type(bn.state.mean) is type(strict)
    y = bn(x, training=False)  # and back to NumPy
    assert type(y) is np.ndarray
    assert_output(y, twin(x, training=False).astype("f8"), x.size)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(twin)).state.mean, twin.state.mean)


def test_a_large_offset_does_not_cost_the_running_variance_its_digits(rng):
    bn = kn.BatchNorm(3, keep=-1, decay=0.0, correction=0)
    x = (rng.standard_normal((4096, 3)) + 1e4).astype("f4")
    bn(x, training=True)
    var = oracle.moments(x, -1).var.ravel()
    assert_within(bn.running.var, var, ulp(var, "f4"))


def test_variance_crosses_to_the_other_correction_with_the_count(rng):
    sample, population = make(1, decay=0.0, correction=1), make(1, decay=0.0, correction=0)
    x, *_ = batches(rng)
    sample(x, training=True)
    population(x, training=True)
    right = population.running.var
    assert_within(sample.variance(correction=0), right, 2 * ulp(right, "f4"))
    assert_within(population.variance(correction=1, count=90), sample.running.var, 2 * ulp(right, "f4"))
    assert sample.variance(correction=1) is sample.state.var
    with pytest.raises(ValueError, match="say count=; got count=None"):
        make(1).variance(correction=0)
    with pytest.raises(ValueError, match=r"at least 2.*got 1"):
        make(1).variance(correction=0, count=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (4, 3)}, r"same number of axes; got keep=\(1,\) and shape \(4, 3\)"),
        ({"shape": -1}, "sizes of at least 0"),
        ({"eps": -1e-5}, "eps must be finite and at least 0; got -1e-05"),
        ({"decay": 1.5}, "decay must be between 0 and 1.*got 1.5"),
        ({"decay": True}, "decay must be between 0 and 1.*got True"),
        ({"correction": 2}, "correction must be 0 .*got 2"),
        ({"singleton": "nan"}, "singleton must be one of 'error', 'zero'; got 'nan'"),
        ({"empty": "zero"}, "empty must be one of .*got 'zero'"),
        ({"dtype": "float16"}, "dtype must be one of .*got 'float16'"),
    ],
)
def test_bad_arguments_say_what_was_got(options, message):
    with pytest.raises(ValueError, match=message):
        kn.BatchNorm(**{"shape": 4, "keep": 1, **options})


def test_bad_input_says_what_was_got(rng):
    bn, (x,) = make(1), batches(rng, 1)
    with pytest.raises(ValueError, match=r"cells of shape \(4,\), but keep=\(1,\) of x with shape \(5, 3, 2\) gives \(3,\)"):
        bn(x[:, :3, :2, 0], training=True)
    with pytest.raises(TypeError, match="x must be an array"):
        bn([[1.0]], training=True)
    with pytest.raises(TypeError, match=r"moments must be Moments.*got float"):
        bn.update(1.0)
    with pytest.raises(ValueError, match=r"shape \(4,\) are needed; got \(6,\)"):
        bn.update(kn.moments(x, -1))
    with pytest.raises(ValueError, match="got count=None"):
        bn.update(bn.running)
    with pytest.raises(ValueError, match="got where= as well"):
        bn(x, training=True, where=x > 0, moments=kn.moments(x, 1))
    with pytest.raises(ValueError, match=r"state lacks \['var'\]"):
        kn.BatchNorm.from_dict({k: v for k, v in bn.to_dict().items() if k != "var"})
    bn.weight = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"weight has shape \(3,\)"):
        bn(x, training=True)
    assert bn.state.updates == 0


def test_torch_differentiates_through_and_remembers_without_history(rng):
    torch = pytest.importorskip("torch")
    x, dy, _ = batches(rng)
    bn, twin = make(1), make(1)
    bn.weight, bn.bias = torch.nn.Parameter(torch.full((4,), 2.0)), torch.nn.Parameter(torch.ones(4))
    twin.weight, twin.bias = np.full(4, 2, "f4"), np.ones(4, "f4")
    data = torch.from_numpy(x.copy()).requires_grad_()
    bn(data, training=True).backward(torch.from_numpy(dy))
    _, vjp = twin.vjp(x, training=True)
    for ours, needed in zip((data, bn.weight, bn.bias), vjp(dy), strict=True):
        assert_gradient(ours.grad.numpy(), needed.astype("f8"), np.abs(needed).max(), x.size)
    assert not bn.state.mean.requires_grad
    assert bn.to_dict()["mean"] == twin.to_dict()["mean"]
    assert bn.fold()[0].tolist() == twin.fold()[0].tolist()


def test_jax_traces_inference_and_refuses_to_remember_a_trace(rng):
    jax = pytest.importorskip("jax")
    x, *_ = batches(rng)
    bn = make(1)
    y = bn(jax.numpy.asarray(x), training=True)
    assert isinstance(y, jax.Array)
    before = bn.state
    traced = jax.jit(lambda x: bn(x, training=False))(x)
    needed = bn(x, training=False).astype("f8")
    np.testing.assert_allclose(traced, needed, rtol=0, atol=8 * np.finfo("f4").eps * np.abs(needed).max())
    for transform in (jax.jit, jax.grad):
        with pytest.raises(TypeError, match=r"cannot be updated inside jax\.jit.*got .*Tracer"):
            transform(lambda x: bn(x, training=True).sum())(jax.numpy.asarray(x))
    assert bn.state is before


def test_dask_stays_lazy(rng):
    da = pytest.importorskip("dask.array")
    x, *_ = batches(rng)
    bn, twin = make(1), make(1)
    y = bn(da.from_array(x, chunks=(2, 4, 3, 2)), training=True)
    assert isinstance(y, da.Array)
    assert isinstance(bn.state.mean, da.Array)
    assert_output(np.asarray(y), twin(x, training=True).astype("f8"), x.size)
    assert_within(np.asarray(bn.running.mean), twin.running.mean, ulp(twin.running.mean, "f4"))


def passing(torch):
    """Ways in which PyTorch shows a function tensors that have no values to remember."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def exported(f, x):
        class Model(torch.nn.Module):
            def forward(self, x):
                return f(x)

        torch.export.export(Model(), (x,))

    def open_size(f, x):
        class Model(torch.nn.Module):
            def forward(self, x):
                return f(x)

        torch.export.export(Model(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("n")}})

    def fake(f, x):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # the running moments are real
            f(mode.from_tensor(x))

    return {
        "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x])),
        "grad": lambda f, x: torch.func.grad(lambda a: f(a).sum())(x),
        "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
        "functionalize": lambda f, x: torch.func.functionalize(f)(x),
        "export": exported,
        "export, size left open": open_size,
        "make_fx": lambda f, x: make_fx(f)(x),
        "fake": fake,
        "meta": lambda f, x: f(x.to("meta")),
        "jit.trace": lambda f, x: torch.jit.trace(f, (x,)),
    }


def learning(bn):
    """Every call that changes the running moments."""
    return (
        lambda a: bn(a, training=True),
        lambda a: bn.vjp(a, training=True)[0],
        lambda a: (bn.update(kn.moments(a, -1)), a)[1],
    )


def inference(bn):
    return lambda a: bn(a, training=False)


WAYS = ("vmap", "grad", "jvp", "functionalize", "export", "export, size left open", "make_fx", "fake", "meta", "jit.trace")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor")  # of torch.jit
@pytest.mark.parametrize("way", WAYS)
def test_torch_traces_inference_and_refuses_to_remember_a_trace(rng, way):
    torch = pytest.importorskip("torch")
    trace, x = passing(torch)[way], torch.from_numpy(rng.standard_normal((6, 4)).astype("f4"))
    for make in (lambda: kn.BatchNorm(4, keep=-1), lambda: BatchRenorm(4, keep=-1)):
        bn = make()
        bn(x, training=True)
        before, expected = bn.to_dict(), bn(x, training=False)
        for step in learning(bn):
            with pytest.raises(TypeError, match=r"running moments cannot be updated from tensors that have no values to keep"):
                trace(step, x)
            assert bn.to_dict() == before
        trace(inference(bn), x)
        assert torch.equal(bn(x, training=False), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # both inside torch.compile
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_torch_compiles_around_a_batch_norm(rng, backend):
    torch = pytest.importorskip("torch")
    if backend == "inductor" and not (shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("inductor needs a C++ compiler")
    x = torch.from_numpy(rng.standard_normal((6, 4)).astype("f4"))
    for bn, twin in ([kn.BatchNorm(4, keep=-1) for _ in range(2)], [BatchRenorm(4, keep=-1) for _ in range(2)]):
        steps = (
            lambda a, bn: bn(a * 2, training=True) + 1,
            lambda a, bn: bn(a + 1, training=False) * 2,
            lambda a, bn: bn.vjp(a * 2, training=True)[1](a + 1).x * 2,
            lambda a, bn: (bn.update(kn.moments(a * 2, -1)), a + 1)[1],
            lambda a, bn: a * torch.as_tensor(bn.fold()[0]) + torch.as_tensor(bn.fold()[1]),
        )
        for step in steps:
            compiled = torch.compile(step, backend=backend)
            torch.testing.assert_close(compiled(x, bn), step(x, twin))
            assert bn.to_dict() == twin.to_dict()
        torch._dynamo.reset()


SLIGHTLY = np.array([-4.9e-6, 1.0, 0.0], "f4")


def stored(var, **options):
    bn = kn.BatchNorm(len(var), keep=1, **options)
    bn.state = bn.state._replace(var=np.array(var, "f4"))
    return bn


def kinds():
    """Makers of arrays and readers of the libraries that are installed."""
    yield np.asarray, np.asarray
    for name, make in (("torch", "as_tensor"), ("jax.numpy", "asarray")):
        try:
            yield getattr(importlib.import_module(name), make), np.asarray
        except ModuleNotFoundError:
            continue


def test_a_stored_variance_slightly_below_zero_is_taken_by_every_path(rng):
    x, bn = rng.standard_normal((4, 3)).astype("f4"), stored(SLIGHTLY)
    exact = x / np.sqrt(SLIGHTLY.astype("f8") + 1e-5)
    given = kn.Moments.from_mean_var(np.zeros(3, "f4"), SLIGHTLY, keep=1, ndim=2)
    scale, shift = bn.fold()
    assert_within(scale, 1 / np.sqrt(SLIGHTLY.astype("f8") + 1e-5), ulp(scale, "f4"))
    assert not shift.any()
    for make, read in kinds():
        for y in (
            bn(make(x), training=False),
            bn.vjp(make(x), training=False)[0],
            kn.normalize(make(x), 1, moments=given),
            kn.normalize_vjp(make(x), 1, moments=given)[0],
            kn.batch_norm(make(x), channel=1, moments=given),
        ):
            assert_output(read(y), exact, x.size)
    torch_state = {"running_mean": np.zeros(3, "f4"), "running_var": SLIGHTLY}
    loaded = kn.dialects.load("torch", torch_state)
    assert_output(loaded(x, training=False), exact, x.size)
    assert kn.dialects.dump("torch", loaded)["running_var"].tobytes() == SLIGHTLY.tobytes()
    mean_square = kn.Moments.from_mean_var(np.full(3, 2.0), np.full(3, -1.0), keep=1, ndim=2)
    assert_output(kn.normalize(x, 1, center=False, moments=mean_square, eps=0), x / np.sqrt(3.0), x.size)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_a_stored_variance_below_zero_by_more_than_eps_is_refused_by_every_path(rng, eps):
    x = rng.standard_normal((4, 3)).astype("f4")
    bn, again = stored(SLIGHTLY, eps=eps), BatchRenorm(3, keep=1, eps=eps)
    again.state = again.state._replace(var=SLIGHTLY)
    message = rf"var \+ eps must not be below 0: with eps={eps}, cell \(0,\) has -4.9.*e-06"
    calls = [bn.fold, lambda: kn.porting.fold_into(np.ones((2, 3)), None, bn, keep=1)]
    for make, _ in kinds():
        given = kn.Moments.from_mean_var(make(np.zeros(3, "f4")), make(SLIGHTLY), keep=1, ndim=2)
        calls += [
            lambda make=make: bn(make(x), training=False),
            lambda make=make: bn.vjp(make(x), training=False),
            lambda make=make: again(make(x), training=True),
            lambda make=make, given=given: kn.normalize(make(x), 1, moments=given, eps=eps),
            lambda make=make, given=given: kn.normalize_vjp(make(x), 1, moments=given, eps=eps),
        ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_running_moments_that_float32_cannot_hold_are_kept_in_float64(rng):
    x = (rng.standard_normal((64, 3)) * 1e30).astype("f4")
    exact = variance(x, 1, 1)
    for make, read in kinds():
        bn = kn.BatchNorm(3, keep=1, decay=0.5)
        for _ in range(200):
            bn(make(x), training=True)
        copies = (bn, kn.BatchNorm.from_dict(json.loads(json.dumps(bn.to_dict()))), pickle.loads(pickle.dumps(bn)))
        for same in (*copies, kn.dialects.load("torch", kn.dialects.dump("torch", bn))):
            assert_within(read(same.state.var), exact, 200 * ulp(exact, "f4"))
            y = read(same(make(x), training=False))
            mean = oracle.moments(x, 1).mean
            assert_output(y, (x - mean) / np.sqrt(exact), x.size, size=np.abs(x / np.sqrt(exact)))
        scale, _ = bn.fold()
        assert_within(scale, 1 / np.sqrt(exact), 200 * ulp(1 / np.sqrt(exact), "f4"))


def test_an_infinity_leaves_its_cell_without_a_running_variance():
    x = np.array([[1, 5], [np.inf, 7]], "f4")
    for make, read in kinds():
        bn = kn.BatchNorm(2, keep=1, decay=0.5)
        bn(make(x), training=True)
        np.testing.assert_array_equal(read(bn.running.mean), [np.inf, 3])
        np.testing.assert_array_equal(read(bn.running.var), [np.nan, 1.5])  # 0.5 * 1 + 0.5 * 2, the sample variance


@pytest.mark.parametrize("kind", [kn.BatchNorm, BatchRenorm])
def test_a_pattern_with_groups_takes_its_sizes(rng, kind):
    x = rng.standard_normal((3, 8, 5)).astype("f4")
    bn, twin = kind((2, 4), keep="n (g c) w -> g c", g=2), kind(8, keep=1)
    np.testing.assert_array_equal(bn(x, training=True), twin(x, training=True))
    y, pull = bn.vjp(x, training=True)
    z, exact = twin.vjp(x, training=True)
    np.testing.assert_array_equal(pull(y).x, exact(z).x)
    np.testing.assert_array_equal(pull(y).weight.ravel(), exact(z).weight)
    again = kind.from_dict(json.loads(json.dumps(bn.to_dict())))
    np.testing.assert_array_equal(again(x, training=False), twin(x, training=False))
    with pytest.raises(TypeError, match="unexpected keyword q=2"):
        kind((2, 4), keep="n (g c) w -> g c", q=2)


def test_bfloat16_states_are_read_and_written():
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm1d(3).bfloat16()
    with torch.no_grad():
        for name, values in layer.state_dict().items():
            if name != "num_batches_tracked":
                values.copy_(torch.tensor([0.5, 1.25, 3.0]))
    bn = kn.dialects.load("torch", layer.state_dict())
    restored = {name: torch.as_tensor(a) for name, a in kn.dialects.dump("torch", bn).items()}
    fresh = torch.nn.BatchNorm1d(3).bfloat16()
    fresh.load_state_dict(restored)
    assert all(torch.equal(a, fresh.state_dict()[name]) for name, a in layer.state_dict().items())
    x = torch.randn(5, 3).bfloat16()
    exact = (x.double().numpy() - bn.state.mean) / np.sqrt(bn.state.var.astype("f8") + 1e-5) * bn.weight + bn.bias
    got = bn(x, training=False)
    assert_output(got.view(torch.uint16).numpy().view(ml_dtypes.bfloat16), exact, x.numel(), size=np.abs(exact) + 3)
    bn.weight, bn.bias = torch.ones(3).bfloat16(), np.ones(3, ml_dtypes.bfloat16)
    assert json.loads(json.dumps(bn.to_dict()))["weight"] == [1.0, 1.0, 1.0]
    kernel, bias = kn.porting.fold_into(torch.ones(3, 2).bfloat16(), torch.ones(3).bfloat16(), bn, keep="o i -> o")
    assert (kernel.dtype, bias.dtype) == (torch.bfloat16, torch.bfloat16)
