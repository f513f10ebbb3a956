"""These tests run in Numba's CUDA simulator, in a process of their own: NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/cuda."""

import os
import sys

import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"

if not SIMULATED:
    collect_ignore_glob = ["test_*.py"]
else:
    # The simulator polls its threads without ever sleeping: with Python's usual 5 ms every barrier would take that long.
    sys.setswitchinterval(1e-5)


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/cuda/" in item.path.as_posix():
            # What a device does without a word, NumPy's scalars warn of.
            for message in ("invalid value encountered", "divide by zero encountered", "overflow encountered"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{message}:RuntimeWarning"))
