"""Time and memory of every public operation: shapes, layouts, dtypes. Nothing is compared here; `asv compare` does that."""

import tracemalloc
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

import keepnorm as kn
from asv_bench import machine
from asv_bench.cases import Case, arrays, sized
from keepnorm.engines.host import pool

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


class Given:
    """An array (n, c, h, w), and what goes with it, made when it is first asked for."""

    def __init__(self, x: Array) -> None:
        self.x = x
        self.channels = x.shape[1]
        self.groups = 32 if self.channels % 32 == 0 else 1

    def ones(self, *axes: int) -> Array:
        return np.ones(tuple(self.x.shape[a] for a in axes), np.float32)

    @cached_property
    def channel(self) -> tuple[Array, Array]:
        return self.ones(1), self.ones(1)

    @cached_property
    def example(self) -> tuple[Array, Array]:
        return self.ones(1, 2, 3), self.ones(1, 2, 3)

    @cached_property
    def last(self) -> Array:
        return self.ones(3)

    @cached_property
    def running(self) -> Any:
        return kn.Moments.from_mean_var(*self.channel, keep=1, ndim=4, count=self.x.size)

    @cached_property
    def mask(self) -> Array:
        return np.random.default_rng(0).random((self.x.shape[0], 1, *self.x.shape[2:])) < 0.9

    @cached_property
    def out(self) -> Array:
        return np.full(self.x.shape, 0, np.float32)

    @cached_property
    def layer(self) -> Any:
        return kn.BatchNorm(self.channels, keep=1)


def accumulate(x: Array) -> Any:
    seen = kn.Accumulator(1)
    seen.update(x)
    return seen.moments


OPERATIONS: dict[str, Callable[[Given], Any]] = {
    "moments": lambda g: kn.moments(g.x, 1),
    "moments where": lambda g: kn.moments(g.x, 1, where=g.mask),
    "moments keep all": lambda g: kn.moments(g.x, (0, 1, 2, 3)),
    "moments keep none": lambda g: kn.moments(g.x, ()),
    "moments alternating": lambda g: kn.moments(g.x, (1, 3)),
    "affine": lambda g: kn.affine(g.x, *g.channel, keep=1),
    "normalize": lambda g: kn.normalize(g.x, 1, *g.channel),
    "normalize moments": lambda g: kn.normalize(g.x, 1, *g.channel, moments=g.running),
    "normalize where": lambda g: kn.normalize(g.x, 1, where=g.mask),
    "normalize out": lambda g: kn.normalize(g.x, 1, out=g.out),
    "normalize_vjp": lambda g: kn.normalize_vjp(g.x, 1, *g.channel)[1](g.x),
    "batch_norm": lambda g: kn.batch_norm(g.x, *g.channel, channel=1),
    "instance_norm": lambda g: kn.instance_norm(g.x, *g.channel, channel=1),
    "layer_norm": lambda g: kn.layer_norm(g.x, *g.example, axes=(1, 2, 3)),
    "group_norm": lambda g: kn.group_norm(g.x, *g.channel, groups=g.groups, channel=1),
    "rms_norm": lambda g: kn.rms_norm(g.x, g.last, axes=3),
    "Accumulator": lambda g: accumulate(g.x),
    "BatchNorm training": lambda g: g.layer(g.x, training=True),
    "BatchNorm inference": lambda g: g.layer(g.x, training=False),
    "BatchNorm vjp": lambda g: g.layer.vjp(g.x)[1](g.x),
}


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
        self.given, self.operation = Given(LAYOUTS[layout](_array())), OPERATIONS[operation]
        self.operation(self.given)

    def time_call(self, _operation: str, _layout: str) -> None:
        self.operation(self.given)

    def peakmem_call(self, _operation: str, _layout: str) -> None:
        self.operation(self.given)

    def track_memory(self, _operation: str, _layout: str) -> float:
        """What one call allocates at its peak, its result included: the output alone where nothing is copied."""
        large, pool.LARGE = pool.LARGE, 1 << 40  # memory that is kept is not NumPy's, which is what is traced
        tracemalloc.start()
        try:
            self.operation(self.given)
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()
            pool.LARGE = large

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
        self.given, self.operation = Given(x), OPERATIONS[operation]
        self.operation(self.given)

    def time_call(self, _operation: str, _dtype: str) -> None:
        self.operation(self.given)

    def peakmem_call(self, _operation: str, _dtype: str) -> None:
        self.operation(self.given)


class Shapes(_Threaded):
    """Forms of the plan that are not images: long single cells, millions of tiny cells, few channels, many axes."""

    cells: ClassVar[dict[str, tuple[tuple[int, ...], Any]]] = {
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
        self.time_moments(name)
        self.time_normalize(name)

    def time_moments(self, _name: str) -> None:
        kn.moments(self.x, self.keep)

    def time_normalize(self, _name: str) -> None:
        kn.normalize(self.x, self.keep)


class Small:
    """The cost of a call itself: the plan, the dispatch, the allocation; and of what works on parameters alone."""

    def setup(self) -> None:
        self.x = np.ones((8, 32, 16), np.float32)
        self.weight, self.bias = np.ones((2, 32), np.float32)
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

    def time_merge(self) -> Any:
        return self.moments + self.moments

    def time_mean_and_var(self) -> Any:
        return self.moments.mean, self.moments.var

    def time_fold(self) -> None:
        self.bn.fold()

    def time_fold_into(self) -> None:
        kn.porting.fold_into(self.kernel, None, self.bn, keep="o i h w -> o")

    def time_dump_and_load(self) -> None:
        kn.dialects.load("torch", kn.dialects.dump("torch", self.bn))

    def time_explain(self) -> None:
        str(kn.explain((32, 3, 224, 224), 1))
