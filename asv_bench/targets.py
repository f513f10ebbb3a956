"""The speeds that keepnorm promises, measured: `python -m asv_bench.targets` prints one row for each, met or not.

Two threads on both sides, medians of paired runs. Leave the machine alone meanwhile; it takes some ten minutes.
`--json FILE` keeps the record, from which `python -m asv_bench.report FILE` makes the page of the documentation.
The exit status is 0 if every row is met. `--tiny` is a rehearsal: it runs everything, judges nothing, and its exit status is
0 if everything ran.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from asv_bench import cases, machine, paired, startup


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if options.tiny:
        shrink()
    cores = machine.pin()
    if cores < machine.THREADS and not options.tiny:
        raise SystemExit(f"the goals are for {machine.THREADS} threads; this process may use {cores}")
    # Not at the top: frameworks must not start before the cores are chosen.
    from asv_bench import goals, record

    chosen = [goal for goal in goals.goals() if options.only.lower() in goal.what.lower()]
    if not chosen:
        raise SystemExit(f"--only must be a part of a row's name; got {options.only!r}")
    began, load = time.monotonic(), machine.load()
    if load > 0.5:
        _tell(f"this machine is busy (load {load:.1f}): the figures will be those of a busy machine")
    seconds: dict[str, list[float]] = {}
    for goal in chosen:
        if isinstance(goal, goals.StartGoal):
            seconds[goal.kind] = getattr(startup, goal.kind)()
            _tell(f"{goal.what}: {', '.join(f'{s:.2f}' for s in seconds[goal.kind])} s")
    paired_goals = [goal for goal in chosen if isinstance(goal, goals.Goal)]
    with machine.our_threads():
        if machine.our_thread_count() < machine.THREADS and not options.tiny:
            raise SystemExit(f"keepnorm must use {machine.THREADS} threads here; got {machine.our_thread_count()}")
        seen = record.measured((pair for goal in paired_goals for pair in goal.pairs), _tell)
        found = machine.description() | {"load": load}
    rows = [goal.judge(seconds if isinstance(goal, goals.StartGoal) else seen) for goal in chosen]
    if options.tiny:
        rows = [row | {"met": None} for row in rows]
    print(table(rows))
    if options.json:
        entries = [{"case": label, "against": name, **entry} for (label, name), entry in seen.items()]
        whole = {
            "machine": found,
            "tiny": options.tiny,
            "minutes": round((time.monotonic() - began) / 60, 1),
            "goals": rows,
            "entries": entries,
            "startup": seconds,
        }
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    return 0 if all(row["figure"] is not None if options.tiny else row["met"] for row in rows) else 1


def shrink() -> None:
    """Everything at sizes and lengths at which no figure means anything: a rehearsal."""
    cases.LIMIT = 4096
    paired.LEAST = paired.MOST = startup.RUNS = 1
    paired.SECONDS = paired.SETTLE = paired.SAMPLE = 0.0


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| what | measured | goal | |", "| --- | --- | --- | --- |"]
    for row in rows:
        figure = "; ".join(row["reasons"])
        if row["figure"] is not None:
            figure = f"{row['figure']:.2f} {row['unit']} ({row['summary']})"
        bound = f"{'at most' if row['at_most'] else 'at least'} {row['goal']:g} {row['unit']}"
        unjudged = "**not measured**" if row["figure"] is None else "rehearsal"
        verdict = {True: "met", False: "**not met**", None: unjudged}[row["met"]]
        lines.append(f"| {row['what']} | {figure} | {bound} | {verdict} |")
    return "\n".join(lines)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="python -m asv_bench.targets", description=__doc__)
    options.add_argument("--json", type=Path, metavar="FILE", help="keep the record")
    options.add_argument("--only", default="", metavar="WORDS", help="only rows whose name contains this")
    options.add_argument("--tiny", action="store_true", help="a rehearsal at tiny sizes: the figures mean nothing")
    return options.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
