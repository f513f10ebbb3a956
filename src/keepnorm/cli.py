"""The command line: stats, explain, demo and doctor. Answers go to stdout; errors are one line on stderr and exit code 2."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from keepnorm.axes import Keep

DESCRIPTION = "Say which axes you keep. Everything else is reduced."

KEEP_HELP = "the axes that survive: 1, -1, 0,3, '' for none (one mean of everything), or a pattern such as 'n h w c -> c'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for an input that cannot be taken, or 130 when interrupted."""
    options = _parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        options.run(options)
    except (OSError, ValueError, TypeError, ModuleNotFoundError, MemoryError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"keepnorm: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("keepnorm: interrupted", file=sys.stderr)
        return 130
    return 0


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


def _stats(options: argparse.Namespace) -> None:
    from keepnorm.readers import open_sources
    from keepnorm.stats import measure

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


def _explain(options: argparse.Namespace) -> None:
    from keepnorm.explain import explain

    affine: Any = options.affine
    if affine is not None and "->" not in options.keep:
        affine = read_keep(affine)
    explanation = explain(read_shape(options.shape), read_keep(options.keep), affine=affine, **_sizes(options.size))
    print(explanation)
    if options.save:
        explanation.plot().savefig(options.save)


def _demo(options: argparse.Namespace) -> None:
    from keepnorm.demo import run

    run(options.save)


def _doctor(_: argparse.Namespace) -> None:
    from keepnorm.doctor import report

    for line in report():
        print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keepnorm", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    stats = commands.add_parser(
        "stats",
        help="count, mean, variance and standard deviation of files, in bounded memory",
        description="Moments of all the files together: .npy, .npz (one array: FILE.npz:NAME), .zarr, images and folders of "
        "images. An image has the axes (1, height, width, channels), so --keep -1 is one mean for each channel.",
    )
    stats.add_argument("paths", nargs="+", metavar="PATH")
    stats.add_argument("--keep", required=True, help=KEEP_HELP)
    stats.add_argument(
        "--json", action="store_true", help="one JSON object: count, mean, var, std, keep; null where not finite"
    )
    stats.add_argument("--quiet", action="store_true", help="no progress bar")
    stats.set_defaults(run=_stats)

    explain = commands.add_parser("explain", help="what is kept, what is reduced, and the same call in each framework")
    explain.add_argument("shape", metavar="SHAPE", help="sizes, such as 32,3,224,224")
    explain.add_argument("--keep", required=True, help=KEEP_HELP)
    explain.add_argument("--affine", help="the axes of weight and bias; the kept axes unless said otherwise")
    explain.add_argument("--size", action="append", metavar="NAME=N", help="the size of an axis that the pattern groups")
    explain.add_argument("--save", metavar="FILE", help="draw it, too: values that share a mean share a colour")
    explain.set_defaults(run=_explain)

    demo = commands.add_parser("demo", help="the main job on two real photographs")
    demo.add_argument("--save", metavar="FILE", default="keepnorm-demo.png", help="the picture (default: %(default)s)")
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="engines found, threading layer, cache folder, GPU, versions")
    doctor.set_defaults(run=_doctor)
    return parser


def _joined(arguments: Sequence[str]) -> list[str]:
    """Tie the axes to their option: argparse takes the ``-2,-1`` of ``--keep -2,-1`` for an option of its own."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--keep", "--affine"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _sizes(texts: Sequence[str] | None) -> dict[str, int]:
    sizes = {}
    for text in texts or ():
        name, _, size = text.partition("=")
        if not size.isdigit():
            raise ValueError(f"--size takes a name and a number, such as g=32; got {text!r}")
        sizes[name.strip()] = int(size)
    return sizes


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


if __name__ == "__main__":
    sys.exit(main())
