"""`keepnorm stats` and `keepnorm merge`: a thin face over `keepnorm.stats`."""

import argparse
import sys
import time
import warnings
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import Any

from keepnorm.cli.streams import SIGNALS, Interrupted, answer, say
from keepnorm.cli.words import read_keep, read_nodata, read_size
from keepnorm.moments import Moments
from keepnorm.stats import answers
from keepnorm.stats.accumulate import Run, Tree
from keepnorm.stats.options import CHOICES, MODES, Options
from keepnorm.stats.readers.table import READS
from keepnorm.stats.summary import Summary, Watch, summarize

SAME = ("mode", "resize", "center_crop", "max_pixels", "on_error", "follow_links", "per_item", "min_max", "checkpoint")


def arguments(parser: argparse.ArgumentParser, keep_help: str) -> None:
    """The options of `stats`."""
    parser.description = (
        f"Moments of all the files together: {READS}. FILE:NAME names an array. A picture has the axes "
        "(1, height, width, channels), so --keep -1 is one mean for each channel."
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="file, folder, pattern or address")
    parser.add_argument("--files-from", metavar="FILE", help="read more paths from FILE, one a line; - is stdin")
    parser.add_argument("--keep", required=True, help=f"{keep_help}, or names of dimensions such as lat")
    what = parser.add_argument_group("what counts")
    what.add_argument("--mode", choices=tuple(MODES), help="pictures become this")
    what.add_argument(
        "--nodata", default="auto", help="gaps: auto (what the file declares), none, a value, or one for each band"
    )
    what.add_argument("--nan", choices=CHOICES["nan_policy"], default="propagate", help="what a NaN does")
    what.add_argument(
        "--scale", help="divide by this; auto: by the largest value of an integer type, so that pictures are 0 to 1"
    )
    what.add_argument("--resize", type=int, metavar="N", help="the shorter side of pictures, as torchvision does it")
    what.add_argument("--center-crop", type=int, metavar="N", help="the middle of pictures")
    what.add_argument("--max-pixels", type=int, default=Options().max_pixels, metavar="N", help="larger pictures are refused")
    what.add_argument("--on-error", choices=CHOICES["on_error"], default="fail", help="what a file that cannot be read does")
    what.add_argument("--follow-links", action=argparse.BooleanOptionalAction, default=True, help="read linked folders")
    what.add_argument("--per-item", action="store_true", help="average the standard deviations of the items, too")
    what.add_argument("--min-max", action="store_true", help="the smallest and the largest values, too")
    printing(parser)
    how = parser.add_argument_group("how")
    how.add_argument("--memory", metavar="SIZE", help="such as 2GB; default: a quarter of the machine's, 512MB at least")
    how.add_argument("--workers", type=int, metavar="N", help="threads that read, decode and sum")
    how.add_argument(
        "--checkpoint", metavar="FILE", help="the state of the run, written now and then; the next run goes on from it"
    )
    how.add_argument("--quiet", action="store_true", help="no progress bar")


def printing(parser: argparse.ArgumentParser) -> None:
    """The options of answers."""
    group = parser.add_argument_group("the answer")
    forms = group.add_mutually_exclusive_group()
    forms.add_argument("--json", dest="form", action="store_const", const="json", help="one JSON object")
    forms.add_argument("--yaml", dest="form", action="store_const", const="yaml", help="YAML")
    forms.add_argument("--csv", dest="form", action="store_const", const="csv", help="one line for each kept cell")
    forms.add_argument("--as", dest="form", choices=answers.PASTED, help="the line to paste")
    group.add_argument("--save", metavar="FILE", help="write the state to FILE.npz or FILE.json, which merge takes")


def run(options: argparse.Namespace) -> int:
    """The command `stats`."""
    words = {name: getattr(options, name) for name in SAME} | {"nan_policy": options.nan, "workers": options.workers}
    scale = options.scale if options.scale in (None, "auto") else _number(options.scale)
    memory = read_size(options.memory) if options.memory else None
    asked = Options(**words, nodata=read_nodata(options.nodata), scale=scale, memory=memory)
    paths = [*options.paths, *_listed(options.files_from)]
    _can_save(options.save)
    with ExitStack() as cleanup:
        cleanup.enter_context(warnings.catch_warnings(action="ignore"))  # of libraries: errors of this command are one line
        bar = Bar(options.quiet)
        cleanup.callback(bar.close)
        parts: list[answers.Parts] = []

        def start(run: Run) -> None:
            if len(run.slabs) > 1:
                _large(run, options)
                parts.append(answers.Parts(options.save, options.checkpoint))
                cleanup.callback(lambda: parts[0].close(not SIGNALS.number))
                parts[0].start(run)
                watch.part = parts[0].add
            bar.start(run)
            SIGNALS.polite = True

        watch = Watch(start, bar.step, lambda: bool(SIGNALS.number))
        try:
            found = summarize(paths, read_keep(options.keep), asked, watch)
        except InterruptedError as error:
            say(f"keepnorm: {error}")
            raise Interrupted(SIGNALS.number) from error
        finally:
            SIGNALS.polite = False
            bar.close()
        if parts:
            if found.complete:
                parts[0].finish()
                answer(f"wrote {options.save}: {found.values:,} values of {found.files:,} files")
        else:
            give(found, options)
    for name, why in found.skipped.items() if options.on_error == "report" else ():
        say(f"keepnorm: skipped {why if why.startswith(name) else f'{name}: {why}'}")
    if found.skipped and options.on_error == "skip":
        say(f"keepnorm: {len(found.skipped)} skipped; --on-error report names them")
    if not found.complete:
        on = f"; the next run with --checkpoint {options.checkpoint} goes on" if options.checkpoint else ""
        say(f"keepnorm: interrupted: this is of {found.values:,} values of {found.files:,} files{on}")
    return SIGNALS.code


