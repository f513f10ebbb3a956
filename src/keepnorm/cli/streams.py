"""Streams and signals: an answer arrives whole or the exit code says so, and an interruption costs nothing that was read."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupted(BaseException):
    """A signal ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = CODES.get(signal.Signals(number), 128 + number)


class Signals:
    """What to do at a signal: stop politely while a run is under way, at once otherwise, and at the second signal."""

    def __init__(self) -> None:
        self.number = 0
        self.polite = False

    def __call__(self, number: int, _: Any) -> None:
        """The handler."""
        again, self.number = self.number, number
        if again or not self.polite:
            raise Interrupted(number)

    @property
    def code(self) -> int:
        """The exit code: 0 if there was no signal."""
        return CODES.get(signal.Signals(self.number), 0) if self.number else 0


SIGNALS = Signals()


@contextmanager
def signals() -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM inside this block, where Python allows it: in the main thread."""
    SIGNALS.number, SIGNALS.polite = 0, True  # until the command is known
    before = {}
    with suppress(ValueError):
        for number in CODES:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and shells ask for that
                before[number] = signal.signal(number, SIGNALS)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guard() -> None:
    """Give closed streams a place: otherwise the next file that is opened gets their number, and their output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123


def answer(text: str) -> None:
    """Print an answer, or raise: an answer that does not arrive is a failure."""
    if sys.stdout is None:
        raise OSError("the answer cannot be printed: stdout is closed; --save FILE.json writes it to a file")
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Interrupted(signal.SIGPIPE) from None


def say(text: str) -> None:
    """A line on stderr, safe for a terminal whatever the names of files hold."""
    with suppress(OSError, ValueError):
        print(printable(" ".join(text.split())), file=sys.stderr)


def printable(text: str) -> str:
    r"""Characters that a terminal would obey, written out.

    Examples
    --------
    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
