"""A case as arrays: the same values in every process, in the memory layout that the case names."""

from typing import NamedTuple

import ml_dtypes
import numpy as np

from .cases import Case

Array = np.ndarray

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
SCALES = (1.0, 0.03125, 40.0)


class Data(NamedTuple):
    """What goes in. All arrays have the axes of the case, whatever their memory order."""

    x: Array
    weight: Array | None
    bias: Array | None
    dy: Array
    where: Array | None
    mean: Array  # given moments: of the inference, or the running ones before an update
    var: Array
    decay: float  # a float32 value, because ONNX stores it as one


def parameter_dtype(dtype: str) -> np.dtype:
    """Weights, biases and running moments of half precision data stay in float32, as every framework's do."""
    return DTYPES["float64" if dtype == "float64" else "float32"]


def load(case: Case) -> Data:
    """The arrays of a case."""
    rng = np.random.default_rng(case.seed)
    dtype, parameters = DTYPES[case.dtype], parameter_dtype(case.dtype)
    wide, offset, scale = _values(case, rng)
    x = arrange(wide.astype(dtype), case.layout)
    dy = arrange(rng.standard_normal(case.shape).astype(dtype), case.layout)
    # Sixteenths are exact in every dtype, so that all libraries are asked the same question.
    weight = np.asarray(rng.integers(4, 33, case.affine_shape) / 16, parameters) if case.weight else None
    bias = np.asarray(rng.integers(-16, 17, case.affine_shape) / 16, parameters) if case.bias else None
    mean = np.asarray(offset + scale * rng.standard_normal(case.kept_shape) / 4, parameters)
    var = np.asarray(scale * scale * (0.5 + rng.random(case.kept_shape)), parameters)
    return Data(x, weight, bias, dy, _mask(case, rng), mean, var, float(rng.choice((0.875, 0.96875, 0.5))))


def _values(case: Case, rng: np.random.Generator) -> tuple[Array, float, float]:
    """The values in float64, before they are rounded to the dtype, with their offset and spread."""
    noise = rng.standard_normal(case.shape)
    scale = SCALES[case.seed % len(SCALES)]
    if case.values.startswith("ratio"):
        ratio = int(case.values.split()[1])
        if case.dtype == "float16":
            scale = min(scale, 30_000 / max(ratio, 1))  # 65504 is the largest float16
        sign = -1 if case.seed % 2 else 1
        return sign * ratio * scale + scale * noise, sign * ratio * scale, scale
    if case.values == "constant":
        cells = 100 * rng.standard_normal([n if a in case.keep else 1 for a, n in enumerate(case.shape)])
        return np.broadcast_to(cells, case.shape), 0.0, 100.0
    if case.values == "subnormal":
        tiny = float(ml_dtypes.finfo(DTYPES[case.dtype]).tiny)
        return noise * tiny / 8, 0.0, 1.0
    spot = tuple(int(rng.integers(n)) for n in case.shape)
    noise[spot] = {"nan": np.nan, "inf": np.inf if case.seed % 2 else -np.inf}[case.values]
    return scale * noise, 0.0, scale


def arrange(x: Array, layout: str) -> Array:
    """The same values at other addresses."""
    if layout == "F":
        return np.asfortranarray(x)
    if layout == "channels_last" and x.ndim > 2:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    if layout == "transposed":
        return np.ascontiguousarray(x.swapaxes(0, -1)).swapaxes(0, -1)
    if layout == "sliced":
        room = np.zeros((2 * x.shape[0] + 1, *x.shape[1:-1], 3 * x.shape[-1] + 1) if x.ndim > 1 else 2 * x.size + 1, x.dtype)
        view = room[1::2, ..., 1::3] if x.ndim > 1 else room[1::2]
        view[...] = x
        return view
    if layout == "negative":
        turned = (slice(None, None, -1), ..., slice(None, None, -1)) if x.ndim > 1 else (slice(None, None, -1),)
        return np.ascontiguousarray(x[turned])[turned]
    return np.ascontiguousarray(x)


def _mask(case: Case, rng: np.random.Generator) -> Array | None:
    if not case.mask:
        return None
    shape = case.shape if case.mask == "full" else (*case.shape[:-1], 1)
    return rng.random(shape) < 0.7
