"""The main job on real photographs: what is kept, the moments beside NumPy's and the exact ones, the time, a picture."""

import argparse
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from keepnorm.atomic import written
from keepnorm.explain import plot
from keepnorm.explain.explanation import explain
from keepnorm.functional import moments
from keepnorm.norms import batch_norm

Array = np.ndarray[Any, Any]

COPIES = 16
EPS = 1e-5


def show(save: str, say: Callable[[str], object] = print) -> None:
    """Print the demonstration and save its picture.

    Parameters
    ----------
    save : str
        The file of the picture, in a format that matplotlib writes.
    say : callable
        Takes each line of the report.

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn, whose photographs are used, or matplotlib is not installed.
    OSError
        If the picture cannot be written.
    """
    # Asked for first: nobody should wait for a picture that cannot be drawn or saved.
    plot.figure()
    if not Path(save).resolve().parent.is_dir():
        raise FileNotFoundError(f"{save}: the picture's folder does not exist")
    photos = photographs()
    batch = np.stack([*photos] * COPIES).astype(np.float32)
    say(f"{len(batch)} photographs, float32, channels last: {len(photos)} of scikit-learn, {COPIES} times each\n")
    explanation = explain(batch, keep=-1)
    say(str(explanation).split("\n\nThe same call")[0] + "\n")
    _moments(batch, photos, say)
    normalized = _speed(batch, say)
    _agreement(batch, photos, normalized, say)
    with written(save) as beside:
        plot.before_after(photos, normalized[: len(photos)]).savefig(beside)
    say(f"\nBefore, after and the histograms of each channel: {Path(save).resolve()}")


def run(options: argparse.Namespace) -> None:
    """The command."""
    show(options.save)


def photographs() -> Array:
    """The two sample photographs of scikit-learn, uint8 of shape (2, 427, 640, 3)."""
    try:
        from sklearn.datasets import load_sample_images
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the demo needs scikit-learn; install it with: python -m pip install "keepnorm[demo]"'
        ) from error
    return np.stack(load_sample_images().images)


def exact_moments(photos: Array) -> list[tuple[Fraction, Fraction]]:
    """Mean and population variance of each channel in whole numbers: the same for any number of copies."""
    found = []
    for c in range(photos.shape[-1]):
        values = photos[..., c].astype(np.int64)
        n, total, squares = values.size, int(values.sum()), int((values * values).sum())
        found.append((Fraction(total, n), Fraction(n * squares - total * total, n * n)))
    return found


def _moments(batch: Array, photos: Array, say: Callable[[str], object]) -> None:
    ours = moments(batch, -1)
    mean, std = batch.mean((0, 1, 2)), batch.std((0, 1, 2))
    say(f"{'':8}{'mean':>10}{'':>10}{'':>10}   {'standard deviation':>20}")
    say(f"{'channel':8}{'keepnorm':>10}{'exact':>10}{'NumPy':>10}   {'keepnorm':>10}{'exact':>10}{'NumPy':>10}")
    for c, (exact_mean, exact_var) in enumerate(exact_moments(photos)):
        root = Fraction(isqrt(exact_var.numerator * exact_var.denominator * 10**24), exact_var.denominator * 10**12)
        row = [ours.mean[c], exact_mean, mean[c], ours.std[c], root, std[c]]
        cells = [f"{float(v):10.2f}" for v in row]
        say(f"{plot.RGB[c]:8}" + "".join(cells[:3]) + "   " + "".join(cells[3:]))
    say("NumPy adds float32 in float32: x.mean((0, 1, 2)) and x.std((0, 1, 2)) are off from the first decimal.\n")


def _speed(batch: Array, say: Callable[[str], object]) -> Array:
    normalized: Array = batch_norm(batch, channel=-1)  # the first call compiles, once for this machine
    say("Batch normalisation into a new array, best of 3:")
    ours = _seconds(lambda: batch_norm(batch, channel=-1))
    say(f"  keepnorm   {1e3 * ours:8.1f} ms")
    rivals: dict[str, Callable[[], Any]] = {"NumPy": lambda: _numpy(batch)}
    if find_spec("torch"):
        rivals["PyTorch"] = _torch_step(batch)
    for name, step in rivals.items():
        seconds = _seconds(step)
        say(f"  {name:10} {1e3 * seconds:8.1f} ms   {seconds / ours:.0f} times as long")
    return normalized


def _agreement(batch: Array, photos: Array, normalized: Array, say: Callable[[str], object]) -> None:
    """Each answer against float64 on the two photographs, which the batch repeats."""
    truth = (photos - _floats(exact_moments(photos), 0)) / np.sqrt(_floats(exact_moments(photos), 1) + EPS)
    first = len(photos)
    say("\nLargest error of the normalised photographs, against float64 with the exact moments:")
    say(f"  keepnorm   {np.abs(normalized[:first] - truth).max():.1e}")
    for name, answer in _answers(batch):
        say(f"  {name:10} {np.abs(answer[:first] - truth).max():.1e}")


def _floats(moments: list[tuple[Fraction, Fraction]], i: int) -> Array:
    return np.array([float(m[i]) for m in moments])


def _numpy(x: Array) -> Array:
    answer: Array = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + np.float32(EPS))
    return answer


def _answers(batch: Array) -> Iterator[tuple[str, Array]]:
    """The same batch normalisation in NumPy and in each framework that is installed."""
    yield "NumPy", _numpy(batch)
    if find_spec("torch"):
        yield "PyTorch", _torch_step(batch)().numpy().transpose(0, 2, 3, 1)
    if find_spec("keras") and any(find_spec(backend) for backend in ("tensorflow", "jax", "torch")):
        import keras

        layer = keras.layers.BatchNormalization(axis=-1, epsilon=EPS)
        yield f"Keras ({keras.backend.backend()})", keras.ops.convert_to_numpy(layer(batch, training=True))
    if find_spec("flax") and find_spec("jax"):
        import flax.linen
        import jax

        norm = flax.linen.BatchNorm(use_running_average=False, axis=-1, epsilon=EPS)
        yield "Flax", np.asarray(norm.init_with_output(jax.random.key(0), batch)[0])
    if find_spec("tensorflow"):
        import tensorflow as tf

        mean, var = tf.nn.moments(batch, axes=[0, 1, 2])
        yield "TensorFlow", tf.nn.batch_normalization(batch, mean, var, None, None, EPS).numpy()


def _torch_step(batch: Array) -> Callable[[], Any]:
    import torch

    x = torch.from_numpy(batch).permute(0, 3, 1, 2)  # dimension 1 is the channel; the memory stays channels last
    return lambda: torch.nn.functional.batch_norm(x, None, None, training=True, eps=EPS)


def _seconds(step: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return min(taken)
