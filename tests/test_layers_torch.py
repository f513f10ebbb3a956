"""The layers of keepnorm.layers.torch: torch.nn's own norms in float64 are the reference, in numbers and in all they are."""

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import keepnorm as kn
from tests import oracle
from tests.tolerance import assert_gradient, assert_output, assert_within, ulp

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import keepnorm.layers.torch as layers  # noqa: E402

# name: arguments, keywords, shape of the input
CASES = {
    "batch 1d": ("BatchNorm1d", (6,), {}, (9, 6)),
    "batch 1d with a length": ("BatchNorm1d", (6,), {"eps": 1e-3}, (4, 6, 7)),
    "batch 2d": ("BatchNorm2d", (6,), {"momentum": 0.3}, (4, 6, 5, 3)),
    "batch 3d": ("BatchNorm3d", (3,), {}, (2, 3, 4, 2, 3)),
    "batch without parameters": ("BatchNorm2d", (6,), {"affine": False}, (4, 6, 5, 3)),
    "batch without a bias": ("BatchNorm2d", (6,), {"bias": False}, (4, 6, 5, 3)),
    "batch without running moments": ("BatchNorm2d", (6,), {"track_running_stats": False}, (4, 6, 5, 3)),
    "batch with a cumulative average": ("BatchNorm2d", (6,), {"momentum": None}, (4, 6, 5, 3)),
    "layer": ("LayerNorm", (7,), {}, (4, 5, 7)),
    "layer on several axes": ("LayerNorm", ([5, 7],), {"eps": 1e-2}, (4, 5, 7)),
    "layer on all axes": ("LayerNorm", ([4, 5],), {}, (4, 5)),
    "layer without parameters": ("LayerNorm", (7,), {"elementwise_affine": False}, (4, 5, 7)),
    "layer without a bias": ("LayerNorm", (7,), {"bias": False}, (4, 5, 7)),
    "rms": ("RMSNorm", (7,), {}, (4, 5, 7)),
    "rms on several axes": ("RMSNorm", ([5, 7],), {"eps": 1e-2}, (4, 5, 7)),
    "rms without parameters": ("RMSNorm", (7,), {"elementwise_affine": False}, (4, 5, 7)),
    "group": ("GroupNorm", (3, 6), {}, (4, 6, 5, 3)),
    "group of features": ("GroupNorm", (2, 6), {"eps": 1e-2}, (4, 6)),
    "group without parameters": ("GroupNorm", (3, 6), {"affine": False}, (4, 6, 5)),
    "instance 1d": ("InstanceNorm1d", (6,), {}, (4, 6, 5)),
    "instance 1d without a batch": ("InstanceNorm1d", (6,), {"affine": True}, (6, 5)),
    "instance 2d": ("InstanceNorm2d", (6,), {"affine": True}, (4, 6, 5, 3)),
    "instance with running moments": (
        "InstanceNorm2d",
        (6,),
        {"affine": True, "track_running_stats": True, "momentum": 0.3},
        (4, 6, 5, 3),
    ),
    "instance 3d with running moments": ("InstanceNorm3d", (3,), {"track_running_stats": True}, (2, 3, 4, 2, 3)),
}


def pair(name, seed=0):
    """Our layer in float32, torch.nn's in float64 with the same parameters, and the shape of the input."""
    kind, arguments, words, shape = CASES[name]
    ours, theirs = getattr(layers, kind)(*arguments, **words), getattr(nn, kind)(*arguments, **words).double()
    if kind == "RMSNorm" and ours.eps is None:
        theirs.eps = torch.finfo(torch.float32).eps
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) + 1)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, shape


