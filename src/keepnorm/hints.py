"""What an error advises: for a weight, a mask or an x that does not fit, the call that does."""

from itertools import combinations
from typing import Any

from keepnorm.axes import Axes, names_of

Shape = tuple[int, ...]

_PIECES = "in pieces: seen = keepnorm.Accumulator(keep), seen.update({part}) for each part, then seen.moments"

# By the package that a type comes from. What may be larger than memory is gone through, not loaded.
_LIBRARIES = {
    "h5py": f"go through it {_PIECES.format(part='x[i : i + 64]')}; or lazily: dask.array.from_array(x)",
    "h5netcdf": f"go through it {_PIECES.format(part='x[i : i + 64]')}; or lazily: dask.array.from_array(x)",
    "zarr": "`keepnorm stats` reads the store; or lazily: dask.array.from_zarr(x); "
    f"or go through it {_PIECES.format(part='x[i : i + 64]')}",
    "netCDF4": "lazily: xarray.open_dataset(path, chunks={})[x.name]; "
    f"or go through it {_PIECES.format(part='part.data, where=~numpy.ma.getmaskarray(part)')}, with part = x[i : i + 64]",
    "nibabel": "lazily: dask.array.from_array(x.dataobj) of an image, dask.array.from_array(x) of its dataobj; "
    f"or go through the volumes {_PIECES.format(part='numpy.asarray(x.dataobj[..., i])')}",
    "tensorstore": f"go through it {_PIECES.format(part='x[i : min(i + 64, len(x))].read().result()')}",
    "pandas": "pass x.to_numpy(), with keep=1 for one mean per column; "
    f"a file larger than memory {_PIECES.format(part='part.to_numpy()')}, with pandas.read_csv(path, chunksize=10**5)",
    "polars": "pass x.to_numpy(), with keep=1 for one mean per column; "
    f"a large frame {_PIECES.format(part='part.to_numpy()')}, with x.iter_slices(10**5), or x.collect_batches() of a lazy one",
    "pyarrow": "a column: pass x.to_numpy(); "
    f"a table {_PIECES.format(part='numpy.column_stack(part.columns)')}, with x.to_batches()",
    "PIL": "pass numpy.asarray(x), with keep=-1 for one mean per channel; `keepnorm stats` reads folders of images",
    "scipy": "pass x.toarray(): subtracting a mean leaves nothing sparse",
    "sparse": "pass x.todense(): subtracting a mean leaves nothing sparse",
    "xarray": "pass one DataArray, such as x['temperature']",
    "tensorflow": "pass x.numpy(), or torch.from_dlpack(x) without a copy",
}
_BATCHES = f"pass numpy.asarray(x); batches of different sizes {_PIECES.format(part='batch')}"
_ANY = "pass an array, such as numpy.asarray(x)"

_MOST_AXES = 8  # to try all ways to choose some of more would take long


def for_x(x: Any) -> str:
    """What to do with an x that is no array."""
    roots = {base.__module__.partition(".")[0] for base in type(x).__mro__}
    known = next((hint for root, hint in _LIBRARIES.items() if root in roots), None)
    return known or (_BATCHES if hasattr(x, "__iter__") and not isinstance(x, str | bytes | dict | set) else _ANY)


def for_parameter(name: str, shape: Shape, axes: Axes, words: tuple[Any, ...] | None) -> str:
    """How a weight of another shape is taken; `words` are those of a call that has affine=, (keep, affine)."""
    needed = axes.source_affine_shape
    if _without_ones(shape) == _without_ones(needed):
        return f"; say {name}.reshape{needed}"
    if shape == needed[::-1]:
        return f"; its axes must be in the order of x: say {name}.T"
    if words is None or len(axes.shape) > _MOST_AXES:
        return ""
    return _alternatives("affine=", (_spelt(axes, chosen, words[0]) for chosen in _fitting(shape, axes)))


def for_mask(shape: Shape, x: Shape) -> str:
    """How a mask that does not broadcast is taken."""
    if len(shape) >= len(x) and _without_ones(shape) == _without_ones(x):
        return f"; say where.reshape{x}"
    if len(x) > _MOST_AXES:
        return ""
    for at in combinations(range(len(x)), len(shape)):
        if all(n in (1, x[a]) for n, a in zip(shape, at, strict=True)):
            return f"; say where[{_index(at, len(x))}]"
    for start, end in ((-1, 1), (1, -1)):
        moved = list(shape)
        if len(shape) == len(x) > 2:
            moved.insert(end % len(x), moved.pop(start))
            if all(n in (1, size) for n, size in zip(moved, x, strict=True)):
                return f"; say numpy.moveaxis(where, {start}, {end}), in PyTorch movedim"
    return ""


def _fitting(shape: Shape, axes: Axes) -> list[Shape]:
    """The affine axes for which a weight has this shape; the closest to the kept ones if there are any."""
    kept = {axes.origin[a] for a in axes.keep}
    found: list[tuple[int, Shape]] = []
    for number in range(1, len(axes.shape) + 1):
        for chosen in combinations(range(len(axes.shape)), number):
            tried = Axes(axes.source, axes.shape, axes.keep, chosen, axes.origin)
            if shape in (tried.affine_shape, tried.source_affine_shape):
                found.append((len({axes.origin[a] for a in chosen} - kept), chosen))
    least = min((far for far, _ in found), default=0)
    return [chosen for far, chosen in found if far == least]


def _spelt(axes: Axes, chosen: Shape, keep: Any) -> str:
    """Affine axes as one writes them: names of the pattern, else integers."""
    if isinstance(keep, str):
        names = [names_of(keep, axes.source)[a] for a in chosen]
        if all(name.isidentifier() for name in names):
            return f'"{" ".join(names)}"'
    sources = tuple(dict.fromkeys(axes.origin[a] for a in chosen))
    return str(sources[0] if len(sources) == 1 else sources)


def _alternatives(word: str, spellings: Any) -> str:
    said = [f"{word}{spelling}" for spelling in dict.fromkeys(spellings)]
    return f"; say {' or '.join(said[:3])}" if said else ""


def _index(at: Shape, ndim: int) -> str:
    """The index that puts the axes of a mask at `at`."""
    parts = [":" if a in at else "None" for a in range(ndim)]
    if parts == sorted(parts):  # all of the new axes are behind
        return ", ".join(["...", *(p for p in parts if p == "None")])
    while parts[-1] == ":":
        parts.pop()
    return ", ".join(parts)


def _without_ones(shape: Shape) -> Shape:
    return tuple(n for n in shape if n != 1)
