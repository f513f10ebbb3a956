"""From the name of a file to its reader: one table. Other packages add readers as entry points, `keepnorm.readers`."""

from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from keepnorm.stats.options import Options
from keepnorm.stats.readers.source import Source

Reader = Callable[[Path, str, Options, ExitStack], list[Source]]

# The ends of names, the file of readers, and the function in it.
FORMATS: dict[tuple[str, ...], tuple[str, str]] = {
    (".npy",): ("numpy_files", "open_npy"),
    (".npz",): ("numpy_files", "open_npz"),
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".webp"): ("images", "open_image"),
    (".ppm", ".pgm", ".pbm", ".pnm", ".tga"): ("images", "open_image"),
    (".tif", ".tiff", ".geotiff", ".btf", ".lsm"): ("tiff", "open_tiff"),
    (".nc", ".nc4", ".cdf", ".netcdf"): ("science", "open_netcdf"),
    (".h5", ".hdf5", ".he5"): ("science", "open_hdf5"),
    (".fits", ".fit", ".fts", ".fits.gz"): ("science", "open_fits"),
    (".nii", ".nii.gz"): ("science", "open_nifti"),
    (".parquet", ".pq"): ("tables", "open_parquet"),
    (".feather", ".arrow"): ("tables", "open_feather"),
    (".csv", ".tsv", ".csv.gz"): ("tables", "open_csv"),
    (".tar", ".tar.gz", ".tgz"): ("archives", "open_tar"),
}
READS = "images, TIFF, .npy, .npz, Zarr, NetCDF, HDF5, FITS, NIfTI, Parquet, Feather, CSV, tar, and folders of them"


def reader(path: Path) -> Reader | None:
    """The reader of a file by the end of its name, or None: names are never guessed."""
    name = path.name.lower()
    for suffixes, (module, function) in FORMATS.items():
        if name.endswith(suffixes):
            found: Reader = getattr(import_module(f"keepnorm.stats.readers.{module}"), function)
            if module == "images":
                need("PIL", "images", path)
            return found
    for point in entry_points(group="keepnorm.readers"):
        if name.endswith(f".{point.name.lower().removeprefix('.')}"):
            other: Reader = point.load()
            return other
    return None


def need(package: str, extra: str, what: object) -> Any:
    """The package, or an error that says what to install."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        install = f'python -m pip install "keepnorm[{extra}]"'
        raise ModuleNotFoundError(f"{what}: reading this needs {package}; install it with: {install}") from error
