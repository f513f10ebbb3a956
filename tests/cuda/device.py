"""The CUDA engine on NumPy arrays, which stand for a device's in the simulator."""

import numpy as np

from keepnorm.axes import resolve
from keepnorm.engines.cuda import engine
from keepnorm.request import Request


def measure(x, keep, where=None):
    return engine.moments(x, resolve(x.shape, keep), where)


def normalize(x, keep, weight=None, bias=None, *, affine=None, eps=1e-5, center=True, moments=None, where=None, out=None):
    axes = resolve(x.shape, keep, affine)
    return engine.normalize(x, Request(axes, weight, bias, eps, center, moments, where), out)


def normalize_vjp(x, keep, weight=None, bias=None, *, affine=None, eps=1e-5, center=True, moments=None, where=None):
    axes = resolve(x.shape, keep, affine)
    return engine.normalize_vjp(x, Request(axes, weight, bias, eps, center, moments, where))


def subsets(ndim):
    """Every choice of kept axes."""
    return [tuple(a for a in range(ndim) if bits >> a & 1) for bits in range(2**ndim)]


def data(rng, shape, dtype="float32", offset=0.0):
    """Values that every dtype can hold."""
    name = np.dtype(dtype).name
    if name == "bool":
        return rng.random(shape) < 0.4
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    return (rng.standard_normal(shape) + offset).astype(dtype)
