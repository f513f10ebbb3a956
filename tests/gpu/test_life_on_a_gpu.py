"""Streams, graphs, autograd, memory and processes: what surrounds the kernels on a real device."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import keepnorm as kn

SHAPES = [((64, 32, 14, 14), 1), ((64, 14, 14, 32), 3), ((300, 500), 0), ((3, 200_000), 0)]


@pytest.mark.parametrize(("shape", "keep"), SHAPES, ids=str)
def test_a_graph_of_pytorch_replays(torch, shape, keep):
    x = torch.randn(shape, device="cuda")
    out = torch.empty_like(x)
    kn.normalize(x, keep, out=out)  # the warm-up: plans are uploaded, kernels compiled
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kn.normalize(x, keep, out=out)
    for seed in range(3):
        x.copy_(torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, kn.normalize(x.clone(), keep))


@pytest.mark.parametrize(("shape", "keep"), SHAPES, ids=str)
def test_a_graph_of_cupy_replays(cupy, shape, keep):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x = cupy.random.standard_normal(shape, dtype=cupy.float32)
        out = cupy.empty_like(x)
        kn.normalize(x, keep, out=out)
        stream.synchronize()
        stream.begin_capture()
        kn.normalize(x, keep, out=out)
        graph = stream.end_capture()
        x *= 3
        graph.launch(stream)
        expected = kn.normalize(x.copy(), keep)
        stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(out), cupy.asnumpy(expected))


def test_work_is_on_the_current_stream(torch):
    x = torch.randn(4, 5_000_000, device="cuda")
    expected = kn.normalize(x, 0)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    results = []
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            copy = x.clone()  # a kernel on any other stream would read this too early
            results.append(kn.normalize(copy, 0))
    torch.cuda.synchronize()
    assert all(torch.equal(y, expected) for y in results)


NEW_THREAD = """
import threading, torch, keepnorm as kn
x = torch.randn(64, 1000, device="cuda")
found = []
for _ in range(2):
    thread = threading.Thread(target=lambda: found.append(kn.normalize(x, 0)))
    thread.start()
    thread.join()
assert len(found) == 2 and all(torch.equal(y, kn.normalize(x, 0)) for y in found)
"""


@pytest.mark.usefixtures("torch")
def test_a_thread_of_its_own_can_be_the_first_to_launch(run_python):
    run_python(NEW_THREAD)


def test_a_call_does_not_wait_for_the_device(torch):
    x = torch.randn(64, 1000, device="cuda")
    kn.normalize(x, 0)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    kn.normalize(x, 0)
    kn.moments(x, 0)
    assert not torch.cuda.current_stream().query(), "the call waited"
    torch.cuda.synchronize()


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_matches_pytorch(torch, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(16, 24, 20, 20, device="cuda", dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight, bias = (torch.randn(24, device="cuda", dtype=torch.float64, requires_grad=True) for _ in range(2))
    dy = torch.randn_like(x)
    theirs = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)
    ours = kn.batch_norm(x, weight, bias, channel=1, eps=1e-5)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight, bias), dy), torch.autograd.grad(theirs, (x, weight, bias), dy), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert ours.is_contiguous(memory_format=layout)


def test_layer_norm_matches_pytorch_in_bfloat16(torch):
    x = torch.randn(512, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight, bias = (torch.randn(768, device="cuda", requires_grad=True) for _ in range(2))
    ours = kn.layer_norm(x, weight, bias, axes=-1)
    exact = torch.nn.functional.layer_norm(x.double(), (768,), weight.double(), bias.double())
    assert (ours.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_memory_does_not_grow(torch):
    x = torch.randn(64, 32, 28, 28, device="cuda")
    for _ in range(3):
        kn.normalize(x, 1)
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        y, vjp = kn.normalize_vjp(x, 1)
        vjp(y)
    del y, vjp
    gc.collect()
    assert torch.cuda.memory_allocated() == before


def test_lack_of_memory_is_a_memory_error(cupy):
    free, _ = cupy.cuda.runtime.memGetInfo()
    x = cupy.broadcast_to(cupy.zeros(1024, cupy.float32), (2 * free // 4096, 1024))
    with pytest.raises(MemoryError, match="the CUDA device has no memory"):
        kn.normalize(x, 0)


def test_arrays_on_two_devices_are_refused(torch):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with pytest.raises(ValueError, match="one device"):
        kn.normalize(torch.zeros(3, 4, device="cuda:0"), 0, torch.ones(3, device="cuda:1"))
    y = kn.normalize(torch.randn(3, 40, device="cuda:1"), 0)
    assert y.device.index == 1


FORKED = """
import os, cupy, keepnorm as kn
x = cupy.ones((3, 4))
kn.moments(x, 0)
child = os.fork()
if child == 0:
    try:
        kn.moments(x, 0)
    except RuntimeError as error:
        os._exit(0 if "spawn" in str(error) else 2)
    os._exit(3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.usefixtures("cupy")
def test_a_forked_child_is_told_so(run_python):
    run_python(FORKED)


CHECKED = """
import cupy, keepnorm as kn
for shape, keep in [((5, 33), 0), ((33, 5), 1), ((3, 7, 11), 1), ((70_000,), ()), ((2000, 3), 1), ((3, 129), 0)]:
    x = cupy.random.standard_normal(shape, dtype=cupy.float32)
    y, vjp = kn.normalize_vjp(x, keep)
    vjp(y)
    kn.normalize(x.astype(cupy.float16)[..., 1:], keep)
cupy.cuda.get_current_stream().synchronize()
"""


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
@pytest.mark.usefixtures("cupy")
def test_the_sanitizer_finds_nothing(tool):
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        pytest.skip("compute-sanitizer is not installed")
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", CHECKED],
        env=dict(os.environ) | {"CUPY_ACCELERATORS": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not know this device")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
