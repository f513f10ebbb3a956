"""The state of a run in a file: written beside and moved, so that it is always whole."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from keepnorm.atomic import written
from keepnorm.moments import Moments
from keepnorm.stats.accumulate import Leaf, Run, State, Tree


def fingerprint(run: Run) -> dict[str, Any]:
    """What the bits depend on: sources, axes and options."""
    files = [[source.name, list(source.shape or ()), _stamp(source.name)] for source in run.sources]
    return {"keep": repr(run.keep), "options": run.options.fingerprint(), "files": files}


def _stamp(name: str) -> list[int]:
    path = Path(name)
    if not path.exists():
        path = Path(name.rpartition(":")[0])
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def save(path: str, run: Run) -> None:
    """Write the state of a run."""
    state = run.state
    arrays: dict[str, Any] = {}
    plain: dict[str, Any] = {"fingerprint": fingerprint(run), "first": run.first}
    plain |= {n: getattr(state, n) for n in ("done", "slab", "source", "skipped")} | {"files": sorted(state.files)}
    plain["total"] = _leaf(state.total, "total", arrays)
    plain["parts"] = [[corner, _leaf(leaf, f"part{i}", arrays)] for i, (corner, leaf) in enumerate(state.parts.items())]
    with written(path) as beside, beside.open("wb") as file:
        np.savez(file, plain=np.array(json.dumps(plain)), **arrays)


def restore(path: str, run: Run) -> bool:
    """Put a run where the file says; False if there is no file.

    Raises
    ------
    ValueError
        If the file is no checkpoint, or of other files, axes or options.
    """
    if not Path(path).exists():
        return False
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            plain = json.loads(str(arrays["plain"]))
            same = json.loads(json.dumps(fingerprint(run)))
            if plain["fingerprint"] != same:
                differs = [k for k in same if plain["fingerprint"].get(k) != same[k]]
                raise ValueError(f"is of another run: its {', '.join(differs)} differ; remove it to begin anew")
            total = _unleaf(plain["total"], "total", arrays)
            parts = {
                tuple(map(tuple, corner)): _unleaf(leaf, f"part{i}", arrays) for i, (corner, leaf) in enumerate(plain["parts"])
            }
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"--checkpoint {path}: {error}") from error
    run.state = State(plain["done"], plain["slab"], total, parts, plain["source"], plain["skipped"], set(plain["files"]))
    run.first = {key: (v[0], tuple(v[1]), tuple(v[2])) for key, v in plain["first"].items()}
    return True


def _leaf(leaf: Leaf, name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {"items": leaf.items, "depth": leaf.depth}
    for kind in ("tree", "spread"):
        slots = getattr(leaf, kind).slots
        plain[kind] = [None if slot is None else _pack(slot, f"{name}.{kind}{i}", arrays) for i, slot in enumerate(slots)]
    for kind in ("low", "high"):
        if getattr(leaf, kind) is not None:
            arrays[f"{name}.{kind}"] = getattr(leaf, kind)
    return plain


def _unleaf(plain: dict[str, Any], name: str, arrays: Any) -> Leaf:
    trees = [
        Tree([None if s is None else _unpack(s, f"{name}.{kind}{i}", arrays) for i, s in enumerate(plain[kind])])
        for kind in ("tree", "spread")
    ]
    low, high = (arrays.get(f"{name}.{kind}") for kind in ("low", "high"))
    return Leaf(trees[0], trees[1], low, high, plain["items"], plain["depth"])


def _pack(m: Moments, name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    for key in ("shift", "delta", "m2"):
        arrays[f"{name}.{key}"] = getattr(m, key)
    if not isinstance(m.count, int):
        arrays[f"{name}.count"] = m.count
    if m.exponent is not None:
        arrays[f"{name}.exponent"] = m.exponent
    return {"count": m.count if isinstance(m.count, int) else None, "keep": m.keep, "ndim": m.ndim, "dtype": m.dtype}


def _unpack(plain: dict[str, Any], name: str, arrays: Any) -> Moments:
    count = arrays[f"{name}.count"] if plain["count"] is None else plain["count"]
    shift, delta, m2 = (arrays[f"{name}.{key}"] for key in ("shift", "delta", "m2"))
    words = {"keep": tuple(plain["keep"]), "ndim": plain["ndim"], "dtype": plain["dtype"]}
    return Moments(count, shift, delta, m2, **words, exponent=arrays.get(f"{name}.exponent"))
