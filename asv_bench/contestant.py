"""One side of a comparison, and the check that both sides compute the same thing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = Any

# The largest difference that still is the same computation, in units of the answer's own scale. It bounds mistakes, not
# accuracy: float32 sums of the peers are off by up to 2e-2 on these very arrays (the README's table). The difference that
# was seen is kept in the record.
TOLERANCE = {"float64": 1e-9, "float32": 3e-2, "uint8": 3e-2, "float16": 3e-2, "bfloat16": 1e-1}


class Contestant(NamedTuple):
    """A call ready to be measured, how its result becomes NumPy arrays, and how many threads it may use."""

    call: Callable[[], Any]
    fetch: Callable[[Any], tuple[Array, ...]]
    threads: int


def difference(ours: tuple[Array, ...], other: tuple[Array, ...]) -> float:
    """The largest difference of corresponding arrays, each in units of the largest value of ours, or of 1.

    Raises
    ------
    ValueError
        If there are not as many arrays on both sides, or their shapes differ.
    """
    if len(ours) != len(other):
        raise ValueError(f"both sides must give as many arrays; got {len(ours)} and {len(other)}")
    worst = 0.0
    for a, b in zip(ours, other, strict=True):
        if np.shape(a) != np.shape(b):
            raise ValueError(f"both sides must give the same shape; got {np.shape(a)} and {np.shape(b)}")
        wide = np.asarray(a, np.float64)
        gap = np.abs(wide - np.asarray(b, np.float64)).max(initial=0.0) / max(1.0, np.abs(wide).max(initial=0.0))
        worst = max(worst, float(gap)) if np.isfinite(gap) else np.inf
    return worst


def agree(ours: tuple[Array, ...], other: tuple[Array, ...], dtype: str, name: str) -> float:
    """The difference of two answers.

    Raises
    ------
    ValueError
        If it is more than TOLERANCE allows for the dtype: times of different computations are not compared.
    """
    gap = difference(ours, other)
    if not gap <= TOLERANCE[dtype]:
        raise ValueError(
            f"{name} must agree with keepnorm within {TOLERANCE[dtype]:g} to be compared; got a difference of {gap:.3g}"
        )
    return gap
