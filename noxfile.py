"""Every check of keepnorm, one session each: `nox -l` is the manual, `nox` runs what is not marked as extra."""

import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"

PYPROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = "conformance/constraints.txt"
PEERS = ("torch", "keras_tensorflow", "keras_jax", "keras_torch", "flax", "flax_nnx", "onnx", "numpy", "tensorflow")

# Most of a run compiles kernels, in one thread: two test processes at most, since the kernels have threads of their own.
WORKERS = min(2, os.cpu_count() or 1)

FACTS = ("tests/test_explain.py", "tests/test_dialects.py")


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install keepnorm as it stands here, with some of its extras and groups, at the versions of the constraints file."""
    packages = nox.project.dependency_groups(PYPROJECT, *groups)
    session.install("--constraint", CONSTRAINTS, "--editable", f".[{extras}]" if extras else ".", *packages)


def pytest(session: nox.Session, *arguments: str, **environment: str) -> None:
    """Run tests in `WORKERS` processes; each begins with a half of the tests, and takes over what the other has left."""
    workers = (f"--numprocesses={WORKERS}", "--dist=worksteal")
    session.run("python", "-m", "pytest", *workers, *arguments, *session.posargs, env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's rules and its formatter, over everything."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, over src; mypy and pyright over a program that uses keepnorm rightly and wrongly."""
    install(session, "lint", "test")
    session.run("mypy")
    session.run("python", "-m", "pytest", "tests/test_typed.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite on NumPy and array-api-strict; tests of other libraries skip here and run in `backends`."""
    install(session, "test", extras="demo")
    pytest(session)


@nox.session
def files(session: nox.Session) -> None:
    """The statistics of files, with every library that reads them."""
    install(session, "test", extras="all")
    pytest(session, "tests/test_files.py", "tests/test_cli.py")


@nox.session
def oldest(session: nox.Session) -> None:
    """The kernels on the oldest versions of the dependencies that pyproject.toml admits."""
    if sys.version_info >= (3, 14):
        session.skip("the oldest Numba has no wheels for this Python: run nox on 3.11 to 3.13")
    oldest = [f"{name.replace('>=', '==')}.*" for name in PYPROJECT["project"]["dependencies"]]
    session.install("--editable", ".", *oldest, *nox.project.dependency_groups(PYPROJECT, "test"))
    kernels = (
        "moments",
        "gradients",
        "bits",
        "cache",
        "traffic",
        "halves",
        "own",
        "shifts",
        "vector",
        "repeated",
    )
    pytest(session, *(f"tests/test_{name}.py" for name in kernels))


@nox.session(default=False)
def newest(session: nox.Session) -> None:
    """The test suite on the newest pre-releases of the dependencies."""
    packages = (*PYPROJECT["project"]["dependencies"], *nox.project.dependency_groups(PYPROJECT, "test"))
    session.install("--pre", "--upgrade", *packages, "--editable", ".[demo]")
    pytest(session)


@nox.session
def demo(session: nox.Session) -> None:
    """The README's first command: the main job on real photographs."""
    session.install(".[demo]")
    picture = Path(session.create_tmp()) / "demo.png"
    session.run("keepnorm", "demo", "--save", str(picture))
    if not picture.stat().st_size:
        session.error(f"{picture} is empty")


@nox.session
def cudasim(session: nox.Session) -> None:
    """The CUDA kernels in Numba's simulator: no GPU needed."""
    if not list(Path("tests/cuda").glob("test_*.py")):
        session.skip("there are no CUDA kernels yet: no tests/cuda/test_*.py")
    install(session, "test", "cudasim")
    pytest(session, "tests/cuda", NUMBA_ENABLE_CUDASIM="1")


def compare(session: nox.Session, peer: str, *arguments: str) -> None:
    """Ours, one peer and the exact oracle; the code that `explain` prints for it, and the facts that its dialect states."""
    install(session, "test", peer)
    session.run("python", "-m", "pytest", "conformance", f"--peer={peer}", *arguments, *session.posargs)
    backend = {"KERAS_BACKEND": peer.removeprefix("keras_")} if peer.startswith("keras_") else {}
    session.run("python", "-m", "pytest", *FACTS, "-k", "spelling or fact", env=backend)


@nox.session
@nox.parametrize("peer", PEERS, ids=PEERS)
def conformance(session: nox.Session, peer: str) -> None:
    """Each peer in an environment of its own, over 900 cases drawn by a fixed seed; `nightly` runs all of them."""
    compare(session, peer, "--sample=900")


@nox.session(default=False)
@nox.parametrize("peer", PEERS, ids=PEERS)
def nightly(session: nox.Session, peer: str) -> None:
    """All conformance cases of each peer; `-- --report` writes build/conformance/report.md."""
    compare(session, peer)


@nox.session
def training(session: nox.Session) -> None:
    """Training steps, converted networks and layers, PyTorch, Keras and Flax side by side in one environment."""
    install(session, "test", "training", extras="demo")
    names = ("dialects", "porting", "renorm", "batchnorm", "layers_torch", "explain_call")
    files = (*(f"tests/test_{name}.py" for name in names), "tests/test_repository.py::test_the_examples_of_docstrings_run")
    pytest(session, "conformance/test_training.py", *files, KERAS_BACKEND="jax")


@nox.session
def backends(session: nox.Session) -> None:
    """The tests that another library changes, with PyTorch, JAX, dask and xarray: the same kind of array out as in."""
    install(session, "test", "backends", "statistics", extras="dask")
    names = (
        "backends",
        "capabilities",
        "torch",
        "torch_compile",
        "jax",
        "dask",
        "xarray",
        "batchnorm",
        "explain",
        "explain_call",
        "benchmarks",
        "repository",
        "gaps",
        "statistics",
        "statistics_peers",
        "layers_sklearn",
        "layers_transforms",
    )
    pytest(session, *(f"tests/test_{name}.py" for name in names), "tests/test_repeated.py::test_tensors_are_served_too")


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """More than 200,000 random calls on every engine, against the exact reference; prints how many."""
    install(session, "test", "backends", extras="dask")
    pytest(session, "tests/fuzz", KEEPNORM_FUZZ="1")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """The asv benchmarks in this environment; arguments go to `asv run`."""
    install(session, "bench")
    with session.chdir("asv_bench"):
        session.run("asv", "machine", "--yes")
        session.run("asv", "run", "--python=same", *(session.posargs or ["--quick"]))


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """The tests that need an NVIDIA GPU, with CUDA 13 (for CUDA 12: `nox -s gpu -- cuda12`)."""
    toolkit = "cuda12" if "cuda12" in session.posargs else "cuda13"
    install(session, "test", extras=toolkit)
    session.run("python", "-m", "pytest", "-m", "gpu", *(a for a in session.posargs if a != toolkit))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site in build/docs, every warning an error; its code runs, with the libraries that it names."""
    install(session, "test", "docs", "pages")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs")
    pytest(session, "tests/test_docs.py", "tests/test_site.py", KERAS_BACKEND="jax")
