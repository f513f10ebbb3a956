"""keepnorm on this machine's GPU against what is installed beside it, as fractions of a measured device copy.

    python asv_bench/gpu_report.py                 # writes docs/performance/gpu.md
    python asv_bench/gpu_report.py --most 1e8 --out -

Needs PyTorch with CUDA, and keepnorm with numba-cuda; JAX and CuPy are measured where they are there. Every contestant's
result is checked against keepnorm's before it is timed. Times are the device's, by events around many calls in a row,
median of several such rows; what a call costs the host is measured apart, on arrays too small to matter.
"""

import argparse
import importlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).resolve().parents[1] / "src"
SIZES = (1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 8e9)  # bytes of x
ROWS = 7  # measurements, of which the median counts
ROW_SECONDS = 0.05
PACKAGES = ("keepnorm", "numba-cuda", "torch", "jax", "cupy-cuda13x", "cupy-cuda12x", "triton", "numpy")


class Job(NamedTuple):
    """What is timed: its name, the shape of x for a number of values, the kept axis, and how many times x it must move."""

    name: str
    shape: Callable[[int], tuple[int, ...]]
    channel: int
    moves: int
    kind: str  # inference, training, backward, moments, layer, layer backward


def images(n: int) -> tuple[int, ...]:
    """A batch of ImageNet-like features of about n values, channels first."""
    side = 56 if n >= 2_000_000 else 14
    channels = 64
    return max(1, n // (channels * side * side)), channels, side, side


def rows(n: int) -> tuple[int, ...]:
    """Rows of 1024 features."""
    return max(1, n // 1024), 1024


JOBS = (
    Job("inference, NCHW", images, 1, 2, "inference"),
    Job("inference, NHWC", images, 1, 2, "inference"),
    Job("training forward, NCHW", images, 1, 2, "training"),
    Job("training forward, NHWC", images, 1, 2, "training"),
    Job("backward, NCHW", images, 1, 3, "backward"),
    Job("backward, NHWC", images, 1, 3, "backward"),
    Job("moments, NCHW", images, 1, 1, "moments"),
    Job("moments, NHWC", images, 1, 1, "moments"),
    Job("layer norm, 1024", rows, 0, 2, "layer"),
    Job("layer norm backward, 1024", rows, 0, 3, "layer backward"),
)

Contestant = Callable[[], Any]


def contestants(job: Job, x: Any, weight: Any, bias: Any, mean: Any, var: Any, torch: Any) -> Iterator[tuple[str, Contestant]]:
    """Everyone's way to do the job, as (name, call); a call gives a tensor that is compared."""
    import keepnorm as kn

    functional = torch.nn.functional
    eps = 1e-5
    if job.kind == "moments":
        others = tuple(a for a in range(x.ndim) if a != job.channel)
        yield "keepnorm", lambda: kn.moments(x, job.channel).mean
        yield "PyTorch", lambda: torch.var_mean(x, dim=others, correction=0)[1]
        compiled = torch.compile(lambda t: torch.var_mean(t, dim=others, correction=0))
        yield "torch.compile", lambda: compiled(x)[1]
        yield from elsewhere(job, x, weight, bias, mean, var)
        return
    if job.kind.startswith("layer"):
        ours = lambda t: kn.layer_norm(t, weight, bias, axes=-1)  # noqa: E731
        theirs = lambda t: functional.layer_norm(t, t.shape[-1:], weight, bias, eps)  # noqa: E731
        native: dict[str, Callable[[Any], Any]] = {"PyTorch": theirs}
    elif job.kind == "inference":
        given = kn.Moments.from_mean_var(mean, var, keep=job.channel, ndim=x.ndim)
        ours = lambda t: kn.batch_norm(t, weight, bias, channel=job.channel, moments=given)  # noqa: E731
        theirs = lambda t: functional.batch_norm(t, mean, var, weight, bias, False, 0.0, eps)  # noqa: E731
        native = {"PyTorch native": without_cudnn(theirs, torch), "cuDNN": theirs}
    else:
        ours = lambda t: kn.batch_norm(t, weight, bias, channel=job.channel)  # noqa: E731
        theirs = lambda t: functional.batch_norm(t, None, None, weight, bias, True, 0.0, eps)  # noqa: E731
        native = {"PyTorch native": without_cudnn(theirs, torch), "cuDNN": theirs}
    everyone = {"keepnorm": ours, **native, "torch.compile": torch.compile(theirs)}
    for name, call in everyone.items():
        yield name, backward_of(call, x, weight, bias, torch) if job.kind.endswith("backward") else _bound(call, x)
    yield from elsewhere(job, x, weight, bias, mean, var)


def _bound(call: Callable[[Any], Any], x: Any) -> Contestant:
    return lambda: call(x)


def without_cudnn(call: Callable[[Any], Any], torch: Any) -> Callable[[Any], Any]:
    """PyTorch's own kernels, where cuDNN would be asked first."""

    def native(t: Any) -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            return call(t)

    return native


def backward_of(call: Callable[[Any], Any], x: Any, weight: Any, bias: Any, torch: Any) -> Contestant:
    """The backward step alone, to x, weight and bias: the forward one has run, its graph is kept."""
    leaves = x.detach().requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    y = call(leaves[0])
    torch.manual_seed(1)
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)[0]


def elsewhere(job: Job, x: Any, weight: Any, bias: Any, mean: Any, var: Any) -> Iterator[tuple[str, Contestant]]:
    """JAX's compiled expression and CuPy's, on the same memory."""
    if job.kind.endswith("backward"):
        return
    axis = job.channel if not job.kind.startswith("layer") else None

    def expression(xp: Any, t: Any, w: Any, b: Any, m: Any, v: Any) -> Any:
        others = tuple(a for a in range(t.ndim) if a != axis) if axis is not None else (t.ndim - 1,)
        view = tuple(n if a == axis else 1 for a, n in enumerate(t.shape)) if axis is not None else (1,) * (t.ndim - 1) + (-1,)
        if job.kind == "moments":
            return xp.var(t, axis=others) * 0 + xp.mean(t, axis=others)
        if job.kind == "inference":
            m, v = m.reshape(view), v.reshape(view)
        else:
            m, v = xp.mean(t, axis=others, keepdims=True), xp.var(t, axis=others, keepdims=True)
        return (t - m) / xp.sqrt(v + 1e-5) * w.reshape(view) + b.reshape(view)

    with suppress(ImportError, RuntimeError):
        jax = importlib.import_module("jax")
        if jax.default_backend() in ("gpu", "cuda") and x.is_contiguous():
            arrays = [jax.dlpack.from_dlpack(t.contiguous()) for t in (x, weight, bias, mean, var)]
            jitted = jax.jit(lambda *a: expression(jax.numpy, *a))
            yield "JAX jit", lambda: jitted(*arrays)
    with suppress(ImportError):
        cupy = importlib.import_module("cupy")
        views = [cupy.from_dlpack(t) for t in (x, weight, bias, mean, var)]
        yield "CuPy expression", lambda: expression(cupy, *views)


def device_seconds(call: Contestant, torch: Any, jax_like: bool = False) -> float:
    """What one call takes on the device: many in a row between two events, the median of several rows.

    JAX has a stream of its own, which no event of PyTorch's sees: there the clock runs until its last result is ready.
    """
    for _ in range(3):
        last = call()
    settle(last, torch)
    began = time.perf_counter()
    settle(call(), torch)
    once = max(time.perf_counter() - began, 1e-6)
    calls = max(1, min(1000, int(ROW_SECONDS / once)))
    found = []
    for _ in range(ROWS):
        if jax_like:
            began = time.perf_counter()
            for _ in range(calls):
                last = call()
            settle(last, torch)
            found.append((time.perf_counter() - began) / calls)
            continue
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1000 / calls)
    return statistics.median(found)


