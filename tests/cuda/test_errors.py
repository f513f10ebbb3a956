"""What goes wrong on a machine with a GPU is said in words, as one of Python's own exceptions."""

import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from keepnorm.axes import resolve
from keepnorm.engines.cuda import engine, memory, session, walk
from keepnorm.kernels.cuda import device
from tests.cuda.device import data, measure, normalize


def raising(name, module, text):
    """An exception of a library that is not installed here."""
    return type(name, (Exception,), {"__module__": module})(text)


@pytest.mark.parametrize(("error", "words"), [
    (raising("CudaSupportError", "numba.cuda.cudadrv.error", "CUDA driver library cannot be found."), "no NVIDIA driver"),
    (raising("CUDAError", "cuda.core", "CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected"), "no GPU"),
    (raising("CUDAError", "cuda.core", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"), "update the driver"),
    (raising("LinkerError", "numba.cuda.cudadrv.driver", "unsupported toolchain"), "update the driver"),
    (raising("NvvmSupportError", "numba.cuda.cudadrv.error", "libNVVM cannot be found"), "python -m pip install"),
    (raising("CUDAError", "cuda.core", "CUDA_ERROR_NOT_INITIALIZED: initialization error"), "after a fork"),
], ids=lambda v: v if isinstance(v, str) else type(v).__name__)  # fmt: skip
def test_errors_of_the_tools_say_what_to_do(error, words):
    with pytest.raises(RuntimeError, match=re.escape(words)) as raised, session.explained():
        raise error
    assert str(error) in str(raised.value)
    assert raised.value.__cause__ is error


def test_other_errors_stay_themselves():
    with pytest.raises(ZeroDivisionError), session.explained():
        raise ZeroDivisionError("driver version")


@pytest.mark.parametrize("name", ["OutOfMemoryError", "CUDAOutOfMemoryError"])
def test_lack_of_device_memory_is_a_memory_error(monkeypatch, name, rng):
    def full(*_):
        raise raising(name, "torch", "CUDA out of memory. Tried to allocate 2.00 GiB")

    library = memory.library_of(np.zeros(1))
    monkeypatch.setattr(session, "library_of", lambda _: library._replace(empty=full, empty_like=full))
    with pytest.raises(MemoryError, match=r"no memory for an array of shape \(3, 4\)"):
        normalize(data(rng, (3, 4)), 0)
    with pytest.raises(MemoryError, match="no memory for"):
        measure(data(rng, (3, 4)), 0)


def test_arrays_of_two_devices_are_refused(monkeypatch, rng):
    library = memory.library_of(np.zeros(1))
    monkeypatch.setattr(session, "library_of", lambda _: library._replace(device_of=lambda a: int(a.ndim == 1)))
    with pytest.raises(ValueError, match=r"one device; got simulator device 0 and simulator device 1"):
        normalize(data(rng, (3, 4)), 0, data(rng, (3,)))


def test_a_forked_child_is_told_so(monkeypatch, rng):
    measure(data(rng, (3, 4)), 0)
    monkeypatch.setattr(walk.os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="does not survive that"):
        measure(data(rng, (3, 4)), 0)


def test_a_child_that_was_forked_before_any_use_may_start(monkeypatch, rng):
    monkeypatch.setattr(walk, "_used", [])
    monkeypatch.setattr(walk, "_process", os.getpid() + 1)
    measure(data(rng, (3, 4)), 0)
    assert walk._used


def test_a_capture_needs_a_call_before_it(monkeypatch, rng):
    x = data(rng, (3, 31))
    library = memory.library_of(x)
    capturing = library._replace(capturing=lambda: True)
    monkeypatch.setattr(session, "library_of", lambda _: capturing)
    with pytest.raises(RuntimeError, match="call once on the same arrays before the capture"):
        engine.moments(x, resolve(x.shape, 0), None)
    monkeypatch.setattr(session, "library_of", lambda _: library)
    engine.moments(x, resolve(x.shape, 0), None)
    monkeypatch.setattr(session, "library_of", lambda _: capturing)
    engine.moments(x, resolve(x.shape, 0), None)


def test_scratch_that_a_capture_needs_is_its_own(monkeypatch, rng):
    x = data(rng, (2000,))
    library = memory.library_of(x)
    engine.moments(x, resolve(x.shape, ()), None)
    monkeypatch.setattr(walk, "_scratch_of", {})
    monkeypatch.setattr(session, "library_of", lambda _: library._replace(capturing=lambda: True))
    engine.moments(x, resolve(x.shape, ()), None)
    assert not walk._scratch_of


def test_what_is_on_no_device_is_refused():
    with pytest.raises(TypeError, match="CuPy array, a PyTorch tensor or a JAX array on a CUDA device; got list"):
        memory.library_of([1.0])


@pytest.mark.parametrize(("version", "there"), [("2.5.0", True), ("3.0.1", True), ("2.4.9", False)])
def test_the_alias_that_numpy_has_dropped_is_there_for_numba_cuda(monkeypatch, version, there):
    stand_in = SimpleNamespace(__version__=version, vstack=np.vstack)
    monkeypatch.setattr(device, "np", stand_in)
    device._restore_row_stack()
    assert hasattr(stand_in, "row_stack") == there


def test_a_missing_extra_is_named():
    with pytest.raises(ImportError, match=r'pip install "keepnorm\[cuda13\]"'):
        device._require("no_such_package")
