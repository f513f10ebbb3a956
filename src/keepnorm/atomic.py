"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp


@contextmanager
def written(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside `target` that takes its place when the block ends well; otherwise `target` stays what it was.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written(Path(folder) / "a.txt") as path:
    ...         _ = path.write_text("whole")
    ...     (Path(folder) / "a.txt").read_text()
    'whole'
    """
    goal = Path(os.path.realpath(target))
    if not goal.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder does not exist")
    if goal.exists() and not goal.is_file():
        yield goal  # a device or a pipe, such as /dev/stdout, is written in place
        return
    number, name = mkstemp(prefix=f".{goal.stem[:50]}-", suffix=goal.suffix, dir=goal.parent)
    os.close(number)
    beside = Path(name)
    try:
        beside.chmod(goal.stat().st_mode & 0o777 if goal.exists() else 0o666 & ~_umask())
        yield beside
        with beside.open("rb") as done:
            os.fsync(done.fileno())
        beside.replace(goal)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
