"""Whether every value of a strided array has a place of its own in memory: pure integers."""

from collections.abc import Sequence
from math import prod

import numpy as np


def distinct(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether no two values of an array share a byte; `strides` and `itemsize` count in the same unit.

    Examples
    --------
    >>> distinct((4, 3), (3, 1), 1), distinct((4, 3), (2, 1), 1), distinct((2, 3), (3, 2), 1)
    (True, False, True)
    """
    if 0 in shape:
        return True
    axes = sorted((abs(step), n) for step, n in zip(strides, shape, strict=True) if n > 1)
    reach = itemsize + sum(step * (n - 1) for step, n in axes)
    # An axis whose step is beyond all that the axes below it reach brings no two values together: what is left decides.
    while axes and axes[-1][0] >= reach - axes[-1][0] * (axes[-1][1] - 1):
        step, n = axes.pop()
        reach -= step * (n - 1)
    if not axes:
        return True
    if prod(n for _, n in axes) * itemsize > reach:
        return False
    places = np.zeros(1, np.int64)
    for step, n in axes:
        places = np.add.outer(places, step * np.arange(n)).reshape(-1)
    places.sort()
    return bool((np.diff(places) >= itemsize).all())
