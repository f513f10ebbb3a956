"""The README's accuracy table: `python docs/accuracy_table.py` prints it for the peers that are installed.

With `--write` it replaces the table between the two markers of README.md. Largest error of the normalised output against
float64, float32 input: standard normal data plus an offset, from a fixed seed. Peers that are not installed have no column.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import keepnorm as kn

Array = np.ndarray[Any, Any]

EPS = 1e-5
ROWS = (
    ((32, 64, 56, 56), 1, 0),
    ((32, 64, 56, 56), 1, 100),
    ((32, 56, 56, 64), -1, 100),
    ((128, 3, 224, 224), 1, 100),
    ((128, 224, 224, 3), -1, 0),
    ((128, 224, 224, 3), -1, 100),
    ((65536, 128), -1, 100),
)
README = Path(__file__).parent.parent / "README.md"
MARKERS = ("<!-- accuracy table: docs/accuracy_table.py -->", "<!-- end of accuracy table -->")


def ours(x: Array, axis: int) -> Array:
    answer: Array = kn.normalize(x, axis)
    return answer


def with_numpy(x: Array, axis: int) -> Array:
    reduced = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    answer: Array = (x - x.mean(reduced, keepdims=True)) / np.sqrt(x.var(reduced, keepdims=True) + np.float32(EPS))
    return answer


def with_torch(x: Array, axis: int) -> Array:
    import torch

    # A channels-last tensor is the view that PyTorch itself makes: dimension 1 is the channel, the memory stays.
    channels_first = torch.from_numpy(x).movedim(axis, 1)
    return torch.nn.functional.batch_norm(channels_first, None, None, training=True, eps=EPS).movedim(1, axis).numpy()


def with_flax(x: Array, axis: int) -> Array:
    import flax.linen
    import jax

    norm = flax.linen.BatchNorm(use_running_average=False, axis=axis, epsilon=EPS)
    return np.asarray(norm.init_with_output(jax.random.key(0), x)[0])


def with_keras(x: Array, axis: int) -> Array:
    import keras

    layer = keras.layers.BatchNormalization(axis=axis, epsilon=EPS)
    return np.asarray(keras.ops.convert_to_numpy(layer(x, training=True)))


def peers() -> Iterator[tuple[str, Callable[[Array, int], Array]]]:
    """Column titles and answers, ours first."""
    yield "**keepnorm**", ours
    if find_spec("torch"):
        yield f"PyTorch {version('torch').partition('+')[0]}", with_torch
    if find_spec("flax"):
        yield f"Flax {version('flax')}", with_flax
    yield f"NumPy {version('numpy')}", with_numpy
    if find_spec("keras") and find_spec("tensorflow"):
        yield f"Keras {version('keras')} on TensorFlow", with_keras


def largest_error(answer: Array, x: Array, axis: int) -> float:
    """The largest difference from the answer in float64, one kept cell at a time, which bounds the memory."""
    worst = 0.0
    for cell, values in zip(np.moveaxis(answer, axis, 0), np.moveaxis(x, axis, 0), strict=True):
        exact = values.astype(np.float64)
        exact -= exact.mean()
        exact /= np.sqrt(np.mean(exact * exact) + EPS)
        worst = max(worst, float(np.abs(cell - exact).max()))
    return worst


def table() -> str:
    columns = list(peers())
    lines = [
        "| shape, kept axis | offset | " + " | ".join(title for title, _ in columns) + " |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for shape, axis, offset in ROWS:
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) + np.float32(offset)
        errors = [largest_error(answer(x, axis), x, axis) for _, answer in columns]
        size = str(shape).replace(" ", "")
        lines.append(f"| {size}, {axis} | {offset} | " + " | ".join(_short(e) for e in errors) + " |")
    return "\n".join(lines)


def _short(error: float) -> str:
    if error >= 0.1:
        return f"**{error:.1f}**"
    mantissa, _, exponent = f"{error:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", action="store_true", help="put the table into README.md")
    write = options.parse_args().write
    text = table()
    print(text)
    if write:
        start, end = MARKERS
        readme = README.read_text()
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        README.write_text(pattern.sub(lambda _: f"{start}\n{text}\n{end}", readme))


if __name__ == "__main__":
    main()
