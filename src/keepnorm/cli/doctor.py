"""What `keepnorm doctor` tells: which engines can serve arrays here, with what, and what is in the way."""

import argparse
import platform
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from keepnorm.engines.backends import BACKENDS

_ALSO = (
    "ml_dtypes",
    "keras",
    "tensorflow",
    "tensorflow-cpu",
    "flax",
    "onnx",
    "tqdm",
    "pillow",
    "zarr",
    "matplotlib",
)


def run(_: argparse.Namespace) -> None:
    """The command."""
    for line in report():
        print(line)


def report() -> Iterator[str]:
    """The lines of the report."""
    yield f"keepnorm {_version('keepnorm') or '(not installed: no version)'}"
    yield f"Python {platform.python_version()} on {platform.platform()}"
    yield ""
    yield "engines"
    for engine in BACKENDS:
        found = {package: _version(package) for package in engine.needs}
        if all(found.values()):
            yield f"  {engine.name:9} {engine.serves}: " + ", ".join(f"{package} {v}" for package, v in found.items())
        else:
            missing = " and ".join(package for package, v in found.items() if not v)
            yield f"  {engine.name:9} not here: {engine.serves} need {missing} ({engine.install})"
    yield ""
    yield f"threading layer  {_layer()}"
    yield f"cache folder     {_cache()}"
    yield f"GPU              {_gpu()}"
    yield ""
    yield "also installed   " + (", ".join(f"{p} {v}" for p in _ALSO if (v := _version(p))) or "nothing that keepnorm knows")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _layer() -> str:
    from keepnorm.kernels.jit import threads

    return f"{threads.layer()}, {threads.available()} threads"


def _cache() -> str:
    from keepnorm.kernels.jit import folder

    place, fault = folder.find()
    return place or f"none: kernels are compiled anew in each process, since {fault} (NUMBA_CACHE_DIR sets another)"


def _gpu() -> str:
    """What the driver's own tool lists; asking a framework would load it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none: no NVIDIA driver found"
    try:
        answer = subprocess.run(
            [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"none: nvidia-smi does not answer ({type(error).__name__})"
    lines = answer.stdout.strip().splitlines()
    if answer.returncode or not lines:
        return f"none: nvidia-smi says {(answer.stderr or answer.stdout).strip().splitlines()[:1]}"
    return "; ".join(lines)
