"""Moments of a stream of batches."""

from collections.abc import Hashable, Mapping
from functools import reduce
from operator import add
from typing import Any, Never, Self

import numpy as np

from keepnorm import policies
from keepnorm.axes import Keep
from keepnorm.functional import moments
from keepnorm.keywords import REQUIRED, check, check_sizes, described
from keepnorm.moments import Moments
from keepnorm.states import saved
from keepnorm.states.fitting import fitted
from keepnorm.transfer import to_numpy

Array = Any


class Accumulator:
    """Moments of a stream: any number of batches, of any size and of any array library.

    Accumulators of several workers add up, ``a + b``; each can be pickled, and saved by :meth:`to_dict`.

    Parameters
    ----------
    keep : int, tuple of int, or pattern
        The axes that survive, the same for every batch.
    nan_policy : {"propagate", "omit", "raise"}
        What a NaN does, as in :func:`keepnorm.moments`.
    **sizes : int
        Sizes of axes that a pattern groups, such as ``g=32``.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> seen = kn.Accumulator(keep=-1)
    >>> for batch in np.arange(12.0).reshape(3, 2, 2):
    ...     seen.update(batch)
    >>> seen.moments.count, seen.mean
    (6, array([5., 6.]))
    """

    # Slot i holds the moments of 2**i batches, like the bits of a counter, so that a long stream merges like a tree.

    def __init__(self, keep: Keep = REQUIRED, *, nan_policy: str = "propagate", **sizes: Any) -> None:
        check_sizes(Accumulator, keep, sizes)
        check(Accumulator, {}, keep=keep)
        policies.said(nan_policy)
        self.keep = keep
        self.nan_policy = nan_policy
        self.sizes = sizes
        self._slots: list[Moments | None] = []
        self._groups: dict[Hashable, Accumulator] = {}

    def update(
        self,
        batch: Array,
        where: Array | None = None,
        *,
        weights: Array | None = None,
        by: Array | None = None,
        **unknown: Never,
    ) -> None:
        """Add the values of a batch; with `where`, only those where it is true.

        Parameters
        ----------
        batch : array
            Of any library that :func:`keepnorm.moments` takes.
        where, weights : array, optional
            Which values count, and how often, as in :func:`keepnorm.moments`.
        by : sequence of labels, optional
            A label for each entry of the batch's first axis, which must be reduced: a class, a month. The entries of each
            label are added to its own :attr:`groups` too.

        Raises
        ------
        TypeError, ValueError
            As :func:`keepnorm.moments`; and if the kept axes or their sizes are not those of before, or `by` does not have a
            label for each entry. Nothing is added then.
        """
        check(Accumulator.update, unknown)
        said = {"nan_policy": self.nan_policy, "weights": weights, **self.sizes}
        carry = moments(batch, self.keep, where=where, **said)
        parts = {} if by is None else _parted(batch, by, {"where": where, "weights": weights})
        apart = {
            label: moments(part, self.keep, **options, nan_policy=self.nan_policy, **self.sizes)
            for label, (part, options) in parts.items()
        }
        # What raises does so before anything has changed.
        carry = self._fitting(carry)
        if by is not None and 0 in carry.keep:
            raise ValueError(f"by= labels the entries of axis 0, so that axis must be reduced; got keep={self.keep!r}")
        groups = {label: self._groups.get(label) or self._empty() for label in apart}
        apart = {label: groups[label]._fitting(part) for label, part in apart.items()}
        self._add(carry)
        self._groups.update(groups)
        for label, part in apart.items():
            groups[label]._add(part)

    def _empty(self) -> "Accumulator":
        """An accumulator of the same kind that has seen nothing."""
        return Accumulator(self.keep, nan_policy=self.nan_policy, **self.sizes)

    def _fitting(self, carry: Moments) -> Moments:
        """Moments of the cells that the others have."""
        return fitted(carry, next(filter(None, self._slots))) if any(s is not None for s in self._slots) else carry

    def _add(self, carry: Moments) -> None:
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

    @property
    def mean(self) -> Array:
        """The mean of each cell so far."""
        return self.moments.mean

    @property
    def var(self) -> Array:
        """The population variance of each cell so far."""
        return self.moments.var

    @property
    def std(self) -> Array:
        """The population standard deviation of each cell so far."""
        return self.moments.std

    @property
    def groups(self) -> dict[Hashable, Moments]:
        """The moments of each label that ``update(by=)`` has met.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> seen = kn.Accumulator(keep=1)
        >>> seen.update(np.array([[1.0], [2.0], [6.0]]), by=["cat", "cat", "dog"])
        >>> {label: m.mean for label, m in seen.groups.items()}
        {'cat': array([1.5]), 'dog': array([6.])}
        """
        return {label: group.moments for label, group in self._groups.items()}

    def __add__(self, other: object) -> "Accumulator":
        """An accumulator of what both have seen."""
        if not isinstance(other, Accumulator):
            return NotImplemented
        if (self.keep, self.sizes, self.nan_policy) != (other.keep, other.sizes, other.nan_policy):
            raise ValueError(f"accumulators of other axes or policies do not add up; got {self!r} and {other!r}")
        both = self._empty()
        both._slots = list(self._slots)
        if any(slot is not None for slot in other._slots):
            both._add(both._fitting(other.moments))
        for source in (self, other):
            for label, group in source._groups.items():
                both._groups[label] = (both._groups.get(label) or both._empty()) + group
        return both

    def __radd__(self, other: object) -> "Accumulator":
        """Let ``sum(accumulators)`` work: it starts at 0."""
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    def to_dict(self) -> dict[str, Any]:
        """What has been seen as plain numbers, lists and words; `from_dict` goes on from there with the same bits."""
        return {
            "keep": self.keep if isinstance(self.keep, str | int) else list(self.keep),
            "sizes": dict(self.sizes),
            "nan_policy": self.nan_policy,
            "slots": [None if slot is None else slot.to_dict() for slot in self._slots],
            "groups": [[label, group.to_dict()] for label, group in self._groups.items()],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The accumulator that `to_dict` wrote, its state on NumPy.

        Raises
        ------
        TypeError
            If the state is no mapping, or something in it is of another kind.
        ValueError
            If a key is missing, or something in it fits no accumulator.
        """
        found = saved.entries(state, {"keep", "slots"}, ("sizes", "nan_policy", "groups"))
        keep, sizes, slots = found["keep"], found.get("sizes", {}), found["slots"]
        if not isinstance(slots, list | tuple) or not isinstance(sizes, Mapping):
            raise TypeError(f"slots must be a list and sizes a mapping; got {described(slots)} and {described(sizes)}")
        made = cls(tuple(keep) if isinstance(keep, list) else keep, nan_policy=found.get("nan_policy", "propagate"), **sizes)
        made._slots = [None if slot is None else Moments.from_dict(slot) for slot in slots]
        filled = [slot for slot in made._slots if slot is not None]
        for slot in filled:
            fitted(slot, filled[0])
        for label, group in found.get("groups", []):
            made._groups[label] = cls.from_dict(group)
        return made

    def __repr__(self) -> str:
        seen = repr(self.moments) if any(slot is not None for slot in self._slots) else "nothing yet"
        groups = f", {len(self._groups)} groups" if self._groups else ""
        return f"Accumulator(keep={self.keep!r}: {seen}{groups})"


def _parted(batch: Array, by: Any, options: Mapping[str, Array | None]) -> dict[Hashable, tuple[Array, dict[str, Any]]]:
    """The entries of each label, and their part of what is said about them."""
    labels = by if isinstance(by, list | tuple) else to_numpy(by).tolist()
    shape = tuple(batch.shape)
    if not shape or len(labels) != shape[0]:
        raise ValueError(f"by must have a label for each entry of axis 0 of the batch with shape {shape}; got {len(labels)}")
    rows: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        rows.setdefault(label, []).append(i)

    def part(values: Array | None, places: list[int]) -> Array | None:
        if values is not None and hasattr(values, "isel"):  # with names, it goes with the batch by them
            return values.isel({batch.dims[0]: places}) if batch.dims[0] in values.dims else values
        if values is None or values.ndim < len(shape) or values.shape[0] == 1:
            return values
        return values[np.asarray(places)]

    return {
        label: (batch[np.asarray(places)], {name: part(values, places) for name, values in options.items()})
        for label, places in rows.items()
    }
