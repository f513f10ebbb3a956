"""`keepnorm.stats`: the moments of a data set in files, as a function."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepnorm.moments import Moments

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def stats(paths: Paths, /, keep: Any, **options: Any) -> "Moments":
    """Count, mean and variance of files together, larger than memory or not: what ``keepnorm stats`` does.

    Parameters
    ----------
    paths : path or sequence of paths
        Files, folders, patterns such as ``"photos/*.jpg"``, or addresses that fsspec knows: pictures, TIFF, .npy, .npz,
        Zarr, NetCDF, HDF5, FITS, NIfTI, Parquet, Feather, CSV, and tar files of pictures. ``FILE:NAME`` names an array.
    keep : int, tuple of int, str or tuple of str
        The axes that survive: numbers, a pattern, or names of dimensions where the file has them. Pictures have the axes
        (1, height, width, channels), tables (rows, columns).
    **options
        The fields of :class:`keepnorm.stats.options.Options`: `mode`, `nodata`, `nan_policy`, `scale`, `resize`,
        `center_crop`, `max_pixels`, `on_error`, `follow_links`, `memory`, `workers`, `checkpoint`.

    Returns
    -------
    Moments
        On NumPy.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError, OSError
        For what cannot be read; the message names the file.
    ModuleNotFoundError
        If the package that reads a file is not installed; the message says what to install.

    Examples
    --------
    >>> import tempfile, numpy as np, keepnorm as kn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i in range(4):
    ...         np.save(f"{folder}/{i}.npy", np.full((3, 2), i, np.float32))
    ...     kn.stats(folder, keep=-1).mean
    array([1.5, 1.5], dtype=float32)
    """
    from keepnorm.stats.summary import summarize

    found = summarize([os.fspath(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)], keep, options)
    return found.moments
