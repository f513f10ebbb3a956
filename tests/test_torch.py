"""PyTorch: gradients of every order, transforms, compilation, and memory that is shared and not copied."""

import gc
import tracemalloc
from importlib import import_module

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.engines.host import pool

torch = pytest.importorskip("torch")
engine, tensors = (import_module(f"keepnorm.engines.torch.{name}") for name in ("engine", "tensors"))

MASK = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)[:, None]
GIVEN = kn.Moments.from_mean_var(torch.tensor([0.1, -0.2, 0.3]), torch.tensor([1.0, 2.0, 0.5]), keep=1, ndim=3)

NORMS = {
    "batch": lambda x, w, b: kn.batch_norm(x, w, b, channel=1),
    "instance": lambda x, w, b: kn.instance_norm(x, w, b, channel=1),
    "layer": lambda x, w, b: kn.normalize(x, 0, w, b, affine=1),
    "group": lambda x, w, b: kn.group_norm(x, w, b, groups=3, channel=1),
    "rms": lambda x, w, b: kn.normalize(x, 1, w, b, center=False),
    "mask": lambda x, w, b: kn.normalize(x, 1, w, b, where=MASK),
    "rms mask": lambda x, w, b: kn.normalize(x, 1, w, b, center=False, where=MASK),
    "given": lambda x, w, b: kn.normalize(x, 1, w, b, moments=GIVEN),
    "moments": lambda x, w, b: kn.normalize(x, 1, w, b, moments=kn.moments(x * 2, 1)),
    "mean": lambda x, w, b: kn.moments(x, 1).mean * w + b,
    "var": lambda x, w, b: kn.moments(x, 1, where=MASK).var * w + b,
    "affine": lambda x, w, b: kn.affine(x, w, b, keep=1),
}


def operands(shape=(4, 3, 5), dtype=torch.float64, channels=3):
    generator = torch.Generator().manual_seed(20261120)
    x = torch.randn(shape, dtype=dtype, generator=generator) + 3
    w, b = (torch.randn(channels, dtype=dtype, generator=generator) + 1 for _ in range(2))
    return x, w, b


@pytest.mark.parametrize("norm", NORMS)
def test_gradcheck(norm):
    x, w, b = (t.requires_grad_() for t in operands())
    assert torch.autograd.gradcheck(NORMS[norm], (x, w, b))
    assert torch.autograd.gradcheck(lambda x: NORMS[norm](x, w.detach(), b.detach()), (x,))


@pytest.mark.parametrize("norm", NORMS)
def test_gradgradcheck(norm):
    x, w, b = (t.requires_grad_() for t in operands((4, 3, 5)))
    assert torch.autograd.gradgradcheck(NORMS[norm], (x, w, b))


@pytest.mark.parametrize("norm", [n for n in NORMS if n not in ("moments", "mean", "var")])
def test_only_what_requires_a_gradient_gets_one(norm):
    for wanted in range(3):
        given = operands(dtype=torch.float32)
        given[wanted].requires_grad_()
        NORMS[norm](*given).square().sum().backward()
        assert [t.grad is not None for t in given] == [i == wanted for i in range(3)]
        assert given[wanted].grad.shape == given[wanted].shape


