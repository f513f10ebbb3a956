"""What the simulator is trusted with."""

import threading
import time

import numpy as np
from numba.cuda.simulator import kernelapi


def test_all_threads_of_a_block_share_one_array(monkeypatch):
    class Slow:
        """NumPy, whose `empty` lets other threads in."""

        def __getattr__(self, name):
            return getattr(np, name)

        def empty(self, *arguments):
            time.sleep(0.002)
            return np.empty(*arguments)

    monkeypatch.setattr(kernelapi, "np", Slow())
    shared, found = kernelapi.FakeCUDAShared(0), []
    threads = [threading.Thread(target=lambda: found.append(shared.array(8, np.float64))) for _ in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len({id(array) for array in found}) == 1
