"""How many calls the random tests have made: the number that the long session reports."""

CALLS = {"calls": 0}


def pytest_terminal_summary(terminalreporter):
    if CALLS["calls"]:
        terminalreporter.write_line(f"{CALLS['calls']:,} random calls of keepnorm")
