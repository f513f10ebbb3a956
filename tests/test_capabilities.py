"""The table of capabilities is what happens: each column has a test that fails where a row says otherwise."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import keepnorm as kn
from keepnorm import capabilities
from keepnorm.engines import dispatch
from tests.backends import BACKENDS, NAMES, kind


def test_names_are_unique():
    assert len(BACKENDS) == len(capabilities.BACKENDS)


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_is_the_one_named(name):
    k = kind(name)
    found = []
    k.run(lambda x: (found.append(dispatch.name_of(x)), x)[1], k.make(np.ones((2, 2), np.float32)))
    assert found == [BACKENDS[name].engine]


def modules_of(function):
    """The files of keepnorm that a call runs."""
    seen = set()
    sys.setprofile(lambda frame, event, _: seen.add(frame.f_code.co_filename) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return {Path(name).as_posix() for name in seen}


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_do_the_work(name, rng):
    """Where a row says so the kernels run, and give the bits that NumPy gets."""
    k, x = kind(name), (rng.standard_normal((6, 50)) * 3 + 9).astype("f4")
    found = []
    run = modules_of(lambda: found.append(k.read(k.run(lambda a: kn.normalize(a, 1), k.make(x)))))
    assert any(path.endswith("engines/host/engine.py") or "fast_path" in path for path in run) == BACKENDS[name].kernels
    if BACKENDS[name].kernels:
        assert found[0].tobytes() == kn.normalize(x, 1).tobytes()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("jax jit", "mlx")])
def test_x_is_read_where_it_is(name, rng):
    """A copy that Python's allocators see; XLA's and MLX's are their own."""
    k = kind(name)
    whole = k.make(rng.standard_normal((4096, 128)).astype("f4"))
    small = k.make(rng.standard_normal((4, 128)).astype("f4"))
    read = (lambda m: m.mean.compute(scheduler="synchronous")) if name == "dask" else (lambda m: m.mean)
    for x in (small, whole):
        read(kn.moments(x, 1))  # loads and compiles
    tracemalloc.start()
    read(kn.moments(whole, 1))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (most < 4096 * 128 * 4 // 2) == BACKENDS[name].shares_memory, most


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_computed_before_it_is_asked_for(name):
    k = kind(name)
    x = k.make(np.ones((2048, 1024), "f4"))
    if name == "mlx":
        mx = pytest.importorskip("mlx.core")
        mx.eval(x)
        before = mx.get_active_memory()
        y = kn.normalize(x, 1)
        lazy = mx.get_active_memory() < before + x.nbytes // 2
        mx.eval(y)
        assert mx.get_active_memory() > before + x.nbytes // 2
    else:
        y = k.run(lambda a: kn.normalize(a, 1), x)
        lazy = bool(getattr(y, "__dask_graph__", lambda: None)())
    assert lazy == BACKENDS[name].lazy


@pytest.mark.parametrize("name", NAMES)
def test_gradients_come_from_where_the_table_says(name, rng):
    k, x = kind(name), rng.standard_normal((4, 3)).astype("f4")
    want = kn.normalize_vjp(x, 1)[1](x * 2).x
    explicit = k.run(lambda a: kn.normalize_vjp(a, 1)[1](a * 2).x, k.make(x))
    np.testing.assert_allclose(k.read(explicit), want, atol=2e-6)
    assert BACKENDS[name].gradient == ("library" if name in ("torch", "jax", "jax jit", "mlx") else "vjp")
    if name == "torch":
        tensor = k.make(x).requires_grad_()
        (kn.normalize(tensor, 1) * k.make(x * 2)).sum().backward()
        np.testing.assert_allclose(tensor.grad.numpy(), want, atol=2e-6)
    elif name == "mlx":
        mx = pytest.importorskip("mlx.core")
        found = mx.grad(lambda a: (kn.normalize(a, 1) * k.make(x * 2)).sum())(k.make(x))
        np.testing.assert_allclose(k.read(found), want, atol=2e-6)
        compiled = mx.compile(lambda a: kn.normalize(a, 1))(k.make(x))
        np.testing.assert_allclose(k.read(compiled), kn.normalize(x, 1), atol=2e-6)
    elif BACKENDS[name].gradient == "library":
        jax = pytest.importorskip("jax")
        found = k.run(jax.grad(lambda a: (kn.normalize(a, 1) * (x * 2)).sum()), k.make(x))
        np.testing.assert_allclose(k.read(found), want, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_out_is_taken_where_the_table_says(name):
    k = kind(name)
    x, out = (k.make(np.full((3, 4), v, "f4")) for v in (1, 7))
    if name in ("numpy", "xarray"):
        out = out.copy()
    if BACKENDS[name].out:
        kn.normalize(x, 1, out=out)
        np.testing.assert_array_equal(k.read(out), 0)
    else:
        with pytest.raises(TypeError, match="out"):
            k.run(lambda a: kn.normalize(a, 1, out=a), x)


@pytest.mark.parametrize("name", NAMES)
def test_sums_of_float32_are_held_in_float64(name):
    """The mean of these needs 54 bits, and the table says that sums have them."""
    assert BACKENDS[name].accumulates.startswith("float64")
    k = kind(name)
    x = np.array([[2.0**30, 1.0, 2.0**-20, -(2.0**30)]] * 2, "f4")
    mean = k.read(k.run(lambda a: kn.moments(a, 0).mean, k.make(x)))
    np.testing.assert_array_equal(mean, np.float32((1 + 2.0**-20) / 4))


def test_meta_tensors_give_shapes_and_dtypes():
    torch = pytest.importorskip("torch")
    for name in BACKENDS["torch meta"].dtypes:
        x = torch.empty(3, 4, device="meta", dtype=getattr(torch, name))
        y, m = kn.normalize(x, 1), kn.moments(x, 1)
        assert (y.device.type, tuple(y.shape), m.mean.device.type, tuple(m.var.shape)) == ("meta", (3, 4), "meta", (4,))


def test_every_backend_has_a_row():
    rows = capabilities.table().splitlines()
    assert len(rows) == 2 + len(BACKENDS)
    assert len({row.count("|") for row in rows}) == 1
    for name, row in zip(BACKENDS, rows[2:], strict=True):
        assert row.startswith(f"| {name} |")


def test_the_documentation_prints_the_table():
    page = Path(__file__).parent.parent / "docs" / "capabilities.md"
    assert page.read_text().endswith(capabilities.table().rstrip() + "\n")
