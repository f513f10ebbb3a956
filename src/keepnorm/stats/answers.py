"""Answers in the forms in which they are used: text, JSON, YAML, CSV, files, and lines to paste."""

import csv
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from keepnorm.atomic import written
from keepnorm.moments import Moments
from keepnorm.stats.accumulate import Run, Slab
from keepnorm.stats.summary import Summary

NUMBERS = ("mean", "var", "std")
STATE = ("shift", "delta", "m2")
Array = np.ndarray[Any, Any]


def as_dict(found: Summary) -> dict[str, Any]:
    """The answer as plain numbers, null where one is not finite; `load` takes it back, finite ones `Moments.from_dict`."""
    m = found.moments
    answer: dict[str, Any] = {"count": _plain(m.count), **{n: _plain(getattr(m, n)) for n in NUMBERS}, "keep": list(m.keep)}
    if found.per_item is not None:
        answer["std_per_item"] = _plain(found.per_item.mean)
    if found.low is not None:
        answer |= {"min": _plain(found.low), "max": _plain(found.high)}
    answer |= {"files": found.files, "items": found.items, "values": found.values, "skipped": found.skipped}
    answer |= {"complete": found.complete, **{n: _exact(getattr(m, n)) for n in STATE}}
    large = {} if m.exponent is None else {"exponent": _plain(m.exponent)}
    return answer | {"shape": list(m.shape), "ndim": m.ndim, "dtype": m.dtype} | large


def text(found: Summary) -> str:
    """The answer for people."""
    m = found.moments
    count = f"{m.count:,}" if isinstance(m.count, int) else str(m.count)
    lines = [f"count  {count}", f"keep   {', '.join(map(str, m.keep)) or 'none'}   of {m.ndim} axes; kept shape {m.shape}"]
    lines += [f"{n:5}  {getattr(m, n)}" for n in NUMBERS]
    if found.per_item is not None:
        lines[-1] += "   (pooled: of all values together)"
        lines.append(f"std    {found.per_item.mean}   (per item: the average of each item's own)")
    if found.low is not None:
        lines += [f"min    {found.low}", f"max    {found.high}"]
    skipped = f", {len(found.skipped)} skipped" if found.skipped else ""
    lines.append(f"read   {found.files:,} files, {found.items:,} items, {found.values:,} values{skipped}")
    return "\n".join(lines)


def as_json(found: Summary) -> str:
    """One JSON object."""
    return json.dumps(as_dict(found), allow_nan=False)


def as_yaml(found: Summary) -> str:
    """The same in YAML: each value is JSON, which YAML contains."""
    return "\n".join(f"{key}: {json.dumps(value, allow_nan=False)}" for key, value in as_dict(found).items())


def as_csv(found: Summary) -> str:
    """One line for each kept cell."""
    m, out = found.moments, io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(f"axis{a}" for a in m.keep), "count", *NUMBERS])
    arrays = [np.asarray(getattr(m, n)) for n in NUMBERS]
    counts = np.broadcast_to(np.asarray(m.count), m.shape)
    for cell in np.ndindex(*m.shape):
        writer.writerow([*cell, int(counts[cell]), *(float(a[cell]) for a in arrays)])
    return out.getvalue().rstrip("\n")


def pasted(found: Summary, form: str) -> str:
    """A line of code for another library."""
    m = found.moments
    mean, std, var = (_digits(np.asarray(getattr(m, n))) for n in ("mean", "std", "var"))
    dims = ", ".join(f'"dim_{a}"' for a in m.keep)
    lines = {
        "torchvision": f"torchvision.transforms.Normalize(mean={mean}, std={std})",
        "albumentations": f"albumentations.Normalize(mean={mean}, std={std}, max_pixel_value=1.0)",
        "keras": f"keras.layers.Normalization(axis={_axis(m)}, mean={mean}, variance={var})",
        "numpy": f"mean, std = numpy.array({mean}), numpy.array({std})",
        "xarray": f"mean, std = (xarray.DataArray(v, dims=[{dims}]) for v in ({mean}, {std}))",
    }
    return lines[form]


FORMS: dict[str, Callable[[Summary], str]] = {"json": as_json, "yaml": as_yaml, "csv": as_csv}
PASTED = ("torchvision", "albumentations", "keras", "numpy", "xarray")


