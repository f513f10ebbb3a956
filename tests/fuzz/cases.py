"""Random calls: what is drawn, and the arrays that it stands for."""

from math import prod
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tests import oracle
from tests.layouts import LAYOUTS

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
OVERLAPPING = "overlapping"

# Powers of ten by which the scales of two cells of one array may differ, and by which means may exceed deviations.
_SPREAD = {"float16": 3, "bfloat16": 16, "float32": 16, "float64": 16}
_OFFSET = {"float16": 1, "bfloat16": 2, "float32": 4, "float64": 4}


class Case(NamedTuple):
    """One call, without its values; they follow from the seed."""

    shape: tuple[int, ...]
    keep: tuple[int, ...]
    affine: tuple[int, ...] | None
    dtype: str
    layout: str
    spread: int
    offset: int
    parameters: str
    masked: str
    eps: float
    center: bool
    seed: int


class Arrays(NamedTuple):
    """What the case is called with: x and dy in C order, `stored` as the layout has them."""

    x: Any
    stored: Any
    dy: Any
    weight: Any
    bias: Any
    where: Any

    def options(self, case):
        return {"affine": case.affine, "eps": case.eps, "center": case.center, "where": self.where}


def _axes(ndim):
    return st.sets(st.integers(0, max(ndim - 1, 0)), max_size=ndim).map(lambda axes: tuple(sorted(axes)))


@st.composite
def cases(draw, dtypes=FLOATS + INTEGERS, layouts=(*LAYOUTS, OVERLAPPING), largest=400):
    """A case with at least one value; small sizes more often than large ones."""
    ndim = draw(st.integers(1, 4))
    sizes = st.one_of(st.integers(1, 5), st.sampled_from((7, 8, 9, 16, 17, 33, 64, 65)))
    shape: tuple[int, ...] = ()
    for _ in range(ndim):
        shape += (min(draw(sizes), max(largest // prod(shape), 1)),)
    dtype = draw(st.sampled_from(dtypes))
    return Case(
        shape,
        draw(_axes(ndim)),
        draw(st.none() | _axes(ndim)),
        dtype,
        draw(st.sampled_from(layouts)),
        draw(st.integers(0, _SPREAD.get(dtype, 0))),
        draw(st.integers(0, _OFFSET.get(dtype, 0))),
        draw(st.sampled_from(("", "w", "b", "wb"))),
        draw(st.sampled_from(("no", "no", "values", "rows", "nan"))),
        draw(st.sampled_from((1e-5, 1e-5, 1e-3, 1e-12))),
        draw(st.sampled_from((True, True, False))),
        draw(st.integers(0, 2**32 - 1)),
    )


def arrays(case):
    """The arrays of a case."""
    rng = np.random.default_rng(case.seed)
    if case.layout == OVERLAPPING:
        stored = _overlapping(case, rng)
        x = np.ascontiguousarray(stored)
    else:
        x = _values(case, rng, case.shape)
        stored = None
    where = _mask(case, rng)
    if case.masked == "nan" and x.dtype.kind not in "iub" and stored is None:
        x = np.where(where, x, np.asarray(np.nan, x.dtype))  # what is masked is whatever it is
    if stored is None:
        stored = LAYOUTS[case.layout](x)
    result = x.dtype if x.dtype.kind not in "iub" else np.dtype("f8" if x.dtype.itemsize == 8 else "f4")
    dy = (rng.standard_normal(case.shape) + 0.1).astype(result)
    on = case.keep if case.affine is None else case.affine
    shape = [case.shape[a] for a in on]
    weight = np.asarray(rng.standard_normal(shape) + 1, result) if "w" in case.parameters else None
    bias = np.asarray(rng.standard_normal(shape), result) if "b" in case.parameters else None
    return Arrays(x, stored, dy, weight, bias, where)


def _dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _values(case, rng, shape):
    dtype = _dtype(case.dtype)
    if dtype.kind == "b":
        return rng.random(shape) < rng.random()
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        if rng.random() < 0.5:
            return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        start = int(rng.integers(info.min, info.max - 100, dtype=dtype))
        return rng.integers(start, start + 100, shape, dtype)
    cells = [n if a in case.keep else 1 for a, n in enumerate(shape)]
    scale = 10.0 ** rng.uniform(-case.spread / 2, case.spread / 2, cells)
    offset = rng.choice((-1.0, 1.0), cells) * 10.0 ** rng.uniform(-1, case.offset, cells)
    return ((rng.standard_normal(shape) + offset) * scale).astype(dtype)


def _overlapping(case, rng):
    """A view in which several elements share their memory, as those of sliding windows do."""
    steps = rng.integers(0, 4, len(case.shape))
    length = 1 + sum((n - 1) * int(step) for n, step in zip(case.shape, steps, strict=True))
    base = _values(case._replace(keep=()), rng, (length,))
    return np.lib.stride_tricks.as_strided(base, case.shape, [int(step) * base.itemsize for step in steps])


def _mask(case, rng):
    """A mask that leaves at least one value in every cell."""
    if case.masked == "no":
        return None
    ndim = len(case.shape)
    reduced = tuple(a for a in range(ndim) if a not in case.keep)
    if case.masked == "rows":
        where = rng.random([n if a == 0 else 1 for a, n in enumerate(case.shape)]) < 0.7
        return where if all(cell.any() for cell in oracle.cells_of(np.broadcast_to(where, case.shape), case.keep)) else None
    where = rng.random(case.shape) < rng.choice((0.3, 0.9))
    return where | ~where.any(axis=reduced, keepdims=True)
