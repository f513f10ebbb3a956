"""Axes and shapes as they are written on a command line."""

import re
from typing import Any


def read_keep(text: str) -> Any:
    """Axes as they are written on a command line: ``1``, ``-1``, ``0,3``, ``(0, 3)``, nothing, a pattern, or names.

    Raises
    ------
    ValueError
        If it is neither numbers nor a pattern.

    Examples
    --------
    >>> read_keep("1"), read_keep("0, -1"), read_keep(""), read_keep("n c -> c"), read_keep("lat")
    (1, (0, -1), (), 'n c -> c', ('lat',))
    """
    if "->" in text:
        return text
    parts = [part.strip() for part in text.strip().strip("()").split(",") if part.strip()]
    if parts and all(part.isidentifier() for part in parts):
        return tuple(parts)
    try:
        axes = tuple(int(part) for part in parts)
    except ValueError:
        raise ValueError(
            f"--keep takes axis numbers such as 1 or 0,3, a pattern such as 'n h w c -> c', or names; got {text!r}"
        ) from None
    return axes[0] if len(axes) == 1 else axes


def read_shape(text: str) -> tuple[int, ...]:
    """A shape as it is written on a command line: ``32,3,224,224``, with or without parentheses.

    Raises
    ------
    ValueError
        If it is no list of sizes.
    """
    try:
        return tuple(int(part) for part in text.strip().strip("()[]").replace("x", ",").split(",") if part.strip())
    except ValueError:
        raise ValueError(f"a shape is a list of sizes such as 32,3,224,224; got {text!r}") from None


def read_size(text: str) -> int:
    """Bytes as they are written on a command line: ``600MB``, ``2GB``, ``1GiB``.

    Raises
    ------
    ValueError
        If it is no size.

    Examples
    --------
    >>> read_size("600MB"), read_size("2 GiB")
    (600000000, 2147483648)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise ValueError(f"--memory takes a size such as 600MB or 2GB; got {text!r}")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " "))


def read_nodata(text: str) -> Any:
    """``auto``, ``none``, a value, or one for each band: ``-9999`` or ``0,0,255``.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if text in ("auto", "none"):
        return text
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--nodata takes auto, none, a value, or one for each band; got {text!r}") from None
    return values if len(values) > 1 else values[0]
