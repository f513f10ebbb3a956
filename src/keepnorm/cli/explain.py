"""`keepnorm explain`: what is kept, what is reduced, and the same call in each framework."""

import argparse
from collections.abc import Sequence
from typing import Any

from keepnorm.atomic import written
from keepnorm.cli.words import read_keep, read_shape


def run(options: argparse.Namespace) -> None:
    from keepnorm.explain.explanation import explain

    affine: Any = options.affine
    if affine is not None and "->" not in options.keep:
        affine = read_keep(affine)
    explanation = explain(read_shape(options.shape), read_keep(options.keep), affine=affine, **_sizes(options.size))
    print(explanation)
    if options.save:
        with written(options.save) as beside:
            explanation.plot().savefig(beside)


def _sizes(texts: Sequence[str] | None) -> dict[str, int]:
    sizes = {}
    for text in texts or ():
        name, _, size = text.partition("=")
        if not size.isdigit():
            raise ValueError(f"--size takes a name and a number, such as g=32; got {text!r}")
        sizes[name.strip()] = int(size)
    return sizes