def host_seconds(call: Contestant, torch: Any) -> float:
    """What one call costs the host: the device is far quicker than the calls arrive."""
    for _ in range(20):
        last = call()
    settle(last, torch)
    found = []
    for _ in range(ROWS):
        began = time.perf_counter()
        for _ in range(200):
            last = call()
        found.append((time.perf_counter() - began) / 200)
        settle(last, torch)
    return statistics.median(found)


def settle(result: Any, torch: Any) -> None:
    """Wait for a result, whoever computed it."""
    if hasattr(result, "block_until_ready"):
        result.block_until_ready()
    torch.cuda.synchronize()


def copy_seconds(size: float, torch: Any) -> float:
    """What a device copy of so many bytes takes: they are read once and written once."""
    source = torch.empty(int(size) // 4, device="cuda").normal_()
    target = torch.empty_like(source)
    return device_seconds(lambda: target.copy_(source), torch)


def agree(result: Any, reference: Any, torch: Any) -> float:
    """The largest difference, as a part of the largest value."""
    theirs = torch.from_dlpack(result) if not isinstance(result, torch.Tensor) else result
    reference = reference.double()
    return float((theirs.double().reshape(reference.shape) - reference).abs().max() / reference.abs().max())


def measure(job: Job, size: float, torch: Any) -> dict[str, float | str]:
    """Seconds of every contestant at one size, and of the copy; a word where there is no time."""
    shape = job.shape(int(size) // 4)
    torch.manual_seed(0)
    x = torch.randn(shape, device="cuda") * 2 + 1
    if "NHWC" in job.name:
        x = x.to(memory_format=torch.channels_last)
    count = shape[-1] if job.kind.startswith("layer") else shape[job.channel]
    weight, bias, mean, var = (torch.rand(count, device="cuda") + 0.5 for _ in range(4))
    bytes_of_x = x.numel() * 4
    answer: dict[str, float | str] = {"copy": copy_seconds(bytes_of_x, torch)}
    reference = None
    for name, call in contestants(job, x, weight, bias, mean, var, torch):
        try:
            result = call()
            settle(result, torch)
            if reference is None:
                reference = result
            wrong = agree(result, reference, torch)
            answer[name] = device_seconds(call, torch, name.startswith("JAX")) if wrong < 1e-3 else f"differs by {wrong:.0e}"
            del result
        except (MemoryError, RuntimeError) as error:
            answer[name] = type(error).__name__
        torch.cuda.empty_cache()
    return answer


def overheads(torch: Any) -> dict[str, float]:
    """What a call costs the host, in microseconds, on 10 kB."""
    job = JOBS[2]
    x = torch.randn(job.shape(2500), device="cuda")
    weight, bias, mean, var = (torch.rand(x.shape[1], device="cuda") + 0.5 for _ in range(4))
    answer = {}
    for name, call in contestants(job, x, weight, bias, mean, var, torch):
        answer[f"training forward, {name}"] = host_seconds(call, torch) * 1e6
    for name, call in contestants(JOBS[0], x, weight, bias, mean, var, torch):
        answer[f"inference, {name}"] = host_seconds(call, torch) * 1e6
    return answer


def table(job: Job, found: dict[float, dict[str, float | str]]) -> list[str]:
    """One job as a table: the fraction of the copy's rate that each contestant reaches, by size."""
    names = list(dict.fromkeys(name for row in found.values() for name in row if name != "copy"))
    lines = [
        f"### {job.name}",
        "",
        f"At the copy's rate (100 %) it would move {job.moves} times x: a copy moves 2.",
        "",
        "| x | copy, ms | " + " | ".join(names) + " |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    for size, row in found.items():
        cells = []
        for name in names:
            seconds = row.get(name, "")
            if isinstance(seconds, float):
                cells.append(f"{row['copy'] * job.moves / 2 / seconds:.0%} ({seconds * 1e3:.3g} ms)")
            else:
                cells.append(str(seconds))
        lines.append(f"| {amount(size)} | {row['copy'] * 1e3:.3g} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def amount(size: float) -> str:
    """Bytes as a person writes them."""
    return next(f"{size / unit:g} {name}" for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= unit)


def setting(torch: Any) -> list[str]:
    """The machine, the versions and the day."""
    card = torch.cuda.get_device_properties(0)
    found = []
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return [
        f"- card: {card.name}, {card.multi_processor_count} multiprocessors, L2 {card.L2_cache_size / 2**20:.0f} MiB",
        f"- CUDA {torch.version.cuda} of PyTorch, cuDNN {torch.backends.cudnn.version()}",
        f"- {', '.join(found)}; Python {platform.python_version()}",
        f"- measured on {date.today().isoformat()} by `python asv_bench/gpu_report.py`",
    ]


def main(arguments: list[str]) -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/performance/gpu.md", help="where the page goes; - for standard output")
    parser.add_argument("--most", type=float, default=SIZES[-1], help="the largest x, in bytes")
    parser.add_argument("--only", default="", help="jobs whose name has this in it")
    chosen = parser.parse_args(arguments)
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print("gpu_report needs PyTorch with CUDA: there is no torch here", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("gpu_report needs an NVIDIA GPU that PyTorch can use: there is none here", file=sys.stderr)
        return 2
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    torch._dynamo.config.cache_size_limit = 256
    lines = ["# Speed on a GPU", "", *setting(torch), ""]
    lines += [
        "float32, with weight and bias; each output is fresh memory of its own library. Percentages are of the copy's rate.",
        "",
    ]
    free, _ = torch.cuda.mem_get_info()
    for job in JOBS:
        if chosen.only not in job.name:
            continue
        found = {}
        for size in SIZES:
            if size <= chosen.most and size * 8 < free:
                print(f"{job.name}, {amount(size)}", file=sys.stderr, flush=True)
                found[size] = measure(job, size, torch)
        lines += table(job, found)
    lines += ["### What a call costs the host", "", "| 10 kB | microseconds |", "| --- | --- |"]
    lines += [f"| {name} | {spent:.1f} |" for name, spent in overheads(torch).items()]
    text = "\n".join(lines) + "\n"
    if chosen.out == "-":
        print(text)
    else:
        target = Path(chosen.out)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
