"""Time against size, 1 kB to 1 GB, and against threads: channels first, channels last, and the moments alone."""

from collections.abc import Callable
from typing import Any

import numpy as np

import keepnorm as kn
from asv_bench import cases, machine, paired

Array = Any

CALLS: dict[str, Callable[[Array], Any]] = {
    "normalize channels first": lambda x: kn.normalize(x.reshape(-1, 5, 50), 1),
    "normalize channels last": lambda x: kn.normalize(x.reshape(-1, 50), 1),
    "layer norm": lambda x: kn.layer_norm(x.reshape(-1, 250), axes=1),
    "moments": lambda x: kn.moments(x.reshape(-1, 50), 1),
}
SIZES = tuple(10**n for n in range(3, 10))
THREADS = tuple(n for n in (1, 2, 4, 8, 16, 32, 64) if n <= machine.cores())


def _array(nbytes: int) -> Array:
    """A random block, repeated: a gigabyte of random numbers would take longer than what is measured."""
    values = nbytes // 4
    if cases.LIMIT is not None:
        values = min(values, cases.LIMIT // 250 * 250)
    if 4 * values * 3 > machine.free_bytes():
        raise NotImplementedError(f"{nbytes} bytes need {4 * values * 3} bytes of free memory; got {machine.free_bytes()}")
    block = np.random.default_rng(0).standard_normal(min(values, 250_000), dtype=np.float32)
    return np.resize(block, values)


class Sizes:
    param_names = ("operation", "bytes", "threads")
    params = (tuple(CALLS), SIZES, THREADS)
    timeout = 300

    def setup(self, operation: str, nbytes: int, threads: int) -> None:
        self.x, self.function = _array(nbytes), CALLS[operation]
        self.threads = kn.threads(threads)
        self.threads.__enter__()
        self.function(self.x)

    def teardown(self, *_: Any) -> None:
        # Not there where setup was skipped.
        if hasattr(self, "threads"):
            self.threads.__exit__(None, None, None)

    def time_call(self, *_: Any) -> None:
        self.function(self.x)

    def track_throughput(self, *_: Any) -> float:
        x, function = self.x, self.function
        return float(x.nbytes / paired.alone(lambda: function(x))["seconds"] / 1e9)

    track_throughput.unit = "GB/s"  # type: ignore[attr-defined]


class Threads:
    """One thread against several on the same array, in turn."""

    param_names = ("operation", "threads")
    params = (tuple(CALLS), THREADS)
    timeout = 300

    def setup(self, operation: str, threads: int) -> None:
        self.x, self.function, self.count = _array(10**8), CALLS[operation], threads

    def track_times_one_thread(self, *_: Any) -> float:
        def on(count: int) -> Callable[[], Any]:
            def call() -> Any:
                with kn.threads(count):
                    return self.function(self.x)

            return call

        return float(paired.measure(on(self.count), on(1))["ratio"])

    track_times_one_thread.unit = "x"  # type: ignore[attr-defined]
