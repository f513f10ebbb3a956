"""What the suite found, for people: docs/conformance.md from the divergences on file, and the full tables of a run.

``python -m conformance.report`` writes docs/conformance.md. A full session with ``--report`` writes its numbers into
build/conformance/report.json, and the tables of all sessions so far into build/conformance/report.md; both are artefacts
of a run, and in no commit.
"""

import json
from pathlib import Path
from typing import Any

from . import divergences
from .session import Session

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
BUILD = Path("build") / "conformance"

INTRODUCTION = """\
# Conformance: where libraries differ, and which one is right

The conformance suite asks keepnorm and nine peers the same questions and compares both with the exact answer. This page
is generated from the divergences that the suite has on file (`python -m conformance.report`).

Every case is a small question: an array of some shape, dtype and memory layout, kept axes, eps, weight and bias, and a
training step, an inference, an update of running moments or a backward pass. Three answers are compared: the exact one
(fractions, or sums in extended precision), keepnorm's, and the peer's own, from its own functions and its own autograd.

- A case **passes** if keepnorm is within its accuracy contract, keepnorm and the peer differ by no more than the peer's own
  error and ours, and every larger error of the peer is on file with its cause.
- A peer is **off** if its error is larger than the rule of `conformance/tolerance.py`: twice the error of a good sum in its
  dtype, times the digits that the offset of the data costs.
- The **largest error** of any result (output, moments, gradients) is in units in the last place of its dtype, for the output
  at max(|y|, 1); "inf" is NaN or infinity where there is a number.

To run it against the versions that you have installed: `python -m pip install pytest ml_dtypes`, then
`python -m keepnorm.conformance` for every library that is there, or `python -m keepnorm.conformance torch` for one.
"""


def update(session: Session) -> None:
    """Write a session's numbers into the report, and its tables anew."""
    session.file = divergences.load(session.name or "")
    path = BUILD / "report.json"
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    content[str(session.name)] = session.summary()
    BUILD.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    (BUILD / "report.md").write_text(tables(content))


def tables(content: dict[str, Any]) -> str:
    """The numbers of all sessions so far, peer by peer and layout by layout."""
    peers = dict(sorted(content.items()))
    parts = ["# Conformance: the numbers of a run", _peers(peers)]
    for name, numbers in peers.items():
        parts += [f"## {name}", _table(numbers), _limits(numbers)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def page() -> str:
    """The text of docs/conformance.md."""
    files = {path.stem: divergences.load(path.stem) for path in sorted(divergences.FOLDER.glob("*.toml"))}
    summary = _rows(
        ["peer", "versions", "cases in which the peer is off", "its largest error"],
        [
            [name, _versions(file.versions), sum(row.cases for row in file.rows), _worst(file.rows)]
            for name, file in files.items()
        ],
    )
    parts = [INTRODUCTION, "## Peers", summary]
    for name, file in files.items():
        title = f"{name} (KERAS_BACKEND={name.partition('_')[2]})" if name.startswith("keras_") else name
        parts.append(f"## {title}")
        parts += [_cause(cause, [row for row in file.rows if row.cause == key]) for key, cause in file.causes.items()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _cause(cause: dict[str, str], rows: list[divergences.Row]) -> str:
    source = [f"`{cause['source']}`"] if "source" in cause else []
    link = [f"<{cause['link']}>"] if "link" in cause else []
    where = f" Source: {', '.join(source + link)}." if source + link else ""
    operations = ", ".join(sorted({row.operation for row in rows}))
    text = (
        f"**{sum(row.cases for row in rows)} cases** of {operations}: {cause['text']}.{where} Largest error: {_worst(rows)}."
    )
    return text + (f"\n\n```python\n{cause['reproduce'].strip()}\n```" if "reproduce" in cause else "")


def _worst(rows: list[divergences.Row]) -> str:
    return f"{max((error for row in rows for error in row.worst.values()), default=0.0):.3g}"


def _rows(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _peers(peers: dict[str, Any]) -> str:
    head = [
        "peer",
        "versions",
        "cases",
        "passed",
        "cannot express",
        "peer off",
        "our worst, to float32",
        "any dtype",
        "their worst",
    ]
    return _rows(
        head,
        [
            [name, _versions(n["version"]), n["cases"], n["passed"], sum(n["not_expressible"].values()), n["off"]]
            + [n[key] for key in ("our_worst_ulp_to_float32", "our_worst_ulp", "their_worst_ulp")]
            for name, n in peers.items()
        ],
    )


def _table(numbers: dict[str, Any]) -> str:
    return _rows(
        ["operation", "mode", "layout", "cases", "passed", "peer off", "our worst", "their worst"],
        [
            [g[k] for k in ("operation", "mode", "layout", "cases", "passed", "off", "our_worst_ulp", "their_worst_ulp")]
            for g in sorted(numbers["groups"], key=lambda g: (g["operation"], g["mode"], g["layout"]))
        ],
    )


def _limits(numbers: dict[str, Any]) -> str:
    if not numbers["not_expressible"]:
        return ""
    return "Not expressible:\n\n" + "\n".join(f"- {count} cases: {why}" for why, count in numbers["not_expressible"].items())


if __name__ == "__main__":
    PAGE.write_text(page())
