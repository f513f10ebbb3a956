"""Tables of what earlier calls have worked out, with a bound: the oldest entry makes room for the newest."""

from collections.abc import Hashable
from contextlib import suppress
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def remember(table: dict[K, V], key: K, value: V, most: int) -> None:
    """Put an entry into a table of at most so many.

    Examples
    --------
    >>> table = {}
    >>> for n in range(5):
    ...     remember(table, n, n * n, 3)
    >>> table
    {2: 4, 3: 9, 4: 16}
    """
    while len(table) >= most and key not in table:
        with suppress(KeyError, RuntimeError, StopIteration):  # another thread changes the table at the same time
            del table[next(iter(table))]
    table[key] = value
