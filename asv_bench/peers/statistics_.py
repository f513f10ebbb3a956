"""Libraries of statistics: numbagg, bottleneck, OpenCV, dask, scikit-learn; mean and population variance of each kept cell."""

from collections.abc import Callable
from typing import Any

import numpy as np

from asv_bench import machine
from asv_bench.cases import Data
from asv_bench.contestant import Contestant


def prepare(name: str, data: Data) -> Contestant:
    builders = {"numbagg": _numbagg, "bottleneck": _bottleneck, "opencv": _opencv, "dask": _dask, "sklearn": _sklearn}
    call, threads = builders[name](data)
    return Contestant(call, tuple, threads)


def _numbagg(d: Data) -> tuple[Callable[[], Any], int]:
    import numba
    import numbagg

    x = d.x if d.mask is None else np.where(d.mask, d.x, np.float32(np.nan))
    return lambda: (numbagg.nanmean(x, axis=d.reduced), numbagg.nanvar(x, axis=d.reduced, ddof=0)), numba.get_num_threads()


def _bottleneck(d: Data) -> tuple[Callable[[], Any], int]:
    import bottleneck

    if d.axis != d.x.ndim - 1:
        raise ValueError(f"bottleneck takes one axis, so that rows are flattened and the last is kept; got {d.axis}")
    rows = (d.x if d.mask is None else np.where(d.mask, d.x, np.float32(np.nan))).reshape(-1, d.x.shape[-1])
    return lambda: (bottleneck.nanmean(rows, 0), bottleneck.nanvar(rows, 0)), 1


def _opencv(d: Data) -> tuple[Callable[[], Any], int]:
    import cv2

    if d.x.ndim != 3 or d.axis != 2 or d.x.shape[2] > 4:
        raise ValueError(f"OpenCV takes one image with up to 4 channels, the last axis; got shape {d.x.shape}")
    cv2.setNumThreads(machine.cores())
    mask = None if d.mask is None else d.mask[..., 0].astype(np.uint8)

    def fetchable() -> Any:
        mean, std = cv2.meanStdDev(d.x, mask=mask)
        return mean[:, 0], np.square(std[:, 0])

    return fetchable, machine.cores()


def _dask(d: Data) -> tuple[Callable[[], Any], int]:
    import dask
    import dask.array as da

    threads = machine.cores()
    # Four chunks for each thread, so that all have work; one pass for both answers.
    lazy = da.from_array(d.x, chunks=(-(-d.x.shape[0] // (4 * threads)), *d.x.shape[1:]))
    wanted = lazy.mean(d.reduced), lazy.var(d.reduced)
    return lambda: dask.compute(*wanted, scheduler="threads", num_workers=threads), threads


def _sklearn(d: Data) -> tuple[Callable[[], Any], int]:
    from sklearn.preprocessing import StandardScaler

    if d.axis != d.x.ndim - 1:
        raise ValueError(f"scikit-learn keeps the last axis; got {d.axis} of {d.x.ndim}")
    rows = d.x.reshape(-1, d.x.shape[-1])

    def call() -> Any:
        scaler = StandardScaler().partial_fit(rows)
        return np.asarray(scaler.mean_), np.asarray(scaler.var_)

    return call, 1
