"""Moments of a stream of batches."""

from functools import reduce
from operator import add
from typing import Any, Never

from keepnorm.axes import Keep
from keepnorm.functional import moments
from keepnorm.keywords import REQUIRED, check, check_sizes
from keepnorm.moments import Moments, fitted

Array = Any


class Accumulator:
    """Moments of a stream: any number of batches, of any size.

    Parameters
    ----------
    keep : int, tuple of int, or pattern
        The axes that survive, the same for every batch.
    **sizes : int
        Sizes of axes that a pattern groups, such as ``g=32``.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> seen = kn.Accumulator(keep=-1)
    >>> for batch in np.arange(12.0).reshape(3, 2, 2):
    ...     seen.update(batch)
    >>> seen.moments.count, seen.moments.mean
    (6, array([5., 6.]))
    """

    # Slot i holds the moments of 2**i batches, like the bits of a counter, so that a long stream merges like a tree.

    def __init__(self, keep: Keep = REQUIRED, **sizes: int) -> None:
        check_sizes(Accumulator, keep, sizes)
        check(Accumulator, {}, keep=keep)
        self.keep = keep
        self.sizes = sizes
        self._slots: list[Moments | None] = []

    def update(self, batch: Array, where: Array | None = None, **unknown: Never) -> None:
        """Add the values of a batch; with `where`, only those where it is true.

        Raises
        ------
        TypeError, ValueError
            As :func:`keepnorm.moments`; and if the kept axes or their sizes are not those of before. Nothing is added then.
        """
        check(Accumulator.update, unknown)
        carry = moments(batch, self.keep, where=where, **self.sizes)
        if any(self._slots):
            carry = fitted(carry, next(filter(None, self._slots)))  # raises before anything has changed
        for i, held in enumerate(self._slots):
            if held is None:
                self._slots[i] = carry
                return
            carry = held.merge(carry)
            self._slots[i] = None
        self._slots.append(carry)

    @property
    def moments(self) -> Moments:
        """The moments of all batches so far.

        Raises
        ------
        ValueError
            If there was no batch yet.
        """
        filled = [slot for slot in reversed(self._slots) if slot is not None]
        if not filled:
            raise ValueError("no batch yet: the accumulator has no moments before its first update")
        return reduce(add, filled)
