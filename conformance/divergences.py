"""The divergences on file: where a peer is off the exact answer by more than the rule, each with its cause.

``divergences/PEER.toml`` has the versions that it holds for, ``[causes.KEY]`` with text, source and link, and ``rows``, one
for each operation, dtype and condition class: how many of all cases diverge, the worst error of each field in units in the
last place (``inf``: NaN where there is a number, or the reverse, or an error raised), and the witness, the worst case.
"""

import tomllib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .verdict import Verdict

FOLDER = Path(__file__).parent / "divergences"
UNEXPLAINED = "unexplained"

# Times the rule. A divergence is filed from 1, what is not on file fails from 2, what is on file has gone at 0.5: last bits
# of most peers depend on the processor.
UNEXPECTED = 2.0
GONE = 0.5


class Row(NamedTuple):
    """One class of divergences."""

    operation: str
    dtype: str
    condition: str
    cases: int
    worst: dict[str, float]
    witness: str
    cause: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What a row is looked up by."""
        return self.operation, self.dtype, self.condition


@dataclass
class File:
    """What is on file for a peer."""

    versions: dict[str, str] = field(default_factory=dict)
    causes: dict[str, dict[str, str]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def covers(self, verdict: Verdict) -> bool:
        """Whether the divergence is on file, and not ten times as large as there."""
        key = (verdict.case.operation, verdict.case.dtype, verdict.case.condition)
        return any(
            row.key == key and verdict.field in row.worst and (verdict.peer or 0.0) <= 10 * row.worst[verdict.field]
            for row in self.rows
        )


def load(peer: str) -> File:
    """The file of a peer; an empty one if it has none."""
    path = FOLDER / f"{peer}.toml"
    if not path.exists():
        return File()
    content = tomllib.loads(path.read_text())
    return File(content["versions"], content.get("causes", {}), [Row(**row) for row in content.get("rows", [])])


def witnesses(peer: str) -> frozenset[str]:
    """The cases that every sample must hold."""
    return frozenset(row.witness for row in load(peer).rows)


def gather(verdicts: Iterable[Verdict], old: File) -> list[Row]:
    """Rows for the divergences that were found, with the causes that were on file."""
    causes = {row.key: row.cause for row in old.rows}
    groups: dict[tuple[str, str, str], list[Verdict]] = defaultdict(list)
    for v in verdicts:
        if not v.peer_ok:
            groups[v.case.operation, v.case.dtype, v.case.condition].append(v)
    rows = []
    for key, group in sorted(groups.items()):
        worst: dict[str, float] = {}
        for v in group:
            worst[v.field] = max(worst.get(v.field, 0.0), v.peer or 0.0)
        witness = max(group, key=lambda v: (v.excess, v.case.name)).case.name
        rows.append(Row(*key, len({v.case.name for v in group}), worst, witness, causes.get(key, UNEXPLAINED)))
    return rows


def write(peer: str, content: File) -> None:
    """Write a peer's file."""
    lines = [
        f"# {len(content.rows)} classes of cases in which {peer} is off the exact answer; see divergences.py for the format."
    ]
    lines += ["", "[versions]", *(f"{name} = {_quote(version)}" for name, version in content.versions.items())]
    for key, cause in content.causes.items():
        lines += ["", f"[causes.{key}]", *(f"{name} = {_quote(text)}" for name, text in cause.items())]
    for row in content.rows:
        worst = ", ".join(f"{name} = {_number(value)}" for name, value in row.worst.items())
        lines += ["", "[[rows]]", f"operation = {_quote(row.operation)}", f"dtype = {_quote(row.dtype)}"]
        lines += [f"condition = {_quote(row.condition)}", f"cause = {_quote(row.cause)}", f"cases = {row.cases}"]
        lines += [f"worst = {{ {worst} }}", f"witness = {_quote(row.witness)}"]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{peer}.toml").write_text("\n".join(lines) + "\n")


def _quote(text: str) -> str:
    if "\n" in text:
        return f"'''\n{text.strip()}\n'''"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _number(value: float) -> str:
    return "inf" if value == float("inf") else f"{value:.2e}"
