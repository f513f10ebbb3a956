"""How to make an array of every kind, how to read it, and which calls every kind must answer."""

from typing import Any, NamedTuple

import numpy as np
import pytest

import keepnorm as kn
from keepnorm import capabilities
from tests import oracle

BACKENDS = {b.name: b for b in capabilities.BACKENDS}
# Those whose values can be read here: meta tensors have none, and CUDA has a suite of its own (tests/gpu).
NAMES = [name for name in BACKENDS if name not in ("torch meta", "torch cuda", "cupy")]


class Kind(NamedTuple):
    """One kind of array: `make` takes NumPy's, `read` gives it back, `run` calls a function as that kind is used."""

    backend: capabilities.Backend
    type: type
    make: Any
    read: Any
    run: Any


def _call(f, *arrays):
    return f(*arrays)


def kind(name):
    """The kind of that name, or a skip if its package is not installed."""
    return _MAKERS[name](BACKENDS[name])


def _numpy(b):
    def make(x):
        x = np.array(x)
        x.flags.writeable = False  # a read-only array is the hardest of the plain ones
        return x

    return Kind(b, np.ndarray, make, np.asarray, _call)


def _torch(b):
    torch = pytest.importorskip("torch")

    def make(x):
        if x.dtype.name == "bfloat16":
            return torch.from_numpy(x.view(np.uint16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.array(x))

    def read(x):
        if x.dtype is torch.bfloat16:
            import ml_dtypes

            return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return x.numpy()

    return Kind(b, torch.Tensor, make, read, _call)


def _jax(b):
    jax = pytest.importorskip("jax")

    def traced(f, *arrays):
        with jax.enable_x64(True):  # sums in float64, as everywhere; test_jax has what float32 alone gives
            return jax.jit(f)(*arrays)

    run = traced if b.name == "jax jit" else _call
    return Kind(b, jax.Array, jax.numpy.asarray, np.asarray, run)


def _dask(b):
    da = pytest.importorskip("dask.array")

    def make(x):
        return da.from_array(np.array(x), chunks=tuple(max(1, (n + 1) // 2) for n in np.shape(x)))

    return Kind(b, da.Array, make, lambda x: x.compute(scheduler="synchronous"), _call)


def _xarray(b):
    xr = pytest.importorskip("xarray")
    return Kind(b, xr.DataArray, lambda x: xr.DataArray(np.array(x)), lambda x: x.values, _call)


def _strict(b):
    xp = pytest.importorskip("array_api_strict")
    return Kind(b, type(xp.asarray(1.0)), lambda x: xp.asarray(np.array(x)), lambda x: np.asarray(x), _call)


def _mlx(b):
    mx = pytest.importorskip("mlx.core")

    def make(x):
        x = np.array(x)
        if x.dtype.name == "bfloat16":
            return mx.array(x.view(np.uint16)).view(mx.bfloat16)
        return mx.array(x, dtype=getattr(mx, "bool_" if x.dtype.name == "bool" else x.dtype.name))

    def read(x):
        if x.dtype == mx.bfloat16:
            import ml_dtypes

            return np.array(x.view(mx.uint16)).view(ml_dtypes.bfloat16)
        return np.array(x)

    return Kind(b, mx.array, make, read, _call)


_MAKERS = {
    "numpy": _numpy,
    "torch": _torch,
    "jax": _jax,
    "jax jit": _jax,
    "dask": _dask,
    "xarray": _xarray,
    "array API": _strict,
    "mlx": _mlx,
}


class Call(NamedTuple):
    """A public function: how many axes it needs, ours of (x, parameter on the last axis), and the oracle's."""

    rank: int
    ours: Any
    exact: Any


def _all_but_last(ndim):
    return tuple(range(ndim - 1))


CALLS = {
    "normalize over all": Call(0, lambda x, *_: kn.normalize(x, ()), lambda x, *_: oracle.normalize(x, ())),
    "normalize over none": Call(
        0,
        lambda x, *_: kn.normalize(x, tuple(range(x.ndim))),
        lambda x, *_: oracle.normalize(x, tuple(range(x.ndim))),
    ),
    "normalize": Call(
        1,
        lambda x, p: kn.normalize(x, 0, p, p, affine=-1),
        lambda x, p: oracle.normalize(x, 0, p, p, affine=-1),
    ),
    "normalize by given moments": Call(
        1,
        lambda x, p: kn.normalize(x, -1, p, moments=kn.moments(x, -1)),
        lambda x, p: oracle.normalize(x, -1, p),
    ),
    "batch_norm": Call(1, lambda x, p: kn.batch_norm(x, p, p, channel=-1), lambda x, p: oracle.normalize(x, -1, p, p)),
    "instance_norm": Call(
        2,
        lambda x, p: kn.instance_norm(x, p, p, channel=-1),
        lambda x, p: oracle.normalize(x, (0, x.ndim - 1), p, p, affine=-1),
    ),
    "layer_norm": Call(
        1,
        lambda x, p: kn.layer_norm(x, p, p, axes=-1),
        lambda x, p: oracle.normalize(x, _all_but_last(x.ndim), p, p, affine=-1),
    ),
    "group_norm": Call(
        2,
        lambda x, p: kn.group_norm(x, p, groups=2, channel=-1),
        lambda x, p: oracle.normalize(
            x.reshape(*x.shape[:-1], 2, -1), (0, x.ndim - 1), p.reshape(2, -1), affine=(x.ndim - 1, x.ndim)
        ).reshape(x.shape),
    ),
    "rms_norm": Call(
        1,
        lambda x, p: kn.rms_norm(x, p, axes=-1),
        lambda x, p: oracle.normalize(x, _all_but_last(x.ndim), p, affine=-1, center=False),
    ),
    "affine": Call(
        1,
        lambda x, p: kn.affine(x, p, p, keep=-1),
        lambda x, p: x.astype(np.float64) * p + p,
    ),
    "normalize_vjp": Call(
        1,
        lambda x, p: kn.normalize_vjp(x, -1, p)[1](x).x,
        lambda x, p: oracle.gradients(x, x, -1, p)[0],
    ),
}

SHAPES = [(), (6,), (3, 4), (2, 3, 4), (2, 3, 4, 4), (2, 3, 2, 3, 4)]


def operands(rng, shape, dtype=np.float32):
    x = (rng.standard_normal(shape) * 2 + 3).astype(dtype)
    p = (rng.standard_normal(shape[-1:]) + 1).astype(np.float32)
    return x, p
