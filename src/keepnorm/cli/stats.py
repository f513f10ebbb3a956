"""`keepnorm stats`: count, mean, variance and standard deviation of files."""

import argparse
import json
import math
import sys
from contextlib import ExitStack
from typing import Any

from keepnorm.cli.words import read_keep


def run(options: argparse.Namespace) -> None:
    from keepnorm.stats.accumulate import measure
    from keepnorm.stats.readers.files import open_sources

    keep = read_keep(options.keep)
    with ExitStack() as cleanup:
        sources = open_sources(options.paths, cleanup)
        bar = cleanup.enter_context(_progress(sum(source.steps for source in sources), options.quiet))
        moments = measure(sources, keep, bar.update)
    count = moments.count if isinstance(moments.count, int) else moments.count.tolist()
    answer = {"count": count, "mean": moments.mean, "var": moments.var, "std": moments.std, "keep": list(moments.keep)}
    if options.json:
        print(json.dumps({key: _plain(value) for key, value in answer.items()}, allow_nan=False))
        return
    print(f"count  {count:,}")
    print(f"keep   {', '.join(map(str, moments.keep)) or 'none'}   of {moments.ndim} axes; kept shape {moments.shape}")
    for key in ("mean", "var", "std"):
        print(f"{key:5}  {answer[key]}")


def _progress(steps: int, quiet: bool) -> Any:
    """A bar on stderr for what takes longer than a moment; nothing where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return _NoBar()
    # On a terminal a bar after half a second; in a log one line now and then, of long runs only.
    delay, often = (0.5, 0.1) if sys.stderr.isatty() else (10.0, 10.0)
    return tqdm(total=steps, unit="piece", delay=delay, mininterval=often, leave=False, disable=quiet, file=sys.stderr)


class _NoBar:
    """Stands in for a progress bar."""

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def update(self) -> None:
        """Nothing to draw."""


def _plain(value: Any) -> Any:
    """Numbers and lists for JSON, which has no NaN and no infinity."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
