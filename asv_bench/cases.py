"""What is measured: operations on shapes, as data, and the arrays that they need."""

from typing import Any, NamedTuple

import numpy as np

Array = Any

# The most values an array may have; None for the sizes as they stand. Only tests and --tiny set it: the figures then mean
# nothing, but every line of a benchmark has run.
LIMIT: int | None = None

EPS = 1e-5

# Operations that reduce the axis of their case; the others keep it.
LAYERS = ("layer_norm", "rms_norm", "layer_backward", "layer_trip", "rms_trip")

# Forward and backward through PyTorch's autograd.
TRIPS = ("round_trip", "layer_trip", "rms_trip", "group_trip", "instance_trip")


class Case(NamedTuple):
    """One operation on one array. `axis` is kept by batch norm, moments and affine, and reduced by those of LAYERS."""

    operation: str
    shape: tuple[int, ...]
    axis: int
    dtype: str = "float32"
    offset: float = 0.0
    out: bool = False
    groups: int = 1
    masked: bool = False

    @property
    def label(self) -> str:
        """A name that is stable over versions: asv's results are stored under it."""
        size = str(self.shape).replace(" ", "")
        extra = [self.dtype] if self.dtype != "float32" else []
        extra += [f"mean={self.offset:g}"] if self.offset else []
        extra += ["out="] if self.out else []
        extra += [f"groups={self.groups}"] if self.groups > 1 else []
        extra += ["where="] if self.masked else []
        return " ".join((self.operation, size, str(self.axis), *extra))

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(_numpy_dtype(self.dtype)).itemsize

    @property
    def inner_is_reduced(self) -> bool:
        return self.axis % len(self.shape) != len(self.shape) - 1


class Data(NamedTuple):
    """The arrays of a case. `reduced` are the axes that are not kept (for LAYERS: the last one)."""

    case: Case
    x: Array
    weight: Array
    bias: Array
    mean: Array
    var: Array
    dy: Array
    out: Array
    axis: int
    reduced: tuple[int, ...]
    mask: Array = None


# KERNELS.md's table, which is what the promises are about; the benchmarks and the targets share it.
ROWS = (
    ((32, 64, 56, 56), 1),
    ((32, 56, 56, 64), -1),
    ((64, 256, 14, 14), 1),
    ((64, 14, 14, 256), -1),
    ((128, 3, 224, 224), 1),
    ((128, 224, 224, 3), -1),
    ((65536, 128), -1),
    ((256, 1024), -1),
    ((16, 2048, 7, 7), 1),
    ((8, 32, 16), 1),
)
SMALL_ROWS = (((8, 32, 16), 1), ((4, 100), -1))
LAYER_ROWS = ((64, 768), (4096, 768), (16384, 1024), (512, 4096), (8, 64))
BACKWARD_ROWS = ROWS[:7] + ROWS[8:9]
# Batches of features: rows too long to be cut into parts that fit the cache.
WIDE_ROWS = (((512, 1024), -1), ((2048, 256), -1), ((2048, 2048), -1), ((32, 7, 7, 512), -1))
IMAGES = ((128, 224, 224, 3), -1)

TRAINING = tuple(Case("batch_norm", *row) for row in ROWS)
TRAINING_OUT = tuple(case._replace(out=True) for case in TRAINING)
HALF = {name: tuple(case._replace(dtype=name) for case in TRAINING) for name in ("float16", "bfloat16")}
SMALL = tuple(Case("batch_norm", *row) for row in SMALL_ROWS)
WIDE = tuple(Case("batch_norm", *row) for row in WIDE_ROWS)
INFERENCE = tuple(Case("inference", *row) for row in ROWS)
INFERENCE_OUT = tuple(case._replace(out=True) for case in INFERENCE)
AFFINE_OUT = tuple(Case("affine", *row, out=True) for row in ROWS)
LAYER = tuple(Case("layer_norm", shape, -1) for shape in LAYER_ROWS)
LAYER_BACKWARD = tuple(Case("layer_backward", shape, -1) for shape in LAYER_ROWS)
RMS = tuple(Case("rms_norm", shape, -1) for shape in LAYER_ROWS)
MOMENTS = tuple(Case("moments", *row) for row in ROWS)
MOMENTS_OF_IMAGES = Case("moments", *IMAGES, offset=100.0)
MOMENTS_OF_BYTES = Case("moments", *IMAGES, dtype="uint8")
SMALL_IMAGES = tuple(Case("moments", (64, 64, 3), -1, dtype=dtype) for dtype in ("uint8", "float32"))
MASKED = (Case("moments", (65536, 64), -1, masked=True), Case("moments", (32, 64, 56, 56), 1, masked=True))
BACKWARD = tuple(Case("backward", *row) for row in BACKWARD_ROWS)
BACKWARD_WIDE = tuple(Case("backward", *row) for row in WIDE_ROWS)
ROUND_TRIP = tuple(Case("round_trip", *row) for row in BACKWARD_ROWS)


def sized(shape: tuple[int, ...], limit: int | None = None) -> tuple[int, ...]:
    """The shape, or one of the same rank with at most `limit` (LIMIT) values: the largest axis is halved until it fits."""
    most = LIMIT if limit is None else limit
    sizes = list(shape)
    while most is not None and np.prod(sizes) > most and max(sizes) > 2:
        largest = sizes.index(max(sizes))
        sizes[largest] = (sizes[largest] + 1) // 2
    return tuple(sizes)


def arrays(case: Case) -> Data:
    """Random arrays from a fixed seed; what the case's operation does not use costs little or nothing."""
    rng = np.random.default_rng(0)
    shape, dtype = sized(case.shape), _numpy_dtype(case.dtype)
    axis = case.axis % len(shape)
    if case.dtype == "uint8":
        x = rng.integers(0, 256, shape, dtype=np.uint8)
    else:
        x = rng.standard_normal(shape, dtype=np.float32)
        x += np.float32(case.offset)
        x = x.astype(dtype, copy=False)
    width = shape[axis]
    result = np.dtype(np.float32) if case.dtype == "uint8" else x.dtype
    weight, bias = (rng.random((2, width), dtype=np.float32) + np.float32(0.5)).astype(result)
    mean, var = (rng.random((2, width), dtype=np.float32) + np.float32(0.5)).astype(result)
    gradient = case.operation in ("backward", "layer_backward", *TRIPS)
    dy = rng.standard_normal(shape, dtype=np.float32).astype(result, copy=False) if gradient else None
    # Written once here, so that no measurement pays for its first touch.
    out = np.full(shape, 0, result) if case.out else None
    reduced = (axis,) if case.operation in LAYERS else tuple(a for a in range(len(shape)) if a != axis)
    mask = rng.random(shape, dtype=np.float32) > 0.1 if case.masked else None
    return Data(case, x, weight, bias, mean, var, dy, out, axis, reduced, mask)


def beside(data: Data, values: Array) -> Array:
    """Values of the case's axis, shaped so that they broadcast against x."""
    shape = [1] * data.x.ndim
    shape[data.axis] = -1
    return values.reshape(shape)


def _numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    from ml_dtypes import bfloat16

    return np.dtype(bfloat16)
