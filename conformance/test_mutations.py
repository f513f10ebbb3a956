"""The suite can fail: each mistake is caught by each of the cases that are named for it, and the right norm passes them."""

import pytest

from .cases import all_cases
from .data import load
from .mutants import CAUGHT_BY, MISTAKES, run
from .oracle import truth
from .verdict import verdicts

NAMED = [(mistake, name) for mistake, names in CAUGHT_BY.items() for name in names]


def wrong(name: str, mistake: str) -> list[str]:
    """The fields in which the norm with this mistake is outside our contract."""
    (case,) = (case for case in all_cases() if case.name == name)
    data = load(case)
    return [v.field for v in verdicts(case, data, truth(case, data), run(case, data, mistake), None) if not v.ours_ok]


@pytest.mark.parametrize(("mistake", "name"), NAMED)
def test_mistake_is_caught(mistake: str, name: str) -> None:
    assert wrong(name, mistake)


@pytest.mark.parametrize("name", sorted({name for _, name in NAMED}))
def test_right_norm_passes_the_same_cases(name: str) -> None:
    assert not wrong(name, "none")


def test_every_mistake_has_its_cases() -> None:
    assert set(CAUGHT_BY) == set(MISTAKES)
