"""Does keepnorm agree with the libraries that are installed here? ``python -m keepnorm.conformance [PEER ...]``.

Runs the conformance suite, which comes with keepnorm, against every peer that is installed, or against those that are
named: each in its own process, because Keras has one backend for each process. It needs pytest. The versions may be any;
divergences of a peer are judged at the versions that the suite has them on file for, and counted at others.
"""

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

# Each peer, and the packages that must be there for it.
PEERS = {
    "numpy": ("numpy",),
    "torch": ("torch",),
    "keras_tensorflow": ("keras", "tensorflow"),
    "keras_jax": ("keras", "jax"),
    "keras_torch": ("keras", "torch"),
    "flax": ("flax",),
    "flax_nnx": ("flax",),
    "onnx": ("onnx",),
    "tensorflow": ("tensorflow",),
}


def suite() -> Path:
    """The folder of the suite: beside this file in an installation, at the root in a checkout.

    Raises
    ------
    FileNotFoundError
        If it is in neither place.
    """
    here = Path(__file__).parent
    for folder in (here / "_conformance", here.parents[1] / "conformance"):
        if (folder / "cases.py").is_file():
            return folder
    raise FileNotFoundError(
        f"the conformance suite is neither in {here / '_conformance'} nor in {here.parents[1] / 'conformance'}"
    )


def installed() -> list[str]:
    """The peers whose packages are installed."""
    return [name for name, packages in PEERS.items() if all(find_spec(package) for package in packages)]


def main(arguments: list[str] | None = None) -> int:
    """Run the suite; 0 if keepnorm is within its contract and agrees with every peer."""
    parser = argparse.ArgumentParser(prog="python -m keepnorm.conformance", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("peer", nargs="*", metavar="PEER", help=f"{', '.join(PEERS)}; none: all that are installed")
    parser.add_argument("--sample", type=int, help="so many cases instead of all, drawn by a fixed seed")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.peer if name not in PEERS]:
        parser.error(f"PEER must be one of {', '.join(PEERS)}; got {', '.join(unknown)}")
    if find_spec("pytest") is None:
        parser.error("the suite needs pytest: python -m pip install pytest ml_dtypes")
    failed = [name for name in options.peer or installed() if _run(name, options.sample)]
    if failed:
        print(f"not in agreement: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def _run(peer: str, sample: int | None) -> int:
    command = [sys.executable, "-m", "pytest", str(suite()), f"--peer={peer}", "-q", "-p", "no:cacheprovider"]
    if sample is not None:
        command.append(f"--sample={sample}")
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