def save(path: str, found: Summary) -> None:
    """Write the answer to .json or .npz; what was there stays until it is whole."""
    if path.endswith(".npz"):
        m = found.moments
        arrays = {n: getattr(m, n) for n in (*NUMBERS, *STATE)} | ({} if m.exponent is None else {"exponent": m.exponent})
        with written(path) as beside, beside.open("wb") as file:
            np.savez(file, count=m.count, keep=np.array(m.keep, np.int64), ndim=m.ndim, dtype=m.dtype, **arrays)
    elif path.endswith(".json"):
        with written(path) as beside:
            beside.write_text(as_json(found) + "\n")
    else:
        raise ValueError(f"--save writes .npz and .json; got {path!r}")


def load(path: str) -> Moments:
    """The moments that `save` wrote, to the last bit."""
    try:
        if path.endswith(".npz"):
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as a:
                count = int(a["count"]) if a["count"].ndim == 0 else a["count"]
                state = [a[n] for n in STATE]
                words: dict[str, Any] = {"keep": tuple(map(int, a["keep"])), "ndim": int(a["ndim"]), "dtype": str(a["dtype"])}
                return Moments(count, *state, **words, exponent=a.get("exponent"))
        state = json.loads(Path(path).read_text())
        return Moments.from_dict(state | {n: np.asarray(state[n], np.float64) for n in STATE})
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a file that keepnorm stats --save wrote: {error}") from error


class Parts:
    """An answer that is larger than the memory, written slab by slab into an .npz file."""

    def __init__(self, path: str, checkpoint: str | None) -> None:
        self.path = path
        self.kept = Path(f"{checkpoint}.parts") if checkpoint else None
        self.folder = self.kept or Path(mkdtemp(prefix=".keepnorm-", dir=Path(path).resolve().parent))
        self.folder.mkdir(exist_ok=True)
        self.shape: tuple[int, ...] = ()
        self.like: Moments | None = None
        self.cells = 0

    def start(self, run: Run) -> None:
        """Keep what an interrupted run has finished, and no more."""
        self.shape = tuple(b.stop for b in run.slabs[-1])
        self.cells = sum(prod(b.stop - b.start for b in slab) for slab in run.slabs[: run.state.slab])
        for name in ("count", *STATE, *NUMBERS):
            file = self.folder / name
            file.touch()
            os.truncate(file, self.cells * _width(name, "float32" if file.stat().st_size == self.cells * 4 else "float64"))

    def add(self, _: Slab, part: Moments) -> None:
        """The next slab, in the order of the kept axes."""
        if part.exponent is not None:
            raise ValueError("float64 cannot hold the squares of these data; give more --memory")
        self.like = part
        for name in ("count", *STATE, *NUMBERS):
            values = np.broadcast_to(np.asarray(getattr(part, name)), part.shape)
            with (self.folder / name).open("ab") as file:
                np.ascontiguousarray(values).tofile(file)
        self.cells += prod(part.shape)

    def finish(self) -> None:
        """Put the parts together."""
        m = self.like
        if m is None:
            raise ValueError("there is nothing to save")
        small = {"keep": np.array(m.keep, np.int64), "ndim": np.array(m.ndim), "dtype": np.array(m.dtype)}
        with written(self.path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name in ("count", *STATE, *NUMBERS):
                dtype = np.dtype(np.int64 if name == "count" else m.dtype if name in NUMBERS else np.float64)
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": self.shape}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member, (self.folder / name).open("rb") as raw:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(raw, member, 1 << 20)
                (self.folder / name).unlink()
            for name, value in small.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, value)

    def close(self, done: bool) -> None:
        """Remove what is not needed any more."""
        if done or self.kept is None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _width(name: str, dtype: str) -> int:
    return np.dtype(dtype).itemsize if name in NUMBERS else 8


def _axis(m: Moments) -> Any:
    axes = [a - m.ndim for a in m.keep]
    return (axes[0] if axes else None) if len(axes) < 2 else tuple(axes)


def _digits(values: Array) -> str:
    """Seven digits: what float32 holds."""
    return repr(np.vectorize(lambda v: float(f"{v:.7g}"), otypes=[float])(values).tolist())


def _plain(value: Any) -> Any:
    """Numbers and lists for JSON, which has no NaN and no infinity."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _exact(value: Any) -> Any:
    """As `_plain`, but a state keeps its infinities, as words, which `load` takes."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_exact(v) for v in value]
    return repr(value) if not math.isfinite(value) else value