def test_a_backward_of_the_kernels_is_that_of_the_standard_engine():
    x, w, b = (t.requires_grad_() for t in operands((6, 3, 40), torch.float32))
    y = kn.normalize(x, 1, w, b)
    loss = (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum()
    ours = torch.autograd.grad(loss, (x, w, b), retain_graph=True)
    standard = torch.autograd.grad(loss, (x, w, b), create_graph=True)
    for mine, other in zip(ours, standard, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-5, atol=1e-6)


def test_inference_mode_and_no_grad():
    x, w, b = operands(dtype=torch.float32)
    w.requires_grad_()
    with torch.inference_mode():
        assert kn.normalize(x, 1, w, b).is_inference()
        out = torch.empty_like(x)
        assert kn.normalize(x, 1, w, b, out=out) is out
    with torch.no_grad():
        assert kn.normalize(x, 1, w, b, out=x) is x


def test_out_and_a_gradient_exclude_each_other():
    x, w, b = operands(dtype=torch.float32)
    with pytest.raises(RuntimeError, match="out= records no gradient"):
        kn.normalize(x, 1, w.requires_grad_(), b, out=torch.empty_like(x))


def test_writing_to_what_a_gradient_needs_is_noticed():
    x, w, b = operands(dtype=torch.float32)
    y = kn.normalize(x, 1, w.requires_grad_(), b)
    with torch.no_grad():
        kn.normalize(x, 1, out=x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("changed", ["x", "weight", "where"])
@pytest.mark.parametrize("kernels", [True, False])
def test_writing_between_normalize_vjp_and_its_vjp_is_noticed(changed, kernels, monkeypatch):
    x, weight, _ = operands(dtype=torch.float32)
    where = MASK.clone()
    if not kernels:
        monkeypatch.setattr(engine, "kernels_of", lambda *_: None)
    y, vjp = kn.normalize_vjp(x, 1, weight, where=where)
    expected = vjp(y).x
    assert torch.equal(vjp(y).x, expected)
    {"x": x, "weight": weight, "where": where}[changed].copy_(0)
    with pytest.raises(RuntimeError, match=f"{changed} has been modified by an inplace operation since normalize_vjp"):
        vjp(y)


def test_kernels_that_write_to_x_after_normalize_vjp_are_noticed():
    x, _, _ = operands(dtype=torch.float32)
    y, vjp = kn.normalize_vjp(x, 1)
    kn.normalize(x, 1, out=x)
    with pytest.raises(RuntimeError, match="x has been modified"):
        vjp(y)
    with torch.inference_mode():
        hidden, dy = x.clone(), y.clone()
        assert kn.normalize_vjp(hidden, 1)[1](dy).x.shape == x.shape  # inference tensors have no version


def test_vmap_and_functional_gradients():
    x, w, b = operands(dtype=torch.float32)
    torch.testing.assert_close(torch.func.vmap(lambda x: kn.normalize(x, 0))(x), kn.normalize(x, (0, 1)))
    torch.testing.assert_close(
        torch.func.vmap(lambda x, w: kn.normalize(x, 1, w), in_dims=(None, 0))(x, torch.stack([w, b])),
        torch.stack([kn.normalize(x, 1, w), kn.normalize(x, 1, b)]),
    )
    x.requires_grad_()
    kn.normalize(x, 1, w, b).pow(3).sum().backward()
    found = torch.func.grad(lambda x: kn.normalize(x, 1, w, b).pow(3).sum())(x.detach())
    torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=1e-4)


def test_batched_gradients():
    x, w, b = operands((2, 3, 2))
    rows, at_once = (
        torch.autograd.functional.jacobian(lambda x: kn.normalize(x, 1, w, b), x, vectorize=v) for v in (False, True)
    )
    torch.testing.assert_close(rows, at_once)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # PyTorch's own, at its first use
def test_forward_mode():
    x, w, b = operands()
    _, tangent = torch.func.jvp(lambda x: kn.normalize(x, 1, w, b), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.zeros_like(x), atol=1e-9, rtol=0)
    with torch.autograd.forward_ad.dual_level():
        y = kn.normalize(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), 1, w, b)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, tangent)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # both inside torch.compile
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_is_the_same_answer(dynamic):
    x, w, b = operands(dtype=torch.float32)

    def f(x, w, b):
        return kn.batch_norm(x, w, b, channel=1) * 2 + kn.normalize(x, "n c l -> n")

    compiled = torch.compile(f, backend="aot_eager", dynamic=dynamic)
    for n in (4, 3, 2):
        torch.testing.assert_close(compiled(x[:n], w, b), f(x[:n], w, b))
    w.requires_grad_()
    compiled(x, w, b).sum().backward()
    assert w.grad is not None


def test_exported_and_traced_by_make_fx():
    from torch.fx.experimental.proxy_tensor import make_fx

    x, w, b = operands(dtype=torch.float32)

    class Model(torch.nn.Module):
        def forward(self, x):
            return kn.normalize(x, 1, w, b)

    torch.testing.assert_close(torch.export.export(Model(), (x,)).module()(x * 2), kn.normalize(x * 2, 1, w, b))
    graph = make_fx(lambda x: kn.normalize(x, 1, w, b))(x)
    torch.testing.assert_close(graph(x * 2), kn.normalize(x * 2, 1, w, b))


