"""The options of the suite: ``python -m pytest conformance --peer=torch [--sample=500] [--record] [--report]``."""

from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

from . import divergences, peers
from .cases import Case, select
from .session import Session

SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--peer", choices=[*peers.PEERS], help="the library to compare with; none: ours against the oracle only")
    group.addoption("--sample", type=int, help="so many cases, drawn by a fixed seed, and every case that a divergence names")
    group.addoption("--record", action="store_true", help="write the divergences found to divergences/PEER.toml")
    group.addoption("--report", action="store_true", help="write the numbers and tables to build/conformance")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "asks(*peers): a question to these peers (None: asked without a peer)")
    name = config.getoption("peer")
    try:
        module: ModuleType | None = peers.load(name) if name else None
    except ImportError as error:
        raise pytest.UsageError(f"--peer={name} needs packages that are not installed here ({error})") from error
    if config.getoption("sample") and (config.getoption("record") or config.getoption("report")):
        raise pytest.UsageError("--record and --report need all cases; got --sample")
    config.stash[SESSION] = Session(name, module, divergences.load(name) if name else divergences.File())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Training beside several frameworks at once has a session of its own, without --peer."""
    return True if collection_path.name == "test_training.py" and config.getoption("peer") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    name = metafunc.config.getoption("peer")
    if "group" in metafunc.fixturenames:
        groups: dict[tuple[str, str, str], list[Case]] = defaultdict(list)
        always = divergences.witnesses(name) if name else frozenset()
        for case in select(metafunc.config.getoption("sample"), always):
            groups[case.group].append(case)
        metafunc.parametrize("group", groups.values(), ids=["-".join(key) for key in groups])


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Session:
    """The peer of this session and what was found so far."""
    return request.config.stash[SESSION]


def pytest_sessionfinish(session: pytest.Session) -> None:
    state = session.config.stash.get(SESSION, None)
    if state is None or not state.found or state.peer is None:
        return
    if session.config.getoption("record"):
        state.record()
    if session.config.getoption("report"):
        from . import report

        report.update(state)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    state = config.stash.get(SESSION, None)
    if state is not None and state.found:
        terminalreporter.section("conformance")
        for line in state.lines():
            terminalreporter.line(line)
