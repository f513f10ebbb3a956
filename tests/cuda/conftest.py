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

    import numpy as np
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    def shared_array(self, shape, dtype):
        """The array of a block for this line of the kernel, one for all its threads.

        The simulator's own looks for the array and then makes it (numba-cuda 0.30): two threads at once get two arrays, and
        now and then a sum is wrong. No kernel is: on a device the array is there before any thread.
        """
        caller = sys._getframe(1)
        line = (caller.f_code.co_filename, caller.f_lineno)
        return self._allocations.setdefault(line, np.empty(shape, dtype))

    FakeCUDAShared.array = shared_array


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/cuda/" in item.path.as_posix():
            # What a device does without a word, NumPy's scalars warn of.
            for message in ("invalid value encountered", "divide by zero encountered", "overflow encountered"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{message}:RuntimeWarning"))
