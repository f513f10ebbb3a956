"""Axes and shapes as they are written on a command line."""

from keepnorm.axes import Keep


def read_keep(text: str) -> Keep:
    """Axes as they are written on a command line: ``1``, ``-1``, ``0,3``, ``(0, 3)``, nothing, or a pattern.

    Raises
    ------
    ValueError
        If it is neither numbers nor a pattern.

    Examples
    --------
    >>> read_keep("1"), read_keep("0, -1"), read_keep(""), read_keep("n c -> c")
    (1, (0, -1), (), 'n c -> c')
    """
    if "->" in text:
        return text
    parts = [part.strip() for part in text.strip().strip("()").split(",") if part.strip()]
    try:
        axes = tuple(int(part) for part in parts)
    except ValueError:
        raise ValueError(
            f"--keep takes axis numbers such as 1 or 0,3, or a pattern such as 'n h w c -> c'; got {text!r}"
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