def data(shape, offset=20.0, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 + offset


@pytest.mark.parametrize("name", CASES)
def test_three_steps_and_inference_are_those_of_torch(name):
    ours, theirs, shape = pair(name)
    for step in range(3):
        x = data(shape, seed=step).requires_grad_()
        exact = x.detach().double().requires_grad_()
        y, want = ours(x), theirs(exact)
        assert_output(y.detach().numpy(), want.detach().numpy(), x.numel(), "output")
        dy = data(shape, 0.0, seed=step + 10)
        mine = torch.autograd.grad(y, [x, *ours.parameters()], dy)
        needed = torch.autograd.grad(want, [exact, *theirs.parameters()], dy.double())
        for got, reference in zip(mine, needed, strict=True):
            # A gradient is what is left of sums of |dy| * |hat|, of which there are at most so many.
            largest = max(float(reference.abs().max()), float(dy.abs().max()))
            assert_gradient(got.numpy(), reference.numpy(), largest, x.numel(), "gradient")
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        if value.is_floating_point():
            limit = 3 * ulp(np.maximum(np.abs(value.numpy()), 1.0), "f4")  # three updates, each rounded once
            assert_within(state[key].numpy(), value.numpy(), limit, key)
        else:
            assert torch.equal(state[key], value)
    ours, theirs = ours.eval(), theirs.eval()
    theirs.load_state_dict(state)
    x = data(shape, seed=5)
    assert_output(ours(x).detach().numpy(), theirs(x.double()).detach().numpy(), x.numel(), "inference")


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_that_of_torch_in_all_but_its_numbers(name):
    kind, arguments, words, _ = CASES[name]
    ours, theirs = getattr(layers, kind)(*arguments, **words), getattr(nn, kind)(*arguments, **words)
    assert isinstance(ours, getattr(nn, kind))
    assert repr(ours) == repr(theirs)
    for mine, needed in zip(
        (*ours.named_parameters(), *ours.named_buffers()), (*theirs.named_parameters(), *theirs.named_buffers()), strict=True
    ):
        assert mine[0] == needed[0]
        assert (mine[1].dtype, mine[1].shape) == (needed[1].dtype, needed[1].shape)
        assert torch.equal(mine[1], needed[1])
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    made = getattr(layers, kind)(*arguments, **words, dtype=torch.float64, device="meta")
    assert all(t.is_meta and t.dtype is torch.float64 for t in made.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_other_dtypes_are_rounded_once(name, dtype):
    ours, theirs, shape = pair(name)
    ours = ours.to(dtype)
    theirs.load_state_dict(ours.state_dict())
    if CASES[name][0] == "RMSNorm" and ours.eps is None:
        theirs.eps = torch.finfo(dtype).eps
    x = data(shape, 2.0).to(dtype)
    y = ours(x)
    assert y.dtype is dtype
    got = y.detach() if dtype is torch.float64 else y.detach().double()
    want = theirs(x.double()).detach().numpy()
    one = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float64: "float64"}[dtype]
    limit = 2 * ulp(np.maximum(np.abs(want), 1.0), one)
    assert_within(got.numpy(), want, limit + (1e-13 if dtype is torch.float64 else 0), one)


MASKED = {name: case for name, case in CASES.items() if len(case[3]) > 2 and "all axes" not in name}


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_tells_which_values_count(name):
    ours, _, shape = pair(name)
    kind, arguments, words, _ = CASES[name]
    x = data(shape)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.7
    x[~mask] = float("nan")
    y = ours(x, where=mask).detach()
    view, keep, affine = _roles(kind, arguments, shape)
    values, seen = x.numpy().reshape(view), mask.numpy().reshape(view)
    inner = tuple(view[a] for a in affine)
    weight, bias = (
        None if getattr(ours, p, None) is None else getattr(ours, p).detach().numpy().reshape(inner)
        for p in ("weight", "bias")
    )
    eps = torch.finfo(torch.float32).eps if ours.eps is None else ours.eps
    want = oracle.normalize(values, keep, weight, bias, affine=affine, eps=eps, center=kind != "RMSNorm", where=seen)
    assert_output(y.numpy().reshape(view), want, x.numel(), name)
    if getattr(ours, "running_mean", None) is not None:
        cells = oracle.moments(values, keep, seen)
        n = cells.count
        mean, var = cells.mean.reshape(-1, shape[1]).mean(0), (cells.var * n / (n - 1)).reshape(-1, shape[1]).mean(0)
        share = 1.0 if words.get("momentum", 0.1) is None else words.get("momentum", 0.1)
        for got, batch, start in ((ours.running_mean, mean, 0.0), (ours.running_var, var, 1.0)):
            limit = 2 * ulp(np.maximum(np.abs(batch), 1.0), "f4")
            assert_within(got.numpy(), (1 - share) * start + share * batch, limit, "running")


def _roles(kind, arguments, shape):
    """The shape in which the norm has axes of its own, the kept axes and the affine ones."""
    if kind.startswith("Batch"):
        return shape, (1,), (1,)
    if kind.startswith("Instance"):
        return shape, (0, 1), (1,)
    if kind == "GroupNorm":
        groups = arguments[0]
        return (shape[0], groups, shape[1] // groups, *shape[2:]), (0, 1), (1, 2)
    inner = 1 if isinstance(arguments[0], int) else len(arguments[0])
    lead = len(shape) - inner
    return shape, tuple(range(lead)), tuple(range(lead, len(shape)))


def test_a_channel_without_values_keeps_its_running_moments():
    layer = layers.BatchNorm1d(2)
    mask = torch.tensor([[True, False], [True, False]])
    layer(torch.tensor([[1.0, 7.0], [3.0, 9.0]]), where=mask)
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.2, 0.0]))
    torch.testing.assert_close(layer.running_var, torch.tensor([1.1, 1.0]))


