"""The command line: stats, explain, demo and doctor. Answers go to stdout; errors are one line on stderr and exit code 2."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from keepnorm.cli.streams import CODES, SIGNALS, Interrupted, guard, say, signals

DESCRIPTION = "Say which axes you keep. Everything else is reduced."

KEEP_HELP = "the axes that survive: 1, -1, 0,3, '' for none (one mean of everything), or a pattern such as 'n h w c -> c'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 2 for an input that cannot be taken, or 130 or 143 when interrupted."""
    guard()
    with signals():
        try:
            options = _parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
            if SIGNALS.number and not getattr(options, "checkpoint", None):
                raise Interrupted(SIGNALS.number)
            SIGNALS.polite = bool(getattr(options, "checkpoint", None))  # which is written before anything is read, too
            return options.run(options) or 0
        except (OSError, ValueError, TypeError, ModuleNotFoundError, MemoryError, RecursionError) as error:
            say(f"keepnorm: error: {error if str(error).strip() else type(error).__name__}")
            return 2
        except Interrupted as stop:
            if stop.code in CODES.values():
                say("keepnorm: interrupted")
            return stop.code


def _face(module: str, command: str = "run") -> Callable[[argparse.Namespace], int | None]:
    """A command, loaded when it is asked for."""

    def run(options: argparse.Namespace) -> int | None:
        code: int | None = getattr(import_module(f"keepnorm.cli.{module}"), command)(options)
        return code

    return run


def _parser() -> argparse.ArgumentParser:
    from keepnorm.cli import stats as faces  # not before signals are handled

    parser = argparse.ArgumentParser(prog="keepnorm", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    stats = commands.add_parser("stats", help="count, mean, variance and standard deviation of files, in bounded memory")
    faces.arguments(stats, KEEP_HELP)
    stats.set_defaults(run=_face("stats"))

    merge = commands.add_parser("merge", help="the states that stats --save wrote, of shards, become one")
    merge.add_argument("paths", nargs="+", metavar="FILE", help=".npz or .json")
    faces.printing(merge)
    merge.set_defaults(run=_face("stats", "merge"))

    warmup = commands.add_parser("warmup", help="compile ahead what the statistics of files need")
    warmup.set_defaults(run=_face("stats", "warmup"))

    explain = commands.add_parser("explain", help="what is kept, what is reduced, and the same call in each framework")
    explain.add_argument("shape", metavar="SHAPE", help="sizes, such as 32,3,224,224")
    explain.add_argument("--keep", required=True, help=KEEP_HELP)
    explain.add_argument("--affine", help="the axes of weight and bias; the kept axes unless said otherwise")
    explain.add_argument("--size", action="append", metavar="NAME=N", help="the size of an axis that the pattern groups")
    explain.add_argument("--save", metavar="FILE", help="draw it, too: values that share a mean share a colour")
    explain.set_defaults(run=_face("explain"))

    demo = commands.add_parser("demo", help="the main job on two real photographs")
    demo.add_argument("--save", metavar="FILE", default="keepnorm-demo.png", help="the picture (default: %(default)s)")
    demo.set_defaults(run=_face("demo"))

    doctor = commands.add_parser("doctor", help="engines found, threading layer, cache folder, GPU, versions")
    doctor.set_defaults(run=_face("doctor"))
    return parser


def _joined(arguments: Sequence[str]) -> list[str]:
    """Tie the axes to their option: argparse takes the ``-2,-1`` of ``--keep -2,-1`` for an option of its own."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in ("--keep", "--affine", "--nodata"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


if __name__ == "__main__":
    sys.exit(main())