EXPORTED = {
    "layer_norm": lambda x: kn.layer_norm(x, axes=-1),
    "rms_norm": lambda x: kn.rms_norm(x, axes=-1),
    "batch_norm": lambda x: kn.batch_norm(x, channel=1),
    "pattern": lambda x: kn.normalize(x, "b (g c) -> b g", torch.arange(4.0), affine="g c", g=2),
    "mask": lambda x: kn.normalize(x, 1, where=torch.arange(4) != 2),
    "affine": lambda x: kn.affine(x, torch.arange(4.0), keep=1),
    "variance": lambda x: kn.moments(x, 1).variance(correction=1),
    "merge": lambda x: (kn.moments(x, 1) + kn.moments(2 * x, 1)).std,
    "vjp": lambda x: kn.normalize_vjp(x, 1)[1](x * x).x,
}


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("axis", [0, 1])
def test_exported_with_a_size_that_is_left_open(name, axis):
    if axis and name in ("pattern", "mask", "affine"):
        pytest.skip("its parameters fix the size of axis 1")
    function, x = EXPORTED[name], torch.randn((3, 4), generator=torch.Generator().manual_seed(1))

    class Model(torch.nn.Module):
        def forward(self, x):
            return function(x)

    exported = torch.export.export(Model(), (x,), dynamic_shapes={"x": {axis: torch.export.Dim("size")}}).module()
    for n in (2, 3, 7):
        other = torch.randn((n, 4) if axis == 0 else (3, n), generator=torch.Generator().manual_seed(n)) + 5
        torch.testing.assert_close(exported(other), function(other), equal_nan=True)


def test_fake_tensors_stay_fake():
    from torch._subclasses import FakeTensor, FakeTensorMode

    with FakeTensorMode() as mode:
        assert isinstance(kn.normalize(mode.from_tensor(torch.ones(3, 4)), 1), FakeTensor)


def test_meta_tensors_have_the_shapes_of_results():
    x, w, b = (t.to("meta") for t in operands(dtype=torch.float32))
    for y in (kn.normalize(x, 1, w, b), kn.normalize_vjp(x, 1, w)[1](x).x, kn.normalize(x, 1, w, out=torch.empty_like(x))):
        assert (y.device.type, y.shape, y.dtype) == ("meta", x.shape, x.dtype)
    assert kn.moments(x, 1).var.shape == (3,)
    with pytest.raises(ValueError, match="on one device; got meta and cpu"):
        kn.normalize(x, 1, torch.ones(3))


def test_parameters_are_tensors():
    x, w, b = operands(dtype=torch.float32)
    torch.testing.assert_close(kn.normalize(x, 1, torch.nn.Parameter(w), b), kn.normalize(x, 1, w, b))


def test_sparse_is_told_what_to_pass():
    with pytest.raises(TypeError, match=r"pass x.to_dense\(\)"):
        kn.normalize(torch.eye(3).to_sparse(), 1)


