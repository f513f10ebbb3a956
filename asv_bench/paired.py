"""Measure two calls in turn, A B B A, in one process: what disturbs the machine disturbs both.

Each pair gives one ratio; the median of the ratios is the figure, and the quartiles are its spread.
"""

import gc
import math
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

Call = Callable[[], object]

# Rounds of A B B A: at least, at most, and until the seconds are up. --tiny and the tests take one round.
LEAST, MOST, SECONDS = 5, 25, 2.0

# OpenMP's idle workers spin for some milliseconds before they sleep, and those of one side take a core from the other.
# So each sample waits until they sleep, and is preceded by a call that does not count and wakes its own side's workers.
SETTLE = 5e-3

# A sample shorter than this is repeated. After a pause what lies behind the cores' own caches takes two milliseconds to come
# up to speed: the second call on 4 to 100 MB takes a tenth to a third longer than the third, most where nothing else takes
# time. (It was 0.2 ms, for the clock's own 50 ns.)
SAMPLE = 4e-3


def measure(ours: Call, other: Call) -> dict[str, Any]:
    """Times of both calls in seconds, and other / ours: above 1, ours is faster.

    Returns
    -------
    dict
        ``ours`` and ``other`` (medians), ``ours_spread`` and ``other_spread`` (quartiles), ``ratio``, ``ratio_spread`` and
        ``pairs``, how many ratios there were.
    """
    ours_repeats, other_repeats = _repeats(ours), _repeats(other)
    a: list[float] = []
    b: list[float] = []
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + SECONDS
        while len(a) < 2 * LEAST or (len(a) < 2 * MOST and time.perf_counter() < end):
            a.append(_sample(ours, ours_repeats))
            b.append(_sample(other, other_repeats))
            b.append(_sample(other, other_repeats))
            a.append(_sample(ours, ours_repeats))
    finally:
        if was_enabled:
            gc.enable()
    ratios = [y / x for x, y in zip(a, b, strict=True)]
    return {
        "ours": median(a),
        "ours_spread": spread(a),
        "other": median(b),
        "other_spread": spread(b),
        "ratio": median(ratios),
        "ratio_spread": spread(ratios),
        "pairs": len(ratios),
    }


def alone(call: Call) -> dict[str, Any]:
    """Median and quartiles of one call, in seconds, measured the same way."""
    repeats = _repeats(call)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < LEAST or (len(times) < 2 * MOST and time.perf_counter() < end):
        times.append(_sample(call, repeats))
    return {"seconds": median(times), "spread": spread(times)}


def spread(values: list[float]) -> list[float]:
    """The lower and the upper quartile."""
    if len(values) < 2:
        return [values[0], values[0]]
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return [lower, upper]


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _repeats(call: Call) -> int:
    """How many calls a sample needs; the first calls compile, fill caches and touch pages, and are not counted."""
    call()
    return max(1, min(1000, math.ceil(SAMPLE / max(_sample(call, 1), 1e-9))))


def _sample(call: Call, repeats: int) -> float:
    time.sleep(SETTLE)
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
