"""Libraries of statistics: numbagg, dask and scikit-learn's StandardScaler; mean and population variance of each kept cell."""

from collections.abc import Callable
from typing import Any

import numpy as np

from asv_bench import machine
from asv_bench.cases import Data
from asv_bench.contestant import Contestant


def prepare(name: str, data: Data) -> Contestant:
    call, threads = {"numbagg": _numbagg, "dask": _dask, "sklearn": _sklearn}[name](data)
    return Contestant(call, tuple, threads)


def _numbagg(d: Data) -> tuple[Callable[[], Any], int]:
    import numba
    import numbagg

    return lambda: (numbagg.nanmean(d.x, axis=d.reduced), numbagg.nanvar(d.x, axis=d.reduced, ddof=0)), numba.get_num_threads()


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
