"""The command line: stats, explain, demo and doctor. Answers go to stdout; errors are one line on stderr and exit code 2."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

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


def _face(name: str) -> Callable[[argparse.Namespace], None]:
    """The command of that name, loaded when it is asked for."""

    def run(options: argparse.Namespace) -> None:
        import_module(f"keepnorm.cli.{name}").run(options)

    return run


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
    stats.set_defaults(run=_face("stats"))

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
        if joined and joined[-1] in ("--keep", "--affine"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


if __name__ == "__main__":
    sys.exit(main())
