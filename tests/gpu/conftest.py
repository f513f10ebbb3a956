"""These tests need an NVIDIA GPU, numba-cuda and at least one of CuPy, PyTorch and JAX: python -m pytest -m gpu tests/gpu."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# JAX would take three quarters of the device's memory for itself.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# Importing a framework only to find no GPU would slow every other session down.
HAS_DRIVER = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
USABLE = HAS_DRIVER and os.environ.get("NUMBA_ENABLE_CUDASIM") != "1"


def _torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch here has no CUDA")
    return SimpleNamespace(
        name="torch",
        put=lambda a: _torch_tensor(torch, a),
        get=lambda t: _from_torch(torch, t),
        sync=torch.cuda.synchronize,
    )


def _torch_tensor(torch, array):
    """On the device, with the strides of the NumPy array where PyTorch can have them."""
    if any(step < 0 for step in array.strides):
        array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16).cuda()
    source = torch.from_numpy(array)
    room = torch.empty_strided(source.shape, source.stride(), dtype=source.dtype, device="cuda")
    return room.copy_(source)


def _from_torch(torch, tensor):
    if tensor.dtype is torch.bfloat16:
        return tensor.float().cpu().numpy()
    return tensor.detach().cpu().numpy()


def _cupy():
    cupy = pytest.importorskip("cupy")
    return SimpleNamespace(
        name="cupy",
        put=lambda a: cupy.asarray(np.ascontiguousarray(a)) if any(s < 0 for s in a.strides) else cupy.array(a, order="K"),
        get=cupy.asnumpy,
        sync=lambda: cupy.cuda.get_current_stream().synchronize(),
    )


def _jax():
    jax = pytest.importorskip("jax")
    if jax.default_backend() not in ("gpu", "cuda"):
        pytest.skip("JAX here has no CUDA")
    return SimpleNamespace(name="jax", put=jax.numpy.asarray, get=np.asarray, sync=lambda: None)


if not USABLE:
    collect_ignore_glob = ["test_*.py"]

LIBRARIES = {"torch": _torch, "cupy": _cupy, "jax": _jax}


@pytest.fixture(params=LIBRARIES)
def on(request):
    """One array library on the device: `put` and `get` arrays, `sync` with it."""
    return library(request.param)


def library(name):
    pytest.importorskip("numba_cuda")
    return LIBRARIES[name]()


@pytest.fixture
def torch():
    """PyTorch, with CUDA."""
    library("torch")
    return pytest.importorskip("torch")


@pytest.fixture
def cupy():
    """CuPy."""
    library("cupy")
    return pytest.importorskip("cupy")


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
