"""What `keep` means: integers, tuples and patterns become one role for every axis.

Everything here is integers and strings; no array is touched. Every error about axes is raised in this file.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from operator import index
from typing import Any, NoReturn, SupportsIndex

from numpy import bool_

from keepnorm.keywords import check_sizes, described, refuse

Keep = int | Sequence[int] | str

# True is an int to Python, and np.True_ one to an older NumPy, but neither is an axis.
BOOLS = (bool, bool_)

_LONGEST = 200  # characters of a pattern, which errors repeat
_TOKEN = re.compile(r"\s*(\.\.\.|[A-Za-z_]\w*|[()]|1(?!\d))")


@dataclass(frozen=True)
class Axes:
    """The role of every axis of x, after the axes that a pattern groups have been split.

    Attributes
    ----------
    source : tuple of int
        The shape of x as it was given.
    shape : tuple of int
        The shape of x with grouped axes split; equal to `source` without a grouping pattern.
    keep, affine : tuple of int
        Kept axes and affine axes of `shape`, ascending.
    origin : tuple of int
        For each axis of `shape`, the axis of x that it comes from.
    written : tuple of int, or None
        The affine axes as they were said, where that was not in the order of x: a weight is then refused.
    """

    source: tuple[int, ...]
    shape: tuple[int, ...]
    keep: tuple[int, ...]
    affine: tuple[int, ...]
    origin: tuple[int, ...]
    written: tuple[int, ...] | None = field(default=None, compare=False)

    def __hash__(self) -> int:
        """Cheaper than that of all fields: axes are looked up in every call."""
        return hash((self.source, self.keep))

    @cached_property
    def reduce(self) -> tuple[int, ...]:
        """The axes of `shape` that are not kept."""
        return tuple(a for a in range(len(self.shape)) if a not in self.keep)

    @cached_property
    def kept_shape(self) -> tuple[int, ...]:
        """The shape of the mean and of the variance."""
        return tuple(self.shape[a] for a in self.keep)

    @cached_property
    def affine_shape(self) -> tuple[int, ...]:
        """The shape of weight and bias, one size for each affine axis of `shape`."""
        return tuple(self.shape[a] for a in self.affine)

    @cached_property
    def source_affine_shape(self) -> tuple[int, ...]:
        """The shape of weight and bias counted in axes of x: (64,) where `affine_shape` is (32, 2)."""
        sizes: dict[int, int] = {}
        for a in self.affine:
            sizes[self.origin[a]] = sizes.get(self.origin[a], 1) * self.shape[a]
        return tuple(sizes.values())

    @cached_property
    def count(self) -> int:
        """How many values of x one kept cell has."""
        return prod(self.shape[a] for a in self.reduce)

    @cached_property
    def broadcast_shape(self) -> tuple[int, ...]:
        """The kept shape with a 1 for every reduced axis: what broadcasts against x in `shape`."""
        return tuple(n if a in self.keep else 1 for a, n in enumerate(self.shape))

    @cached_property
    def affine_broadcast_shape(self) -> tuple[int, ...]:
        """The affine shape with a 1 for every other axis."""
        return tuple(n if a in self.affine else 1 for a, n in enumerate(self.shape))


def resolve(
    shape: Sequence[int],
    keep: Keep,
    affine: Keep | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Axes:
    """Give every axis of an array of `shape` its role.

    Parameters
    ----------
    shape : tuple of int
        The shape of x.
    keep : int, sequence of int, or str
        The axes that survive the reduction, or a pattern such as ``"n h w c -> c"``.
    affine : int, sequence of int, or str, optional
        The axes of weight and bias; the kept axes if None. A string names axes of the pattern.
    sizes : mapping of str to int, optional
        Sizes of axes that a pattern groups: ``{"g": 32}`` for ``"n (g c) h w -> n g"``.

    Raises
    ------
    TypeError
        If an axis is not an integer, or a keyword is not a name of the pattern.
    ValueError
        If an axis is out of range or given twice, or a pattern does not fit the shape.

    Examples
    --------
    >>> resolve((32, 64, 8, 8), "n (g c) h w -> n g", "g c", {"g": 16}).shape
    (32, 16, 4, 8, 8)
    """
    key = (
        tuple(shape),
        keep if isinstance(keep, str) else as_ints(keep, "keep"),
        affine if affine is None or isinstance(affine, str) else as_ints(affine, "affine"),
        tuple((name, _size(name, sizes[name], keep)) for name in sorted(sizes)) if sizes else (),
    )
    # A size that torch.export leaves open has no hash.
    return _resolve(*key) if all(type(n) is int for n in key[0]) else _resolve.__wrapped__(*key)


def _size(name: str, size: Any, keep: Keep) -> int:
    if isinstance(size, BOOLS) or not hasattr(size, "__index__"):
        check_sizes(resolve, keep, {name: size})
        raise TypeError(f"{name} must be an int, the size of an axis that the pattern names; got {name}={described(size)}")
    return index(size)


@lru_cache(maxsize=4096)
def _resolve(
    shape: tuple[int, ...],
    keep: str | tuple[int, ...],
    affine: str | tuple[int, ...] | None,
    sizes: tuple[tuple[str, int], ...],
) -> Axes:
    for name, word in (("keep", keep), ("affine", affine)):
        if isinstance(word, str) and len(word) > _LONGEST:
            raise ValueError(f"{name} must be a pattern of at most {_LONGEST} characters; got {described(word)}")
    if isinstance(keep, str):
        return _resolve_pattern(shape, keep, affine, dict(sizes))
    if sizes:
        refuse(resolve, dict(sizes))
    kept = normal(keep, len(shape), "keep", shape)
    if isinstance(affine, str):
        raise ValueError(
            f"affine={affine!r} names axes of a pattern, so keep must be a pattern such as 'b t d -> b t'; got keep={keep}"
        )
    with_affine = kept if affine is None else normal(affine, len(shape), "affine", shape)
    written = out_of_order(keep if affine is None else affine, len(shape))
    return Axes(shape, shape, kept, with_affine, tuple(range(len(shape))), written)


def out_of_order(axes: tuple[int, ...], ndim: int) -> tuple[int, ...] | None:
    """The axes, counted from the start, if they are not in the order of x; else None."""
    positive = tuple(a % ndim for a in axes)
    return None if positive == tuple(sorted(positive)) else positive


def refuse_order(name: str, written: tuple[int, ...]) -> NoReturn:
    """Refuse an array whose axes were said in another order than x has them, as it would be read transposed.

    Raises
    ------
    ValueError
        Always.
    """
    raise ValueError(
        f"{name} has its axes in the order of x: say them in that order, {tuple(sorted(written))}, and transpose {name} if it "
        f"is in the other one; got the axes {written}"
    )


def as_ints(axes: int | Iterable[int], name: str) -> tuple[int, ...]:
    """Read an int or a sequence of ints, refusing everything else."""
    if type(axes) is int:
        return (axes,)
    if isinstance(axes, str) or axes is None or isinstance(axes, BOOLS):
        raise TypeError(f"{name} must be an int or a tuple of ints; got {described(axes)}")
    if isinstance(axes, SupportsIndex) and getattr(axes, "ndim", 0) == 0:  # an array of one value is a sequence, too
        return (index(axes),)
    if not isinstance(axes, Iterable):
        raise TypeError(f"{name} must be an int or a tuple of ints; got {type(axes).__name__}")
    items = tuple(axes)
    if any(isinstance(a, BOOLS) or not hasattr(a, "__index__") for a in items):
        raise TypeError(f"{name} must hold ints only; got {described(items)}")
    return tuple(index(a) for a in items)


def normal(axes: tuple[int, ...], ndim: int, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Count negative axes from the end, refuse what is out of range or doubled, and sort."""
    for a in axes:
        if not ndim:
            raise ValueError(f"{name} must be (), as x has no axes; got {axes if len(axes) != 1 else axes[0]}")
        if not -ndim <= a < ndim:
            raise ValueError(
                f"{name}={described(axes if len(axes) != 1 else axes[0])} does not fit x with shape {shape}: "
                f"an axis must be between {-ndim} and {ndim - 1}; got {a}"
            )
    positive = tuple(sorted(a % ndim for a in axes))
    if len(set(positive)) != len(positive):
        raise ValueError(f"{name} names an axis of x with shape {shape} twice; got {described(axes)}")
    return positive


