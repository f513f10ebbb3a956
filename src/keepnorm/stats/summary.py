"""One call from paths to an answer: open, run, and say what was read."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from keepnorm.moments import Moments
from keepnorm.stats import checkpoint
from keepnorm.stats.accumulate import Leaf, Run, Slab, State, go, side_by_side
from keepnorm.stats.options import Options
from keepnorm.stats.readers.files import open_sources
from keepnorm.stats.readers.source import line

SECONDS = 30.0  # between two checkpoints


@dataclass(slots=True)
class Summary:
    """Moments, and what they are of."""

    moments: Moments
    files: int
    items: int
    values: int
    skipped: dict[str, str] = field(default_factory=dict)
    per_item: Moments | None = None
    low: Any = None
    high: Any = None
    complete: bool = True


@dataclass(slots=True)
class Watch:
    """What the caller of a long run wants to know, and to say."""

    start: Callable[[Run], None] = lambda _: None
    step: Callable[[], None] = lambda: None
    stopped: Callable[[], bool] = lambda: False
    part: Callable[[Slab, Moments], None] | None = None


def summarize(paths: Sequence[str], keep: Any, options: Options | dict[str, Any], watch: Watch | None = None) -> Summary:
    """The statistics of all the paths together; of as much as was read when `watch` stops it.

    Raises
    ------
    TypeError
        For an option that does not exist.
    InterruptedError
        If it is stopped before anything was read.
    """
    options, watch = _options(options), watch or Watch()
    skipped: dict[str, str] = {}

    def failed(name: str, error: Exception) -> None:
        if options.on_error == "fail":
            raise error
        skipped[name] = line(error)

    with ExitStack() as cleanup:
        sources = open_sources(paths, options, cleanup, failed)
        if not sources and skipped:
            raise ValueError(f"nothing could be read; {len(skipped)} skipped, the first: {next(iter(skipped.values()))}")
        run = Run(sources, keep, options)
        if options.checkpoint:
            checkpoint.restore(options.checkpoint, run)
        watch.start(run)
        saved = time.monotonic()

        def step(_: State) -> bool:
            nonlocal saved
            watch.step()
            stop = watch.stopped()
            if options.checkpoint and (stop or time.monotonic() - saved > SECONDS):
                checkpoint.save(options.checkpoint, run)
                saved = time.monotonic()
            return not stop

        parts: dict[tuple[tuple[int, int], ...], Leaf] = {}
        if options.checkpoint and watch.stopped():
            checkpoint.save(options.checkpoint, run)
            raise InterruptedError("interrupted before anything was read")
        if options.checkpoint and len(run.slabs) > 1 and watch.part is None:
            raise ValueError(
                f"a checkpoint of {len(run.slabs)} passes needs the memory for the whole answer: give more memory"
            )
        values, last = 0, False
        for slab, leaf in go(run, failed, step):
            total = leaf.tree.total
            if watch.part is not None and total is not None:
                watch.part(slab, total)
                values += _values(total)
            parts = {} if watch.part is not None else parts
            parts[tuple((b.start, b.stop) for b in slab)] = leaf
            last = slab == run.slabs[-1]
        complete = bool(parts) and last
        if not complete and len(run.slabs) == 1:
            run.close(run.state)
            parts = {tuple((b.start, b.stop) for b in run.slabs[0]): run.state.total}
        if complete and options.checkpoint:
            Path(options.checkpoint).unlink(missing_ok=True)
        return _summary(run, parts, skipped | run.state.skipped, complete, values)


def _summary(run: Run, parts: dict[Any, Leaf], skipped: dict[str, str], complete: bool, written: int) -> Summary:
    found = side_by_side({c: leaf.tree.total for c, leaf in parts.items()}) if parts else None
    if found is None:
        if not complete:
            raise InterruptedError("interrupted before anything was read")
        if skipped:
            raise ValueError(f"nothing could be read; {len(skipped)} skipped, the first: {next(iter(skipped.values()))}")
        raise ValueError(f"{run.sources[0].name}: holds no values")
    last = next(reversed(parts.values()))
    per_item = last.spread.total if len(parts) == 1 else None
    read = (len(run.state.files), run.state.total.items, written or _values(found))
    return Summary(found, *read, skipped, per_item, last.low, last.high, complete)


def _values(found: Moments) -> int:
    return int(np.sum(found.count)) if np.ndim(found.count) else found.count * prod(found.shape)


def _options(options: Options | dict[str, Any]) -> Options:
    if isinstance(options, Options):
        return options
    known = [f.name for f in fields(Options)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"stats has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return Options(**options)
