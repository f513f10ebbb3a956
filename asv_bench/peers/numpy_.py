"""NumPy as its users write it, in float32; the moments of float32 data with dtype=float64, without which they are wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np

from asv_bench.cases import EPS, Data, beside
from asv_bench.contestant import Contestant


def prepare(name: str, data: Data) -> Contestant:
    del name  # one peer in this file
    operation = data.case.operation
    fetch = tuple if operation == "moments" else lambda y: (y,)
    return Contestant(_OPERATIONS[operation](data), fetch, 1)


def _batch_norm(d: Data) -> Callable[[], Any]:
    weight, bias, eps = beside(d, d.weight), beside(d, d.bias), np.float32(EPS)

    def call() -> Any:
        mean, var = d.x.mean(d.reduced, keepdims=True), d.x.var(d.reduced, keepdims=True)
        return (d.x - mean) / np.sqrt(var + eps) * weight + bias

    return call


def _inference(d: Data) -> Callable[[], Any]:
    mean, var, weight, bias = (beside(d, a) for a in (d.mean, d.var, d.weight, d.bias))
    eps = np.float32(EPS)
    return lambda: (d.x - mean) / np.sqrt(var + eps) * weight + bias


def _affine(d: Data) -> Callable[[], Any]:
    scale, shift = beside(d, d.weight), beside(d, d.bias)
    return lambda: d.x * scale + shift


def _rms_norm(d: Data) -> Callable[[], Any]:
    eps = np.float32(EPS)
    return lambda: d.x / np.sqrt(np.square(d.x).mean(-1, keepdims=True) + eps) * d.weight


def _moments(d: Data) -> Callable[[], Any]:
    if d.x.dtype == np.uint8:
        # What the issue names: a float copy, then the plain mean and variance.
        def of_integers() -> Any:
            x = d.x.astype(np.float32)
            return x.mean(d.reduced), x.var(d.reduced)

        return of_integers
    return lambda: (d.x.mean(d.reduced, dtype=np.float64), d.x.var(d.reduced, dtype=np.float64))


_OPERATIONS = {
    "batch_norm": _batch_norm,
    "inference": _inference,
    "affine": _affine,
    "layer_norm": _batch_norm,
    "rms_norm": _rms_norm,
    "moments": _moments,
}
