"""Kernels against the oracle, where a compiler may go wrong: cells side by side whose values lie up to 1e9 apart, and masks.

Run as a module, in a process whose environment says how kernels are compiled. It fails on the first wrong value, and prints
a digest of every array that must have the same bits however it was compiled.
"""

import hashlib
import json
import sys
import zlib

import ml_dtypes
import numpy as np

import keepnorm as kn
from tests import oracle
from tests.layouts import LAYOUTS
from tests.tolerance import assert_gradient, assert_moments, assert_output

SHAPE = (30, 7, 24)
KEEPS = (1, 2, (0, 1))
STORED = ("C", "Fortran", "all negative", "stepped")
FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
WHOLE = (np.int64, np.uint8)
EPS = 1e-5


def generator(*what):
    """Random numbers that are the same in every process."""
    return np.random.default_rng(zlib.crc32(repr(what).encode()))


def cells(dtype, keep, rng):
    """Values whose cells have each their own offset and spread, and a first value that lies far away."""
    sizes = [n if a in oracle.kept_axes(keep, len(SHAPE)) else 1 for a, n in enumerate(SHAPE)]
    kind = np.dtype(dtype)
    largest = np.iinfo(kind).max if kind.kind in "iu" else float(ml_dtypes.finfo(kind).max)
    most = min(1e9, float(largest) / 4)
    offset = 10 ** rng.uniform(-2, np.log10(most), sizes)
    spread = 10 ** rng.uniform(-3, np.log10(most) - 2, sizes)
    if kind.kind != "u":
        offset *= rng.choice([-1, 1], sizes)
    x = offset + spread * rng.standard_normal(SHAPE)
    if kind.kind not in "iu":
        first = tuple(slice(None) if n > 1 else 0 for n in sizes)
        x[first] = rng.choice([0.0, most], x[first].shape)
    return np.clip(x, 0 if kind.kind == "u" else -2 * most, 2 * most).astype(dtype)


def moments():
    """Moments of every dtype in every layout, with a mask and without."""
    for dtype in (*FLOATS, *WHOLE, np.bool_):
        for keep in KEEPS:
            rng = generator(np.dtype(dtype).name, keep)
            x = rng.random(SHAPE) < rng.random(SHAPE[1])[:, None] if dtype is np.bool_ else cells(dtype, keep, rng)
            for where in (None, rng.random(SHAPE) < 0.9):
                exact = oracle.moments(x, keep, where)
                for name in STORED:
                    store = LAYOUTS[name]
                    got = kn.moments(store(x), keep, where=None if where is None else store(where))
                    what = f"{np.dtype(dtype).name} keep={keep} {name}{'' if where is None else ', masked'}"
                    assert_moments(got, exact, "float64" if np.dtype(dtype).name.endswith("64") else "float32", what)


def outputs():
    """Normalised arrays, whose bits are the same in every layout where they are narrow, and their gradients."""
    for dtype in (np.float64, np.float32):
        for keep in KEEPS:
            rng = generator("outputs", np.dtype(dtype).name, keep)
            x = cells(dtype, keep, rng)
            dy = rng.standard_normal(SHAPE).astype(dtype)
            weight, bias = (rng.standard_normal(oracle.kept_shape(x, keep)).astype(dtype) for _ in range(2))
            exact = oracle.normalize(x, keep, weight, bias, eps=EPS)
            size = np.abs(oracle.normalize(x, keep, weight, eps=EPS)) + np.abs(bias).max()
            gradient, *_, terms = oracle.gradients(x, dy, keep, weight, eps=EPS)
            reduced = tuple(a for a in range(x.ndim) if a not in oracle.kept_axes(keep, x.ndim))
            largest, most = (np.abs(v).max(axis=reduced, keepdims=True) for v in (gradient, terms))
            bits = set()
            for name in STORED:
                store = LAYOUTS[name]
                y, vjp = kn.normalize_vjp(store(x), keep, weight, bias, eps=EPS)
                what = f"{np.dtype(dtype).name} keep={keep} {name}"
                assert_output(y, exact, x.size, what, size)
                assert_gradient(vjp(store(dy)).x, gradient, largest, x.size, what, most)
                bits.add(hashlib.sha256(y.tobytes()).hexdigest())
            if dtype is np.float32:
                assert len(bits) == 1, f"{len(bits)} answers by layout: float32 keep={keep}"
                yield f"float32 keep={keep}", bits.pop()


if __name__ == "__main__":
    moments()
    json.dump(dict(outputs()), sys.stdout)