MEANINGFUL = {
    "masked": (lambda x: torch.masked.masked_tensor(x, x > 0), "masked tensor", r"x\.get_data\(\) with where=x\.get_mask\(\)"),
    "strided": (lambda x: torch.nested.nested_tensor(list(x)), "nested tensor", r"x\.unbind\(\)"),
    "jagged": (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "nested tensor", r"x\.unbind\(\)"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of:UserWarning")  # of masked and of nested tensors
@pytest.mark.parametrize("name", MEANINGFUL)
def test_what_is_no_plain_tensor_is_told_what_to_pass(name):
    make, what, hint = MEANINGFUL[name]
    x = torch.arange(12.0).reshape(4, 3)
    kn.normalize(x, 1)  # the type and the shape of a strided nested tensor are then known
    for call in (lambda a: kn.normalize(a, 1), lambda a: kn.moments(a, 1), lambda a: kn.layer_norm(a, axes=-1)):
        with pytest.raises(TypeError, match=f"x is a {what}.*{hint}"):
            call(make(x))
    calls = {
        "scale": lambda: kn.affine(x, make(x), keep=(0, 1)),
        "weight": lambda: kn.normalize(x, 1, make(x), affine=(0, 1)),
        "where": lambda: kn.normalize(x, 1, where=make(x > 5)),
        "out": lambda: kn.normalize(x, 1, out=make(x)),
        "dy": lambda: kn.normalize_vjp(x, 1)[1](make(x)),
        "mean": lambda: kn.Moments.from_mean_var(make(x), x, keep=(0, 1), ndim=2),
    }
    for argument, call in calls.items():
        if (name, argument) != ("masked", "where"):  # PyTorch has no masked tensors of bool
            with pytest.raises(TypeError, match=f"{argument} is a {what}"):
                call()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning", "ignore:Sparse:UserWarning")  # PyTorch's own
def test_quantized_and_blocked_tensors_are_refused():
    x = torch.arange(12.0).reshape(4, 3)
    with pytest.raises(TypeError, match=r"x must hold bool.*; got qint8"):
        kn.normalize(torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), 1)
    with pytest.raises(TypeError, match=r"weight must hold real numbers; got qint8"):
        kn.normalize(x, 1, torch.quantize_per_tensor(x[0], 0.1, 0, torch.qint8))
    for other in (x.to_sparse_csr(), x.to_mkldnn()):
        with pytest.raises(TypeError, match=r"pass x.to_dense\(\)"):
            kn.normalize(x, 1, out=other)


@pytest.mark.parametrize("make", [torch.nn.Parameter, torch.nn.Buffer, lambda x: x.as_subclass(Named)])
def test_subclasses_have_the_values_of_tensors(make):
    x, w, b = operands(dtype=torch.float32)
    expected = kn.normalize(x, 1, w, b)
    torch.testing.assert_close(kn.normalize(make(x), 1, make(w), make(b)).detach().as_subclass(torch.Tensor), expected)


class Named(torch.Tensor):
    """A tensor with another name."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_and_data_without_axes(dtype):
    x, w = torch.arange(12, dtype=dtype).reshape(4, 3).requires_grad_(), torch.tensor(2, dtype=dtype, requires_grad=True)
    y = kn.normalize(x, 1, w, w, affine=())
    (y * y.detach()).sum().backward()
    hat = ((y - w) / w).detach().double()
    want = (y.detach().double() * hat).sum()
    assert w.grad.shape == ()
    torch.testing.assert_close(w.grad, (want + y.detach().double().sum()).to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=0)
    point = torch.tensor(3, dtype=dtype)
    assert kn.normalize(point, ()) == 0
    assert kn.moments(point, ()).mean == 3
    assert kn.normalize_vjp(point, ())[1](point).x.shape == ()
    with pytest.raises(ValueError, match=r"keep must be \(\), as x has no axes"):
        kn.normalize(point, 0)


@pytest.mark.parametrize(
    "out",
    [
        lambda: torch.ones(1, 3).expand(4, 3),
        lambda: torch.zeros(9).as_strided((4, 3), (2, 1)),
        lambda: torch.zeros(4, 5).as_strided((4, 3), (1, 1)),
    ],
)
def test_an_output_that_overlaps_itself_is_refused(out):
    x, y = torch.ones(4, 3), out()
    before = y.clone()
    for call in (lambda: kn.layer_norm(x, axes=-1, out=y), lambda: kn.affine(x, torch.ones(3), keep=1, out=y)):
        with pytest.raises(ValueError, match="out must have a place of its own for every value; got the strides"):
            call()
    assert torch.equal(y, before)
    apart = torch.zeros(8).as_strided((2, 3), (3, 2))
    assert torch.equal(kn.layer_norm(x[:2], axes=-1, out=apart), kn.layer_norm(x[:2], axes=-1))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x[:, ::2, 1:],
        lambda x: x[:1].expand(4, -1, -1, -1),
        lambda x: torch._neg_view(x),
    ],
    ids=["plain", "channels last", "permuted", "sliced", "expanded", "negated"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_layout_has_numpys_values(layout, dtype):
    x = layout(operands((4, 6, 5, 3), channels=6)[0].to(dtype))
    y = kn.normalize(x, 1)
    assert torch.equal(y, kn.normalize(x.contiguous(), 1))
    assert y.is_contiguous(memory_format=torch.channels_last) == x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.to(memory_format=torch.channels_last), lambda x: x.transpose(0, 3)])
def test_x_is_not_copied(view, monkeypatch):
    monkeypatch.setattr(pool, "LARGE", 1 << 30)  # what is kept for large results nobody sees
    x = view(torch.ones(16, 8, 128, 128))
    memory_of(lambda: kn.normalize(x, 1))  # compiled and planned, and the profiler imported
    size = x.numel() * 4
    assert size <= memory_of(lambda: kn.normalize(x, 1)) <= size * 1.01


def memory_of(call):
    """The bytes that a call takes: tracemalloc sees NumPy's, the profiler PyTorch's."""
    gc.collect()
    tracemalloc.start()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            call()
        numpy = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return numpy + sum(max(e.self_cpu_memory_usage, 0) for e in profile.events() if e.name.startswith("aten::"))


def test_the_state_of_moments_is_double_and_merges():
    x, _, _ = operands(dtype=torch.float32)
    a, b = kn.moments(x[:1], 1), kn.moments(x[1:], 1)
    assert a.shift.dtype is torch.float64
    np.testing.assert_allclose((a + b).var.numpy(), kn.moments(x, 1).var.numpy(), rtol=2**-23)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "strided"])
def test_large_results_have_the_layout_and_the_values_of_small_ones(layout, dtype):
    x = torch.randn((24, 16, 100, 120), generator=torch.Generator().manual_seed(1)).to(dtype)
    x = {
        "contiguous": lambda: x,
        "channels last": lambda: x.contiguous(memory_format=torch.channels_last),
        "transposed": lambda: x.transpose(0, 3),
        "strided": lambda: x.repeat_interleave(2, dim=3)[..., ::2],
    }[layout]()
    moments = kn.moments(x, 1)
    y = kn.normalize(x, 1, moments=moments)
    assert y.numel() * y.itemsize > tensors.HUGE
    assert y.stride() == torch.empty_like(x).stride()
    for part in torch.arange(x.shape[0]).split(2):
        small = kn.normalize(x[part], 1, moments=moments)
        assert small.numel() * small.itemsize < tensors.HUGE
        assert torch.equal(y[part], small)


@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(4, 3, dtype=torch.complex64).conj().imag, lambda: torch._efficientzerotensor((4, 3))]
)
def test_an_output_that_does_not_hold_its_values_is_refused(make):
    x = torch.ones(4, 3)
    with torch.no_grad():
        for call in (lambda out: kn.normalize(x, 1, out=out), lambda out: kn.affine(x, torch.ones(3), keep=1, out=out)):
            with pytest.raises(ValueError, match="out must have memory"):
                call(make())


def test_what_a_mask_leaves_out_has_no_part_in_the_gradients_of_others():
    x = torch.tensor([[1.0], [2.0], [torch.nan]], requires_grad=True)
    dy = torch.tensor([[1.0], [0.0], [5.0]])
    kn.normalize(x, 1, where=~torch.isnan(x.detach())).backward(dy)
    clean = kn.normalize_vjp(x.detach()[:2], 1)[1](dy[:2]).x
    assert torch.equal(x.grad[:2], clean)


def test_values_of_any_magnitude_of_float64():
    for scale in (2.0**-1000, 2.0**1000):
        x = (torch.arange(1.0, 5.0, dtype=torch.float64) * scale)[:, None]
        given = kn.moments(x, 1)
        assert torch.equal(given.std, kn.moments(x / scale, 1).std * scale)
        want = kn.normalize(x / scale, 1, eps=0)
        assert torch.equal(kn.normalize(x, 1, eps=0), want)
        assert torch.equal(kn.normalize(x, 1, eps=0, moments=given), want)
        x.requires_grad_()
        kn.normalize(x, 1, eps=0)[0].sum().backward()
        other = (x.detach() / scale).requires_grad_()
        kn.normalize(other, 1, eps=0)[0].sum().backward()
        assert torch.equal(x.grad * scale, other.grad)


@pytest.mark.parametrize("keep", [(), 1])
@pytest.mark.parametrize("size", [1.0, 2.0**531, 2.0**-661])
def test_the_gradient_of_a_deviation_is_right_at_any_magnitude(keep, size):
    """d std / dx = (x - mean) / (n std), which a power of two does not change."""
    x = np.array([[1.0, 2, 9], [4, 3, 3], [7, 1, 0]])
    wide = np.asarray(x.mean(None if keep == () else 0)), np.asarray(x.std(None if keep == () else 0))
    exact = (x - wide[0]) / (wide[1] * (x.size if keep == () else len(x)))
    t = torch.from_numpy(x * size).requires_grad_()
    seen = kn.moments(t, keep)
    seen.std.sum().backward()
    np.testing.assert_allclose(t.grad.numpy(), exact, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(seen.std.detach().numpy() / size, wide[1], rtol=1e-15)
