"""Three verdicts for every case: ours against the oracle, the peer against the oracle, ours against the peer."""

from typing import NamedTuple

import ml_dtypes
import numpy as np

from .cases import Case
from .data import Array, Data
from .oracle import REAL, Answer, Truth
from .tolerance import Bound, bounds, result_dtype

WRONG = float("inf")  # the error of NaN where there is a number, and of a number where there is NaN


class Verdict(NamedTuple):
    """One field of one case. Errors are in units in the last place of the result's dtype; None without an answer."""

    case: Case
    field: str  # of an Answer, or "raises"
    ours: float | None
    peer: float | None
    ours_ok: bool
    excess: float  # the peer's error over what the rule allows it
    between_ok: bool

    @property
    def peer_ok(self) -> bool:
        """The peer is where the rule allows it to be."""
        return self.excess <= 1

    @property
    def says(self) -> str:
        """What is off, in a line."""
        off = [name for name, ok in (("ours", self.ours_ok), ("peer", self.peer_ok), ("ours/peer", self.between_ok)) if not ok]
        return f"{self.case.name} {self.field}: {', '.join(off)} off (ours {_say(self.ours)}, peer {_say(self.peer)} ulp)"


def _say(ulp: float | None) -> str:
    return "-" if ulp is None else f"{ulp:.3g}"


def raised(case: Case) -> Verdict:
    """The peer raised an error on a case that it should be able to express."""
    return Verdict(case, "raises", None, WRONG, True, WRONG, True)


def verdicts(case: Case, data: Data, truth: Truth, ours: Answer | None, peer: Answer | None) -> list[Verdict]:
    """Compare every field that the oracle answers."""
    found = []
    with np.errstate(all="ignore"):
        for name, bound in bounds(case, data, truth).items():
            exact = round_far(getattr(truth.answer, name), result_dtype(name, case))
            a, b = (None if answer is None else getattr(answer, name) for answer in (ours, peer))
            off_a, off_b = (None if value is None else distance(np.asarray(value), exact) for value in (a, b))
            found.append(
                Verdict(
                    case=case,
                    field=name,
                    ours=_worst(off_a, bound.unit),
                    peer=_worst(off_b, bound.unit),
                    ours_ok=(_worst(off_a, bound.ours) or 0.0) <= 1,
                    excess=_worst(off_b, bound.peer) or 0.0,
                    between_ok=a is None or b is None or _between(np.asarray(a), np.asarray(b), bound, off_b),
                )
            )
    return found


def round_far(exact: Array, dtype: np.dtype) -> Array:
    """What the dtype cannot hold becomes infinite, as rounding makes it; everything else stays exact."""
    largest = float(ml_dtypes.finfo(dtype).max)
    return np.where(np.abs(exact) > largest, np.copysign(REAL("inf"), exact), exact)


def distance(got: Array, exact: Array) -> Array:
    """|got - exact|; 0 where both are the same infinity or both NaN, infinite where only one of them is a number."""
    if got.shape != exact.shape:
        return np.full(exact.shape or (1,), REAL("inf"))
    got = got.astype(REAL)
    same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    off = np.abs(got - exact)
    return np.where(same, 0, np.where(np.isfinite(off), off, REAL("inf")))


def _worst(off: Array | None, unit: Array) -> float | None:
    if off is None:
        return None
    if not np.isfinite(off).all():
        return WRONG
    return float(np.max(np.where(off == 0, 0, off / unit), initial=0))


def _between(ours: Array, peer: Array, bound: Bound, off: Array) -> bool:
    """Ours and the peer may differ by the peer's own measured error and what ours may be off, and by nothing more."""
    if ours.shape != peer.shape:
        return False
    comparable = np.isfinite(off)
    apart = np.where(comparable, distance(ours, peer.astype(REAL)), 0)
    # The last bits of a large error are lost in taking the differences.
    return bool(((apart == 0) | (apart <= bound.ours + off * (1 + 2.0**-40))).all())
