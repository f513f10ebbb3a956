"""NetCDF (xarray), HDF5 (h5py), FITS (astropy) and NIfTI (nibabel), with their gaps and packing."""

import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keepnorm.stats.options import Options
from keepnorm.stats.readers.packed import decode
from keepnorm.stats.readers.source import Box, Piece, Source, line, numbers
from keepnorm.stats.readers.table import need

_BAD = (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError, EOFError, OverflowError)
_one = threading.RLock()  # neither netCDF nor HDF5 is made for two threads


def _pick(names: list[str], member: str, path: Path) -> str:
    if member in names:
        return member
    if not member and len(names) == 1:
        return names[0]
    found = ", ".join(names[:9]) or "(none)"
    raise ValueError(f"{path}: holds the arrays {found}; name one, as in {path}:{(*names, 'x')[0]}")


def _source(name: str, array: Any, attributes: Any, options: Options, dims: tuple[str, ...] = (), grain: Any = None) -> Source:
    numbers(name, array.dtype)
    read = partial(_read, array, name, dict(attributes), options.nodata)
    chunks = tuple(int(c) for c in grain) if grain else ()
    return Source(name, tuple(array.shape), read, itemsize=array.dtype.itemsize, dims=dims, grain=chunks)


def _read(array: Any, name: str, attributes: dict[str, Any], nodata: object, box: Box) -> Piece:
    try:
        with _one:
            raw = np.asarray(array[box])
    except _BAD as error:
        raise ValueError(f"{name}: cannot be read: {line(error)}") from error
    if not raw.dtype.isnative:
        raw = raw.astype(raw.dtype.newbyteorder("="))
    return decode(raw, attributes, nodata)


def open_netcdf(path: Path, member: str, options: Options, cleanup: ExitStack) -> list[Source]:
    """One variable of a NetCDF file, through xarray."""
    xarray = need("xarray", "netcdf", path)
    try:
        with _one:
            data = cleanup.enter_context(xarray.open_dataset(path, decode_cf=False, cache=False))
    except _BAD as error:
        raise ValueError(f"{path}: not a NetCDF file that can be read: {line(error)}") from error
    bounds = {data[n].attrs.get("bounds") for n in data.variables}
    names = [str(n) for n in data.data_vars if n not in bounds and data[n].ndim and data[n].dtype.kind in "biuf"]
    name = _pick(names, member, path)
    variable = data[name].variable
    grain = variable.encoding.get("chunksizes")
    return [_source(f"{path}:{name}", _Lazy(variable), variable.attrs, options, tuple(map(str, variable.dims)), grain)]


class _Lazy:
    """An xarray variable whose boxes are arrays."""

    def __init__(self, variable: Any) -> None:
        self.variable = variable
        self.dtype, self.shape = variable.dtype, variable.shape

    def __getitem__(self, box: Box) -> Any:
        return self.variable[box].values


def open_hdf5(path: Path, member: str, options: Options, cleanup: ExitStack) -> list[Source]:
    """One data set of an HDF5 file."""
    h5py = need("h5py", "netcdf", path)
    names: list[str] = []
    try:
        with _one:
            file = cleanup.enter_context(h5py.File(path, "r"))
            file.visititems(
                lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf" else None
            )
            name = _pick(names, member, path)
            array, attributes = file[name], dict(file[name].attrs)
    except _BAD as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not an HDF5 file that can be read: {line(error)}") from error
    return [_source(f"{path}:{name}", array, attributes, options, grain=array.chunks)]


def open_fits(path: Path, member: str, options: Options, cleanup: ExitStack) -> list[Source]:
    """One image of a FITS file, with BZERO, BSCALE and BLANK."""
    need("astropy", "fits", path)
    from astropy.io import fits

    try:
        hdus = cleanup.enter_context(fits.open(path, memmap=False, do_not_scale_image_data=True))
        images = {h.name or str(i): h for i, h in enumerate(hdus) if h.is_image and h.header.get("NAXIS", 0)}
        name = _pick(list(images), member, path)
        header, shape = images[name].header, images[name].shape
        keys = {"scale_factor": "BSCALE", "add_offset": "BZERO", "_FillValue": "BLANK"}
        attributes = {cf: header[key] for cf, key in keys.items() if key in header}
        array = _Section(images[name].section, np.dtype(fits.BITPIX2DTYPE[header["BITPIX"]]), shape)
    except _BAD as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a FITS file that can be read: {line(error)}") from error
    return [_source(f"{path}:{name}", array, attributes, options)]


class _Section:
    """A part of a FITS image that is not in memory."""

    def __init__(self, section: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.section, self.dtype, self.shape = section, dtype, shape

    def __getitem__(self, box: Box) -> Any:
        return self.section[box]


def open_nifti(path: Path, _member: str, options: Options, _cleanup: ExitStack) -> list[Source]:
    """The voxels of a NIfTI file, with slope and intercept."""
    nibabel = need("nibabel", "nifti", path)
    try:
        voxels = nibabel.load(path).dataobj
    except (*_BAD, nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{path}: not a NIfTI file that can be read: {line(error)}") from error
    source = _source(str(path), _Voxels(voxels), {}, options)
    order = tuple(range(len(source.shape or ())))[::-1]
    return [Source(source.name, source.shape, source.read, itemsize=source.itemsize, order=order)]


class _Voxels:
    """nibabel's proxy: a slice of it is read, and scaled where the header says so."""

    def __init__(self, proxy: Any) -> None:
        scaled = (proxy.slope, proxy.inter) != (1, 0)
        self.proxy, self.dtype, self.shape = proxy, np.dtype(np.float64) if scaled else proxy.dtype, proxy.shape

    def __getitem__(self, box: Box) -> Any:
        return np.asarray(self.proxy[box])
