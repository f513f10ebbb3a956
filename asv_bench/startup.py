"""What a user waits for before the first answer, each time in a process of its own."""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from asv_bench import cases

SHAPE = (32, 64, 56, 56)  # large enough for two threads
RUNS = 5  # --tiny and the tests take one

_CALL = """
import sys, time
import numpy as np
import keepnorm as kn
x = np.ones(tuple(map(int, sys.argv[1:])), np.float32)
start = time.perf_counter()
kn.normalize(x, 1)
print(time.perf_counter() - start)
"""
_IMPORT = """
import sys, time
start = time.perf_counter()
__import__(sys.argv[1])
print(time.perf_counter() - start)
"""


def cold() -> list[float]:
    """Seconds of the first `normalize` with an empty cache folder: Numba's import, compilation and the start of threads."""
    times = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            times.append(_first_call(folder))
    return times


def warm() -> list[float]:
    """Seconds of the first `normalize` in a new process whose kernels are in the cache folder."""
    with tempfile.TemporaryDirectory() as folder:
        _first_call(folder)
        if not any(path.is_file() for path in Path(folder).rglob("*")):
            raise RuntimeError("a warm call needs kernels in the cache folder; got an empty folder after the first call")
        return [_first_call(folder) for _ in range(RUNS)]


def imports() -> dict[str, list[float]]:
    """Seconds of `import keepnorm`, of which `import numpy` is a part, and of that alone, in turn."""
    names = ("keepnorm", "numpy")
    for name in names:
        _seconds(_IMPORT, [name])  # writes the bytecode, once in a life
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(RUNS):
        for name in (*names, *reversed(names)):
            times[name].append(_seconds(_IMPORT, [name]))
    return times


def _first_call(folder: str) -> float:
    return _seconds(_CALL, [str(n) for n in cases.sized(SHAPE)], NUMBA_CACHE_DIR=folder)


def _seconds(code: str, arguments: list[str], **environment: str) -> float:
    # asv puts the package on the path by other means than the environment, which a process of its own inherits.
    found = find_spec("keepnorm")
    if found is None or found.origin is None:
        raise ImportError("keepnorm must be installed to be measured; got no such package")
    inherited = os.environ.get("PYTHONPATH")
    paths = [str(Path(found.origin).parent.parent), *([inherited] if inherited else [])]
    every = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=every, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a fresh process must end with 0; got {done.returncode} and {done.stderr[-500:]!r}")
    return float(done.stdout.split()[-1])
