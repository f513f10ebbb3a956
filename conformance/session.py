"""What one session with one peer has found: counted, summed up, and put on file."""

from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from . import divergences
from .cases import Case
from .examine import examine, versions
from .verdict import Verdict

Group = tuple[str, str, str]


@dataclass
class Tally:
    """Numbers of one operation, mode and layout."""

    cases: int = 0
    passed: int = 0
    off: int = 0  # cases in which the peer is off by more than the rule
    ours: float = 0.0  # worst error of the output, in units in the last place
    theirs: float = 0.0


@dataclass
class Session:
    """The peer of a session (None: only ours and the oracle) and its findings."""

    name: str | None
    peer: ModuleType | None
    file: divergences.File
    tallies: dict[Group, Tally] = field(default_factory=dict)
    limits: Counter[str] = field(default_factory=Counter)
    found: list[Verdict] = field(default_factory=list)
    worst: dict[str, list[float]] = field(default_factory=dict)  # field: ours, theirs
    narrow: float = 0.0  # our worst output of data up to float32

    @property
    def pinned(self) -> bool:
        """Whether the installed versions are those that the divergences on file hold for."""
        return self.peer is not None and versions(self.peer) == self.file.versions

    def examine(self, case: Case) -> list[str]:
        """Put a case to everybody; what is wrong, one line each."""
        verdicts, reason = examine(case, self.peer)
        self.found += verdicts
        tally = self.tallies.setdefault(case.group, Tally())
        if self.peer is not None and reason:
            self.limits[reason] += 1
        else:
            tally.cases += 1
            tally.off += any(not v.peer_ok for v in verdicts)
        wrong = [v.says for v in verdicts if not (v.ours_ok and v.between_ok)]
        for v in verdicts:
            worst = self.worst.setdefault(v.field, [0.0, 0.0])
            worst[:] = max(worst[0], v.ours or 0.0), max(worst[1], v.peer or 0.0)
            if v.field == "output":
                if case.dtype != "float64":
                    self.narrow = max(self.narrow, v.ours or 0.0)
                tally.ours, tally.theirs = max(tally.ours, v.ours or 0.0), max(tally.theirs, v.peer or 0.0)
            if v.excess > divergences.UNEXPECTED and self.pinned and not self.file.covers(v):
                wrong.append(f"{v.says}, {v.excess:.3g} times what the rule allows: not on file (--record)")
        if not wrong and (self.peer is None or not reason):
            tally.passed += 1
        return wrong

    def record(self) -> None:
        """Put the divergences found on file."""
        assert self.name is not None
        assert self.peer is not None
        rows = divergences.gather(self.found, self.file)
        divergences.write(self.name, divergences.File(versions(self.peer), self.file.causes, rows))

    def summary(self) -> dict[str, Any]:
        """The numbers of this session, for the report."""
        assert self.peer is not None
        total = Tally(*(sum(getattr(t, n) for t in self.tallies.values()) for n in ("cases", "passed", "off")))
        return {
            "version": versions(self.peer),
            "backend": getattr(self.peer, "BACKEND", ""),
            "cases": total.cases,
            "passed": total.passed,
            "not_expressible": dict(self.limits.most_common()),
            "our_worst_ulp": _finite(self.worst["output"][0]),
            "our_worst_ulp_to_float32": _finite(self.narrow),
            "their_worst_ulp": _finite(self.worst["output"][1]),
            "worst_ulp": {name: {"ours": _finite(a), "theirs": _finite(b)} for name, (a, b) in self.worst.items()},
            "off": total.off,
            "groups": [
                {"operation": o, "mode": m, "layout": at, "cases": t.cases, "passed": t.passed, "off": t.off,
                 "our_worst_ulp": _finite(t.ours), "their_worst_ulp": _finite(t.theirs)}
                for (o, m, at), t in self.tallies.items()
            ],
            "divergences": [r._asdict() | {"worst": {k: _finite(v) for k, v in r.worst.items()}} for r in self.file.rows],
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The numbers of this session, for people."""
        worst = ", ".join(f"{name} {_say(a)}" for name, (a, _) in self.worst.items() if name != "raises")
        lines = [f"our worst errors, in units in the last place: {worst}"]
        if self.peer is None:
            return [f"{len({v.case.name for v in self.found})} cases of ours against the oracle", *lines]
        s = self.summary()
        named = ", ".join(" ".join(pair) for pair in s["version"].items())
        theirs = ", ".join(f"{name} {_say(b)}" for name, (_, b) in self.worst.items())
        return [
            f"{self.name} ({named}): {s['cases']} cases, {s['passed']} passed, {self.limits.total()} not expressible",
            *lines,
            f"theirs: {theirs}",
            f"{self.name} is off by more than the rule in {s['off']} cases; {len(self.file.rows)} classes of them are on file",
            *([] if self.pinned else ["the file is for other versions, so divergences are counted, not judged"]),
        ]


def _say(value: float) -> str:
    return f"{value:.3g}"


def _finite(value: float) -> float | str:
    """JSON has no infinity."""
    return "inf" if value == float("inf") else float(f"{value:.3g}")