def test_an_empty_batch_is_counted_and_changes_nothing():
    for layer in (layers.BatchNorm1d(3), nn.BatchNorm1d(3)):
        assert layer(torch.ones(0, 3)).shape == (0, 3)
        assert layer.num_batches_tracked == 1
        assert torch.equal(layer.running_mean, torch.zeros(3))


REFUSED = {
    "one value": (lambda k: k.BatchNorm1d(3), (1, 3), ValueError),
    "batch rank": (lambda k: k.BatchNorm2d(3), (2, 3), ValueError),
    "instance rank": (lambda k: k.InstanceNorm2d(3), (2, 3), ValueError),
    "one place": (lambda k: k.InstanceNorm1d(3), (2, 3, 1), ValueError),
    "channels of an instance": (lambda k: k.InstanceNorm1d(4, affine=True), (2, 3, 5), ValueError),
    "layer shape": (lambda k: k.LayerNorm(4), (2, 3), RuntimeError),
    "layer axes": (lambda k: k.LayerNorm([2, 3], elementwise_affine=False), (3,), RuntimeError),
    "rms shape": (lambda k: k.RMSNorm(4), (2, 3), RuntimeError),
    "group channels": (lambda k: k.GroupNorm(2, 4), (2, 6), RuntimeError),
    "group divides": (lambda k: k.GroupNorm(2, 4, affine=False), (2, 3), RuntimeError),
    "group axes": (lambda k: k.GroupNorm(1, 4), (4,), RuntimeError),
    "group of one": (lambda k: k.GroupNorm(4, 4), (1, 4), ValueError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_with_the_same_error(name):
    make, shape, error = REFUSED[name]
    for kinds in (layers, nn):
        with pytest.raises(error):
            make(kinds)(torch.ones(shape))


def test_channels_that_do_not_count_are_a_warning_as_in_torch():
    for kinds in (layers, nn):
        with pytest.warns(UserWarning, match="num_features"):
            kinds.InstanceNorm1d(4)(torch.ones(2, 3, 5))


def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.GroupNorm(2, 6),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        nn.Flatten(),
        nn.LayerNorm(6 * 6 * 6),
        nn.Linear(6 * 6 * 6, 16),
        nn.BatchNorm1d(16),
        nn.RMSNorm(16),
        nn.Linear(16, 10),
    )


def ours_in(net):
    return [m for m in net.modules() if type(m).__module__.startswith("keepnorm")]


def test_replace_and_restore_keep_the_modules_and_their_state():
    net = model()
    before, parameters = copy.deepcopy(net), list(net.parameters())
    seen = []
    net[1].register_forward_hook(lambda *_: seen.append(1))
    assert layers.replace(net) is net
    assert len(ours_in(net)) == 6
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert net.state_dict().keys() == before.state_dict().keys()
    net(torch.randn(4, 1, 8, 8))
    assert seen == [1]
    assert layers.restore(net) is net
    assert ours_in(net) == []
    assert repr(net) == repr(before)
    assert layers.replace(nn.LayerNorm(3)).__class__ is layers.LayerNorm


def test_replace_leaves_other_layers_and_says_what_is_missing():
    class Own(nn.LayerNorm):
        """A subclass, which may do anything."""

    assert type(layers.replace(nn.Sequential(Own(3)))[0]) is Own
    with pytest.raises(TypeError, match=r"replace needs a torch\.nn\.Module; got dict"):
        layers.replace({})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are a preview, says torch
        lazy = nn.Sequential(nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match="seen a batch"):
        layers.replace(lazy)


def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    return torch.tensor(images.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32), torch.tensor(labels)


def train(net, images, labels, steps=3):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        part = slice(64 * step, 64 * (step + 1))
        loss = nn.functional.cross_entropy(net(images[part]), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_network_trains_on_digits_as_with_torch():
    """Against torch in float64; torch in float32 is off by as much, in what the convolutions and the products round."""
    images, labels = digits()
    exact, theirs, ours = model().double(), model(), layers.replace(model())
    results = []
    for net in (exact, theirs, ours):
        x = images.to(next(net.parameters()).dtype)
        losses = train(net, x, labels)
        results.append(np.concatenate([losses, net.eval()(x[:200]).detach().double().numpy().ravel()]))
    size = np.maximum(np.abs(results[0]), 1.0)
    peer = (np.abs(results[1] - results[0]) / size).max()
    assert_within(results[2], results[0], 4 * np.maximum(peer, 2.0**-23) * size, "losses and results")
    again = model()
    again.load_state_dict(ours.state_dict(), strict=True)


def test_copies_and_pickles_give_the_same_bits():
    x = torch.randn(5, 1, 8, 8)
    net = layers.replace(model())
    net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.eval()(x), net.eval()(x))
        assert len(ours_in(other)) == 6


def test_half_and_back():
    x = torch.randn(5, 6, 4, 4)
    for kind in (layers.BatchNorm2d(6), layers.GroupNorm(2, 6), layers.LayerNorm(4), layers.RMSNorm(4)):
        assert kind.half()(x.half()).dtype is torch.float16
        assert kind.to(torch.float64)(x.double()).dtype is torch.float64


def test_functional_call_uses_and_updates_what_it_is_given():
    layer, x = layers.BatchNorm1d(3), data((8, 3))
    given = {name: value.clone() for name, value in (*layer.named_parameters(), *layer.named_buffers())}
    given["weight"] = torch.full((3,), 2.0)
    y = torch.func.functional_call(layer, given, (x,))
    torch.testing.assert_close(y, 2 * layers.BatchNorm1d(3)(x))
    assert given["num_batches_tracked"] == 1
    assert torch.equal(layer.running_mean, torch.zeros(3))
    assert not torch.equal(given["running_mean"], torch.zeros(3))


@pytest.mark.parametrize(
    "make", [lambda: layers.LayerNorm(5), lambda: layers.RMSNorm(5), lambda: layers.BatchNorm1d(4).eval()]
)
def test_vmap_and_gradients_of_functions(make):
    layer, x = make().requires_grad_(False), data((6, 3, 4, 5))
    want = torch.stack([layer(part) for part in x])
    assert_output(torch.func.vmap(layer)(x).detach().numpy(), want.detach().numpy(), 5)
    got = torch.func.grad(lambda x: layer(x).pow(3).sum())(x[0])
    leaf = x[0].clone().requires_grad_()
    (needed,) = torch.autograd.grad(layer(leaf).pow(3).sum(), leaf)
    assert_gradient(got.numpy(), needed.numpy(), float(needed.abs().max()) + 10, 15)


def test_an_ensemble_of_batch_norms_trains_under_vmap():
    nets = [layers.BatchNorm1d(3) for _ in range(4)]
    parameters, buffers = torch.func.stack_module_state(nets)
    x = data((4, 8, 3))
    y = torch.func.vmap(lambda p, b, x: torch.func.functional_call(nets[0], (p, b), (x,)))(parameters, buffers, x)
    for i in range(4):
        alone = layers.BatchNorm1d(3)
        assert_output(y[i].detach().numpy(), alone(x[i]).detach().double().numpy(), 8)
        torch.testing.assert_close(buffers["running_mean"][i], alone.running_mean)


def test_checkpointing_gives_the_same_bits():
    from torch.utils.checkpoint import checkpoint

    net = layers.replace(model()).eval()
    x = data((4, 1, 8, 8))
    results = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        results.append((y, *torch.autograd.grad(y.sin().sum(), [leaf, *net.parameters()])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_without_pytorch_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import keepnorm.layers.torch\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "keepnorm.layers.torch needs PyTorch: python -m pip install torch"


def test_the_package_alone_loads_no_framework(run_python):
    out = run_python(
        "import keepnorm.layers, sys\nprint([n for n in ('torch', 'jax', 'keras', 'flax', 'sklearn') if n in sys.modules])"
    )
    assert out.strip() == "[]"


def test_the_same_bits_as_the_function():
    x = data((4, 6, 5, 3))
    assert torch.equal(layers.BatchNorm2d(6, affine=False)(x), kn.batch_norm(x, channel=1))
    assert torch.equal(layers.GroupNorm(3, 6, affine=False)(x), kn.group_norm(x, groups=3, channel=1))
