"""torch.compile and torch.export: one graph, and the bits of eager."""

import shutil

import pytest

import keepnorm as kn

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings(  # all inside torch.compile
    "ignore::DeprecationWarning",
    "ignore:The .grad attribute",
    "ignore:Dynamo detected a call to a `functools.lru_cache`",
)

CALLS = {
    "normalize": lambda x, w, b: kn.normalize(x, 1, w, b),
    "rms": lambda x, w, b: kn.normalize(x, 1, w, b, eps=1e-3, center=False),
    "affine axes": lambda x, w, b: kn.normalize(x, (0, 2), w, b, affine=1),
    "where": lambda x, w, _b: kn.normalize(x, 1, w, where=x > -1),
    "nan_policy": lambda x, w, _b: kn.normalize(x, 1, w, nan_policy="omit", fill=0.0),
    "weights": lambda x, w, _b: kn.normalize(x, 1, w, weights=(x > 0).float() + 0.5),
    "weighted moments": lambda x, _w, _b: kn.moments(x, 1, weights=(x > 0).float() + 0.5).std,
    "denormalize": lambda x, w, b: kn.denormalize(
        x, 1, w, b, moments=kn.Moments.from_mean_var(w.detach(), b.detach() ** 2, keep=1, ndim=3)
    ),
    "given": lambda x, w, b: kn.normalize(x, 1, moments=kn.Moments.from_mean_var(w, b * b, keep=1, ndim=3)),
    "own": lambda x, _w, _b: kn.normalize(x, 1, moments=kn.moments(x, 1)),
    "affine": lambda x, w, b: kn.affine(x, w, b, keep=1),
    "moments": lambda x, _w, _b: kn.moments(x, 1).std + kn.moments(x, 1, where=x > -1).mean * kn.moments(x, 1).var,
    "batch_norm": lambda x, w, b: kn.batch_norm(x, w, b, channel=1),
    "instance_norm": lambda x, w, b: kn.instance_norm(x, w, b, channel=1),
    "layer_norm": lambda x, w, b: kn.layer_norm(x, w, b, axes=1),
    "group_norm": lambda x, w, b: kn.group_norm(x, w, b, groups=2, channel=1),
}


@pytest.fixture(autouse=True)
def forget():
    yield
    torch._dynamo.reset()


def same(ours, theirs):
    """Equal to the bit, and laid out alike."""
    return ours.dtype is theirs.dtype and ours.stride() == theirs.stride() and torch.equal(ours, theirs)


def check(f, *given, backend="aot_eager"):
    """One graph, whose result and gradients are those of eager."""
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend=backend)
    here, there = ([t.detach().clone().requires_grad_() for t in given] for _ in range(2))
    y, expected = compiled(*here), f(*there)
    assert same(y, expected)
    dy = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    y.backward(dy)
    expected.backward(dy)
    for a, b in zip(here, there, strict=True):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


def operands(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(s, generator=draw) + 2).to(dtype) for s in ((5, 4, 3), (4,), (4,))]


@pytest.mark.parametrize("name", CALLS)
def test_a_compiled_call_is_one_graph_with_the_bits_of_eager(name):
    check(CALLS[name], *operands())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["normalize", "affine", "moments"])
def test_other_dtypes(name, dtype):
    check(CALLS[name], *operands(dtype))


def test_channels_last_stays_so():
    x = torch.randn((2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    check(lambda x: kn.normalize(x, 1), x)


def test_inductor():
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    check(CALLS["normalize"], *operands(), backend="inductor")


def layers():
    from keepnorm.layers import torch as ours

    return {
        "BatchNorm1d": ours.BatchNorm1d(4),
        "cumulative": ours.BatchNorm1d(4, momentum=None),
        "InstanceNorm1d": ours.InstanceNorm1d(4, affine=True, track_running_stats=True),
        "GroupNorm": ours.GroupNorm(2, 4),
        "LayerNorm": ours.LayerNorm(3),
        "RMSNorm": ours.RMSNorm(3),
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", layers())
def test_a_compiled_layer_is_one_graph_with_the_bits_of_eager(name, training):
    ours, twin = (layers()[name].train(training) for _ in range(2))
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    x = operands()[0]
    for n in (5, 3, 4):
        y, expected = compiled(x[:n]), twin(x[:n])
        assert same(y, expected)
        (y * y).sum().backward()
        (expected * expected).sum().backward()
    for a, b in zip(ours.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("name", layers())
def test_an_exported_layer_has_the_bits_of_eager_for_any_batch(name):
    layer, x = layers()[name].eval(), operands()[0]
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    for n in (2, 3, 5):
        assert same(exported(x[:n]), layer(x[:n]))


def test_without_the_private_word_calls_stay_between_two_graphs(monkeypatch):
    from keepnorm.engines.torch import nodes

    monkeypatch.setattr(nodes, "_node", None)
    for name in ("normalize", "moments"):
        given = operands()
        assert same(torch.compile(CALLS[name], backend="aot_eager")(*given), CALLS[name](*given))


def test_a_checkpoint_has_the_gradients_of_eager():
    from torch.utils.checkpoint import checkpoint

    f = CALLS["normalize"]
    check(lambda *given: checkpoint(f, *given, use_reentrant=False), *operands())


def test_the_operators_keep_what_they_promise():
    from keepnorm.engines.torch import operators  # noqa: F401

    ops = torch.ops.keepnorm
    x, w, b = (t.requires_grad_() for t in operands())
    axes = [3, 1, 5, 4, 3, 0, 1, 2, 1, 1]
    with torch.no_grad():
        state = ops.moments(x.double(), None, axes)
    still = [t.detach() for t in (x, w, b)]
    cases = {
        ops.moments: ((x, None, axes), (x, x.detach() > 0, axes), (x.detach().double(), None, axes)),
        ops.affine: ((x, w, b, axes), (x, w, None, axes)),
        ops.normalize: ((x, w, b, None, None, axes, 1e-5, True), (x, None, None, x.detach() > 0, None, axes, 1e-5, False)),
        ops.normalize_with_moments: ((x, w, b, None, axes, 1e-5),),
        ops.normalize_backward: ((still[0], *still, None, None, axes, 1e-5, True),),
        ops.moments_backward: ((state[1], state[2], still[0], None, state[4], axes),),
        ops.affine_backward: ((still[0], *still, axes),),
    }
    for op, calls in cases.items():
        for given in calls:
            torch.library.opcheck(op.default, given)
