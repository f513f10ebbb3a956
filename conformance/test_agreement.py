"""Every case: ours against the oracle, the peer against the oracle, ours against the peer."""

import warnings
from typing import Any

import pytest

from .cases import Case, all_cases
from .divergences import GONE, UNEXPLAINED
from .examine import examine
from .session import Session


def test_agrees(group: list[Case], session: Session) -> None:
    wrong = [line for case in group for line in session.examine(case)]
    assert not wrong, f"{len(wrong)} findings in {len(group)} cases:\n" + "\n".join(wrong[:20])


def test_divergences_on_file_are_there(session: Session) -> None:
    """Strict: a divergence that has gone must be taken off the file (--record)."""
    if not session.pinned:
        pytest.skip("the divergences on file are those of other versions")
    cases = {case.name: case for case in all_cases()}
    gone = []
    for row in session.file.rows:
        verdicts, _ = examine(cases[row.witness], session.peer, with_ours=False)
        if all(v.excess <= GONE for v in verdicts):
            gone.append(row.witness)
    assert not gone, f"{len(gone)} of {len(session.file.rows)} divergences have disappeared:\n" + "\n".join(gone)


def test_divergences_on_file_have_a_cause(session: Session) -> None:
    bare = [row.key for row in session.file.rows if row.cause == UNEXPLAINED or row.cause not in session.file.causes]
    assert not bare, f"divergences without a cause in [causes]: {bare}"


def test_gallery_reproduces(session: Session) -> None:
    """The code on the report page shows what it says: an output that is off by more than a thousandth."""
    if not session.pinned:
        pytest.skip("the gallery is of other versions")
    for key, cause in session.file.causes.items():
        if "reproduce" in cause:
            found: dict[str, Any] = {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the peer's
                exec(cause["reproduce"], found)
            assert not found["error"] < 1e-3, f"{key}: the error is only {found['error']}"