def merge(options: argparse.Namespace) -> int:
    """The command `merge`: the states of shards become one."""
    tree = Tree()
    for path in options.paths:
        try:
            tree.add(answers.load(path))
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error
    total: Moments = reduce(Moments.merge, filter(None, reversed(tree.slots)))
    count = total.count if isinstance(total.count, int) else int(total.count.sum())
    _can_save(options.save)
    give(Summary(total, len(options.paths), len(options.paths), count), options)
    return 0


def give(found: Summary, options: argparse.Namespace) -> None:
    """Save and print."""
    if options.save:
        answers.save(options.save, found)
    if options.form in answers.PASTED:
        answer(answers.pasted(found, options.form))
    else:
        answer(answers.FORMS.get(options.form, answers.text)(found))


def _can_save(path: str | None) -> None:
    """Asked for first: hours of reading are too much for a name that is wrong."""
    if path and not path.endswith((".npz", ".json")):
        raise ValueError(f"--save writes .npz and .json; got {path!r}")
    if path and not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"--save {path}: the folder does not exist")


def _large(run: Run, options: argparse.Namespace) -> None:
    size = 32 * sum(1 for _ in run.slabs) * max(_cells(slab) for slab in run.slabs)
    if not (options.save or "").endswith(".npz") or options.per_item or options.min_max:
        raise ValueError(
            f"--keep {options.keep} keeps so many cells that the answer takes {size / 1e6:,.0f} MB: write it with "
            f"--save FILE.npz (without --per-item and --min-max), or give more than --memory {run.options.bytes / 1e6:,.0f}MB"
        )
    if any(source.shape is None or source.grain for source in run.sources):
        memory = f"--memory {run.options.bytes / 1e6:,.0f}MB"
        say(f"keepnorm: the kept cells do not fit {memory}: {len(run.slabs)} passes over the data")


def _cells(slab: tuple[slice, ...]) -> int:
    size = 1
    for part in slab:
        size *= part.stop - part.start
    return size


def _listed(path: str | None) -> list[str]:
    if path is None:
        return []
    text = sys.stdin.read() if path == "-" else Path(path).read_text()
    return [name for name in (text.split("\0") if "\0" in text else text.splitlines()) if name.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--scale takes auto or a number; got {text!r}") from None


class Bar:
    """A bar on stderr for what takes longer than a moment; nothing where tqdm is not installed."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.steps = 0

    def start(self, run: Run) -> None:
        """Before the first step."""
        self.steps = run.steps - run.state.done
        if not self.quiet and sys.stderr.isatty():
            say(
                "keepnorm: the first piece compiles what is not compiled yet (keepnorm warmup does it ahead)"
            ) if _cold() else None

    def step(self) -> None:
        """After each step; the first compiles, so that the time is taken from the second on."""
        if self.bar is not None:
            self.bar.update()
        elif self.steps and not self.quiet:
            self.bar, self.steps = _tqdm(self.steps - 1), 0

    def close(self) -> None:
        """Remove it."""
        if self.bar is not None:
            self.bar.close()


def _tqdm(steps: int) -> Any:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    # On a terminal a bar after half a second; in a log one line now and then, of long runs only.
    delay, often = (0.5, 0.1) if sys.stderr.isatty() else (10.0, 10.0)
    return tqdm(total=steps, unit="piece", delay=delay, mininterval=often, leave=False, file=sys.stderr)


def _cold() -> bool:
    from keepnorm.kernels.jit import folder

    place, _ = folder.find()
    return not place or not any(Path(place).rglob("*"))


def warmup(_: argparse.Namespace) -> int:
    """The command `warmup`: compile what the statistics of files need."""
    import numpy as np

    from keepnorm.functional import moments

    begun = time.monotonic()
    for kind in ("u1", "u2", "i2", "f4", "f8"):
        x = np.ones((64, 64, 64, 3), kind)
        for keep in (3, 1, (1, 2, 3), ()):
            moments(x, keep)
            moments(x, keep, where=x > 0)
    answer(f"compiled in {time.monotonic() - begun:.1f} s")
    return 0
