"""One case through everything: data, oracle, ours, peer, verdicts."""

import warnings
from importlib.metadata import version
from types import ModuleType

from . import data, ours, peers
from .cases import Case
from .oracle import Answer, truth
from .verdict import Verdict, raised, verdicts

# What a peer raises on a case that it should be able to express; anything else is a bug of its adapter.
ERRORS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


def examine(case: Case, peer: ModuleType | None, with_ours: bool = True) -> tuple[list[Verdict], str | None]:
    """The verdicts on a case, and why the peer cannot express it (None if it can)."""
    arrays = data.load(case)
    exact = truth(case, arrays)
    mine = ours.run(case, arrays) if with_ours else None
    reason = "no peer" if peer is None else peers.cannot(peer, case)
    theirs, failed = (None, []) if reason else _ask(peer, case, arrays)
    return verdicts(case, arrays, exact, mine, theirs) + failed, reason


def _ask(peer: ModuleType | None, case: Case, arrays: data.Data) -> tuple[Answer | None, list[Verdict]]:
    assert peer is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer warns of is what the verdicts measure
        try:
            return peer.answer(case, arrays), []
        except ERRORS:
            return None, [raised(case)]


def versions(peer: ModuleType) -> dict[str, str]:
    """The versions of the packages that the peer consists of, without local build tags such as ``+cpu``."""
    names = {"tensorflow": "tensorflow-cpu"}
    return {name: _version(name, names.get(name, name)) for name in peer.VERSIONS}


def _version(*names: str) -> str:
    from importlib.metadata import PackageNotFoundError

    for name in names:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return "unknown"