def complement(axes: int | Sequence[int], ndim: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that are not in `axes`: what is kept where `axes` is reduced."""
    reduced = normal(as_ints(axes, "axes"), ndim, "axes", shape)
    return tuple(a for a in range(ndim) if a not in reduced)


def _resolve_pattern(
    shape: tuple[int, ...],
    pattern: str,
    affine: str | tuple[int, ...] | None,
    sizes: dict[str, int],
) -> Axes:
    _, arrow, right = pattern.partition("->")
    if not arrow:
        raise ValueError(
            f"keep={pattern!r} is no pattern: write the axes of x, '->' and the names that survive, "
            "such as 'n h w c -> c' (a bare dimension name is for xarray.DataArray)"
        )
    groups = _groups(pattern, shape)
    names = [name for group in groups for name in group]
    for name in names:
        if names.count(name) > 1 and name != "1":
            raise ValueError(f"pattern {pattern!r} names axis {name!r} twice")
    for name, size in sizes.items():
        if name not in names:
            refuse(resolve, {name: size})
    split: list[int] = []
    origin: list[int] = []
    for axis, group in enumerate(groups):
        split += _split(shape, axis, group, sizes, pattern)
        origin += [axis] * len(group)
    kept = _select(_without_ones(right, pattern), names, pattern, "the right side")
    if kept != sorted(kept):
        raise ValueError(f"pattern {pattern!r} reorders axes: name the kept axes in the order in which x has them")
    written = None
    if affine is None:
        with_affine = tuple(kept)
    elif isinstance(affine, str):
        selected = tuple(_select(affine, names, pattern, "affine"))
        with_affine, written = tuple(sorted(selected)), out_of_order(selected, len(names))
    else:
        sources, written = normal(affine, len(shape), "affine", shape), out_of_order(affine, len(shape))
        with_affine = tuple(a for a, source in enumerate(origin) if source in sources)
    return Axes(shape, tuple(split), tuple(kept), with_affine, tuple(origin), written)


def names_of(pattern: str, shape: tuple[int, ...]) -> list[str]:
    """The name that a pattern gives to each axis of x, after the axes that it groups have been split."""
    return [name for group in _groups(pattern, shape) for name in group]


def _groups(pattern: str, shape: tuple[int, ...]) -> list[list[str]]:
    return _fill_ellipsis(_parse(pattern.partition("->")[0], pattern), shape, pattern)


def _parse(text: str, pattern: str) -> list[list[str]]:
    """Read one side of a pattern as groups of names, one group for each axis of x."""
    groups: list[list[str]] = []
    inside = False
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"pattern {pattern!r} cannot be read at {text[position:].strip()!r}")
        position = match.end()
        token = match[1]
        if token == "(":
            if inside:
                raise ValueError(f"pattern {pattern!r} has a parenthesis inside a parenthesis")
            inside = True
            groups.append([])
        elif token == ")":
            if not inside or not groups[-1]:
                raise ValueError(f"pattern {pattern!r} closes a parenthesis that holds nothing")
            inside = False
        elif inside:
            if token == "...":
                raise ValueError(f"pattern {pattern!r} has ... inside a parenthesis")
            groups[-1].append(token)
        else:
            groups.append([token])
    if inside:
        raise ValueError(f"pattern {pattern!r} opens a parenthesis that is not closed")
    return groups


def _fill_ellipsis(groups: list[list[str]], shape: tuple[int, ...], pattern: str) -> list[list[str]]:
    dots = [i for i, group in enumerate(groups) if group == ["..."]]
    if len(dots) > 1:
        raise ValueError(f"pattern {pattern!r} has more than one ...")
    if dots:
        missing = len(shape) - (len(groups) - 1)
        if missing >= 0:
            groups[dots[0] : dots[0] + 1] = [[f"...{i}"] for i in range(missing)]
    if len(groups) != len(shape) or (dots and missing < 0):
        raise ValueError(f"pattern {pattern!r} has {len(groups)} axes, but x has shape {shape}")
    return groups


def _split(shape: tuple[int, ...], axis: int, group: list[str], sizes: dict[str, int], pattern: str) -> list[int]:
    """The sizes of one axis of x, split as its group of names says."""
    known = [1 if name == "1" else sizes.get(name) for name in group]
    unknown = known.count(None)
    total = prod(n for n in known if n is not None)
    if unknown > 1:
        raise ValueError(f"pattern {pattern!r} needs a size for all but one of {group}, such as {group[0]}=32; got {sizes}")
    if any(n is not None and n < 1 for n in known):
        raise ValueError(f"pattern {pattern!r} needs sizes of at least 1; got {sizes}")
    if total == 0 or shape[axis] % total or (not unknown and total != shape[axis]):
        raise ValueError(
            f"pattern {pattern!r}: axis {axis} of x with shape {shape} has size {shape[axis]}, which does not split into "
            f"({' '.join(group)}) with {', '.join(f'{k}={v}' for k, v in sizes.items() if k in group) or 'size 1'}"
        )
    return [shape[axis] // total if n is None else n for n in known]


def _without_ones(right: str, pattern: str) -> str:
    """The right side without the 1s that einops writes for reduced axes: moments come without those axes either way."""
    groups = _parse(right, pattern)
    return " ".join(group[0] if len(group) == 1 else f"({' '.join(group)})" for group in groups if group != ["1"])


def _select(text: str, names: list[str], pattern: str, what: str) -> list[int]:
    """The positions of the names that `text` lists."""
    chosen: list[int] = []
    for group in _parse(text, pattern):
        if len(group) > 1:
            raise ValueError(f"{what} of pattern {pattern!r} must list single names; got ({' '.join(group)})")
        name = group[0]
        found = [i for i, n in enumerate(names) if n == name or (name == "..." and n.startswith("..."))]
        if (not found and name != "...") or name == "1":
            raise ValueError(f"{what} of pattern {pattern!r} names {name!r}, which is not an axis of x; got {text.strip()!r}")
        chosen += found
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"{what} of pattern {pattern!r} names an axis twice; got {text.strip()!r}")
    return chosen
