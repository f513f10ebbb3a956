"""Time and memory of every public operation: shapes, layouts, dtypes. Nothing is compared here; `asv compare` does that."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

import keepnorm as kn
from asv_bench import machine
from asv_bench.cases import Case, arrays, sized

Array = Any

NCHW = (32, 64, 56, 56)


def _layouts() -> dict[str, Callable[[Array], Array]]:
    """Arrays of one shape with different memory; each takes a C array and gives one of the same shape."""

    def filled(view: Array, x: Array) -> Array:
        view[...] = x
        return view

    return {
        "C": lambda x: x,
        "channels last": lambda x: np.ascontiguousarray(np.moveaxis(x, 1, -1)).transpose(0, 3, 1, 2),
        "Fortran": np.asfortranarray,
        "transposed": lambda x: np.ascontiguousarray(x.transpose(2, 0, 3, 1)).transpose(1, 3, 0, 2),
        "sliced": lambda x: filled(np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2], x),
        "negative": lambda x: np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1],
        "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    }


LAYOUTS = _layouts()


def _parameters(x: Array, *axes: int) -> tuple[Array, Array]:
    shape = tuple(x.shape[a] for a in axes)
    return np.full(shape, 1.5, np.float32), np.full(shape, 0.5, np.float32)


def _running(x: Array) -> Any:
    mean, var = np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
    return kn.Moments.from_mean_var(mean, var, keep=1, ndim=x.ndim, count=x.size)


def _accumulate(x: Array) -> Any:
    seen = kn.Accumulator(1)
    seen.update(x)
    return seen.moments


def _groups(x: Array) -> int:
    return 32 if x.shape[1] % 32 == 0 else 1


# Every operation on an array (n, c, h, w): what is done once, and what is measured.
OPERATIONS: dict[str, Callable[[Array], Callable[[], Any]]] = {
    "moments": lambda x: lambda: kn.moments(x, 1),
    "moments where": lambda x: _with_mask(x, lambda mask: kn.moments(x, 1, where=mask)),
    "moments keep=all": lambda x: lambda: kn.moments(x, (0, 1, 2, 3)),
    "moments keep=none": lambda x: lambda: kn.moments(x, ()),
    "moments alternating": lambda x: lambda: kn.moments(x, (1, 3)),
    "affine": lambda x: lambda p=_parameters(x, 1): kn.affine(x, *p, keep=1),
    "normalize": lambda x: lambda p=_parameters(x, 1): kn.normalize(x, 1, *p),
    "normalize moments": lambda x: lambda p=_parameters(x, 1), m=_running(x): kn.normalize(x, 1, *p, moments=m),
    "normalize where": lambda x: _with_mask(x, lambda mask: kn.normalize(x, 1, where=mask)),
    "normalize out": lambda x: lambda out=np.zeros(x.shape, np.float32): kn.normalize(x, 1, out=out),
    "normalize_vjp": lambda x: lambda p=_parameters(x, 1): kn.normalize_vjp(x, 1, *p)[1](x),
    "batch_norm": lambda x: lambda p=_parameters(x, 1): kn.batch_norm(x, *p, channel=1),
    "instance_norm": lambda x: lambda p=_parameters(x, 1): kn.instance_norm(x, *p, channel=1),
    "layer_norm": lambda x: lambda p=_parameters(x, 1, 2, 3): kn.layer_norm(x, *p, axes=(1, 2, 3)),
    "group_norm": lambda x: lambda p=_parameters(x, 1), g=_groups(x): kn.group_norm(x, *p, groups=g, channel=1),
    "rms_norm": lambda x: lambda p=_parameters(x, 3): kn.rms_norm(x, p[0], axes=3),
    "Accumulator": lambda x: lambda: _accumulate(x),
    "BatchNorm training": lambda x: lambda bn=kn.BatchNorm(x.shape[1], keep=1): bn(x, training=True),
    "BatchNorm inference": lambda x: lambda bn=kn.BatchNorm(x.shape[1], keep=1): bn(x, training=False),
    "BatchNorm vjp": lambda x: lambda bn=kn.BatchNorm(x.shape[1], keep=1): bn.vjp(x)[1](x),
}


def _with_mask(x: Array, call: Callable[[Array], Any]) -> Callable[[], Any]:
    mask = np.random.default_rng(0).random((x.shape[0], 1, *x.shape[2:])) < 0.9
    return lambda: call(mask)


def _array(shape: tuple[int, ...] = NCHW, dtype: str = "float32") -> Array:
    return arrays(Case("moments", shape, 1, dtype)).x


class _Threaded:
    """Two threads, as in every figure of this project."""

    timeout = 300

    def start(self) -> None:
        machine.pin()
        self.threads = machine.our_threads()
        self.threads.__enter__()

    def teardown(self, *_: Any) -> None:
        self.threads.__exit__(None, None, None)


class Operations(_Threaded):
    """Every public operation on every layout of (32, 64, 56, 56) float32."""

    param_names = ("operation", "layout")
    params = (tuple(OPERATIONS), tuple(LAYOUTS))

    def setup(self, operation: str, layout: str) -> None:
        self.start()
        self.call = OPERATIONS[operation](LAYOUTS[layout](_array()))
        self.call()

    def time_call(self, _operation: str, _layout: str) -> None:
        self.call()

    def peakmem_call(self, _operation: str, _layout: str) -> None:
        self.call()

    def track_memory(self, _operation: str, _layout: str) -> float:
        """What one call allocates at its peak, its result included: the output alone where nothing is copied."""
        tracemalloc.start()
        try:
            self.call()
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    track_memory.unit = "MiB"  # type: ignore[attr-defined]


class Dtypes(_Threaded):
    """Moments and normalize in every kind of data."""

    param_names = ("operation", "dtype")
    params = (("moments", "normalize"), ("float16", "bfloat16", "float32", "float64", "uint8"))

    def setup(self, operation: str, dtype: str) -> None:
        self.start()
        try:
            x = _array(dtype=dtype)
        except ImportError as reason:
            raise NotImplementedError(str(reason)) from reason  # asv's word for a skip
        self.call = OPERATIONS[operation](x)
        self.call()

    def time_call(self, _operation: str, _dtype: str) -> None:
        self.call()

    def peakmem_call(self, _operation: str, _dtype: str) -> None:
        self.call()


class Shapes(_Threaded):
    """Forms of the plan that are not images: long single cells, millions of tiny cells, few channels, many axes."""

    cells = {
        "one long cell": ((2**24,), ()),
        "millions of tiny cells": ((2**21, 4), 0),
        "three channels last": ((64, 112, 112, 3), -1),
        "three channels first": ((64, 3, 112, 112), 1),
        "six alternating axes": ((16, 8, 16, 8, 16, 8), (0, 2, 4)),
        "many small rows": ((65536, 32), 1),
    }
    param_names = ("shape",)
    params = (tuple(cells),)

    def setup(self, name: str) -> None:
        self.start()
        shape, self.keep = self.cells[name]
        self.x = np.ones(sized(shape), np.float32)
        kn.moments(self.x, self.keep), kn.normalize(self.x, self.keep)

    def time_moments(self, _name: str) -> None:
        kn.moments(self.x, self.keep)

    def time_normalize(self, _name: str) -> None:
        kn.normalize(self.x, self.keep)


class Small:
    """The cost of a call itself: the plan, the dispatch, the allocation; and of what works on parameters alone."""

    def setup(self) -> None:
        self.x = np.ones((8, 32, 16), np.float32)
        self.weight, self.bias = _parameters(self.x, 1)
        self.moments = kn.moments(self.x, 1)
        self.bn = kn.BatchNorm(32, keep=1)
        self.kernel = np.ones((32, 16, 3, 3), np.float32)
        self.time_batch_norm()

    def time_batch_norm(self) -> None:
        kn.batch_norm(self.x, self.weight, self.bias, channel=1)

    def time_moments(self) -> None:
        kn.moments(self.x, 1)

    def time_pattern(self) -> None:
        kn.normalize(self.x, "n c t -> c")

    def time_merge(self) -> None:
        self.moments + self.moments

    def time_mean_and_var(self) -> None:
        self.moments.mean, self.moments.var

    def time_fold(self) -> None:
        self.bn.fold()

    def time_fold_into(self) -> None:
        kn.porting.fold_into(self.kernel, None, self.bn, keep="o i h w -> o")

    def time_dump_and_load(self) -> None:
        kn.dialects.load("torch", kn.dialects.dump("torch", self.bn))

    def time_explain(self) -> None:
        str(kn.explain((32, 3, 224, 224), 1))
