"""What a choice of kept axes means, in words: the role of every axis, how many parameters, the same call elsewhere."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import prod
from textwrap import fill
from typing import Any

from keepnorm.axes import Axes, Keep, resolve
from keepnorm.explain.advice import warnings
from keepnorm.explain.cube import svg
from keepnorm.explain.spellings import kind_of, spellings
from keepnorm.keywords import REQUIRED, check, check_sizes, described

KINDS = {
    "batch": "batch normalisation",
    "layer": "layer normalisation",
    "instance": "instance normalisation",
    "group": "group normalisation",
    "all kept": "nothing is reduced: every value is its own mean, with variance 0",
    "all reduced": "one mean and one variance for the whole array",
    "general": "a normalisation without a name of its own",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What :func:`explain` found; ``str()`` is the text, a notebook shows it as a table, :meth:`plot` draws it.

    Attributes
    ----------
    axes : Axes
        The role of every axis.
    call : str
        The call in keepnorm.
    names : tuple of str
        The names of the axes, from a pattern or from an xarray.DataArray; empty without names.
    notes : tuple of str
        What :func:`explain_call` says of the call that it read; empty otherwise.
    """

    axes: Axes
    call: str
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[int, ...]:
        """The kept axes, counted in the axes that a pattern makes."""
        return self.axes.keep

    @property
    def reduced(self) -> tuple[int, ...]:
        """The reduced axes."""
        return self.axes.reduce

    @property
    def affine(self) -> tuple[int, ...]:
        """The axes of weight and bias."""
        return self.axes.affine

    @property
    def parameters(self) -> int:
        """How many numbers weight and bias hold together: what training learns."""
        return 2 * prod(self.axes.affine_shape)

    @property
    def running(self) -> int:
        """How many numbers the running mean and variance hold together: tracked, not learned."""
        return 2 * prod(self.axes.kept_shape)

    @property
    def kind(self) -> str:
        """The name of this normalisation: batch, layer, instance, group, all kept, all reduced or general."""
        return kind_of(self.axes)

    @property
    def calls(self) -> dict[str, str]:
        """The same computation in each framework, ready to run on an array x."""
        return {"keepnorm": self.call} | spellings(self.axes)

    def roles(self) -> list[tuple[int, int, str]]:
        """For each axis its number, its size and its role."""
        return [
            (a, n, ("kept" if a in self.kept else "reduced") + (", weight and bias" if a in self.affine else ""))
            for a, n in enumerate(self.axes.shape)
        ]

    def facts(self) -> list[str]:
        """What follows from the roles, a sentence each."""
        cells, count = prod(self.axes.kept_shape), self.axes.count
        facts = [
            (
                f"{_many(cells, 'mean')} and {_many(cells, 'variance')}, of shape {self.axes.kept_shape}, "
                f"each over {_many(count, 'value')}: {KINDS[self.kind]}."
            ),
            f"weight and bias have shape {self.axes.source_affine_shape}: {_many(self.parameters, 'parameter')}.",
        ]
        if self.kind == "batch":
            facts.append(
                f"With a running mean and variance, {self.running:,} more that are not trained: "
                f"{self.parameters + self.running:,}, which is what Keras counts."
            )
        return facts

    @property
    def warnings(self) -> list[str]:
        """What is probably not meant, as a careful colleague would say it; empty if nothing is unusual.

        One value in each cell, weight and bias on the batch axis, statistics of every pixel, a mix-up of channels first
        and channels last by the sizes, a kept axis of size 1.

        Examples
        --------
        >>> import keepnorm as kn
        >>> kn.explain((32, 3, 224, 224), keep=1).warnings
        []
        >>> print(kn.explain((32, 224, 224, 3), keep=1).warnings[0])
        The sizes (32, 224, 224, 3) look like channels last: 3 channels on axis 3. keep=1 is for channels first;
        it keeps a height or a width here. Did you mean keep=3?
        """
        return warnings(self.axes)

    def __str__(self) -> str:
        wide = max((len(f"{n:,}") for n in self.axes.shape), default=1)
        lines = [f"x has shape {self.axes.source}" + self._split()]
        called = [f" {name}" for name in self.names] or [""] * len(self.axes.shape)
        broad = max(map(len, called), default=0)
        lines += [f"  axis {a}{called[a]:<{broad}}  size {n:>{wide},}  {role}" for a, n, role in self.roles()]
        lines += ["", *(fill(said, 100) for said in self.notes), *([""] if self.notes else []), *self.facts(), ""]
        if self.warnings:
            lines += [
                "Look twice:",
                *(fill(said, 100, initial_indent="  ", subsequent_indent="  ") for said in self.warnings),
                "",
            ]
        lines += ["The same call (y, with weight 1 and bias 0, and eps = 1e-5):"]
        calls = self.calls
        margin = max(map(len, calls))
        for name, code in calls.items():
            first, *rest = code.splitlines()
            lines.append(f"  {name:<{margin}}  {first}")
            lines += [f"  {'':<{margin}}  {line}" for line in rest]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        called = [f" {escape(name)}" for name in self.names] or [""] * len(self.axes.shape)
        rows = "".join(f"<tr><td>{a}{called[a]}</td><td>{n:,}</td><td>{escape(role)}</td></tr>" for a, n, role in self.roles())
        calls = "".join(f"<tr><th>{escape(k)}</th><td><pre>{escape(code)}</pre></td></tr>" for k, code in self.calls.items())
        twice = "".join(f"<li>{escape(said)}</li>" for said in self.warnings)
        return (
            f"<p>x has shape {escape(str(self.axes.source) + self._split())}</p>"
            f"<table><tr><th>axis</th><th>size</th><th>role</th></tr>{rows}</table>"
            f"{''.join(f'<p>{escape(said)}</p>' for said in self.notes)}{self.svg()}<p>{escape(' '.join(self.facts()))}</p>"
            f"{f'<p><b>Look twice:</b></p><ul>{twice}</ul>' if twice else ''}<table>{calls}</table>"
        )

    def svg(self, names: Sequence[str] | None = None) -> str:
        """Draw the array as the cube of the group normalisation paper: values of one colour share a mean and a variance.

        Parameters
        ----------
        names : sequence of str, optional
            A name for each axis; those of the pattern or of the xarray.DataArray unless said otherwise.

        Returns
        -------
        str
            SVG. A notebook shows it with the text, and it is written to a file as it is. It needs no other library.

        Raises
        ------
        ValueError
            If there are not as many names as axes.

        Examples
        --------
        >>> import keepnorm as kn
        >>> kn.explain((32, 3, 224, 224), "n c h w -> c").svg().startswith("<svg")
        True
        """
        names = self.names if names is None else tuple(names)
        if names and len(names) != len(self.axes.shape):
            raise ValueError(f"names must have one name for each of the {len(self.axes.shape)} axes; got {described(names)}")
        return svg(self.axes, names)

    def plot(self) -> Any:
        """Draw the array as a grid in which values that share a mean share a colour.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ModuleNotFoundError
            If matplotlib is not installed: it comes with the extra ``plot``.
        """
        from keepnorm.explain.plot import cells

        return cells(self.axes, KINDS[self.kind])

    def _split(self) -> str:
        return "" if self.axes.shape == self.axes.source else f", split into {self.axes.shape}"


def explain(x_or_shape: Any, keep: Keep = REQUIRED, *, affine: Keep | None = None, **sizes: int) -> Explanation:
    """Say in words what keeping these axes means.

    Parameters
    ----------
    x_or_shape : array or tuple of int
        An array, of which only the shape is read, or a shape.
    keep : int, tuple of int, or pattern
        The axes that survive the reduction; all others are reduced. Names of dimensions for an xarray.DataArray.
    affine : int, tuple of int, or names of the pattern, optional
        The axes of weight and bias; the kept axes unless said otherwise.
    **sizes : int
        Sizes of axes that a pattern groups, such as ``g=32``.

    Returns
    -------
    Explanation
        ``print`` it, show it in a notebook, or ``.plot()`` it.

    Raises
    ------
    TypeError
        If there is no shape, or an axis is no integer.
    ValueError
        If an axis is out of range or given twice, or a pattern does not fit.

    Examples
    --------
    >>> import keepnorm as kn
    >>> e = kn.explain((32, 3, 224, 224), keep=1)
    >>> e.reduced, e.parameters
    ((0, 2, 3), 6)
    >>> print(e.calls["PyTorch"])
    y = torch.nn.BatchNorm2d(3, eps=1e-5)(x)
    """
    check_sizes(explain, keep, sizes)
    check(explain, {}, keep=keep)
    shape = shape_of(x_or_shape)
    dims = getattr(x_or_shape, "dims", None)
    if dims is not None:
        keep = _numbers(keep, dims)
        affine = None if affine is None else _numbers(affine, dims)
    axes = resolve(shape, keep, affine, sizes)
    extra = "" if affine is None else f", affine={affine!r}"
    extra += "".join(f", {name}={size}" for name, size in sizes.items())
    names = _names(keep, dims, len(axes.shape))
    return Explanation(axes, f"y = keepnorm.normalize(x, keep={keep!r}{extra})", names)


def shape_of(x_or_shape: Any) -> tuple[int, ...]:
    """The shape of an array, or a shape itself, checked."""
    shape = getattr(x_or_shape, "shape", x_or_shape)
    if isinstance(shape, str) or not hasattr(shape, "__iter__"):
        raise TypeError(f"there must be an array or a shape, a tuple of ints; got {described(x_or_shape)}")
    sizes = tuple(shape)
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in sizes):
        raise TypeError(f"a shape holds ints only; got {described(sizes)}")
    if any(n < 0 for n in sizes):
        raise ValueError(f"a shape holds sizes of at least 0; got {described(sizes)}")
    return tuple(int(n) for n in sizes)


def _names(keep: Keep, dims: tuple[Any, ...] | None, ndim: int) -> tuple[str, ...]:
    """The names of the axes: those of a pattern, or of the dimensions; none where a pattern does not name each of them."""
    if isinstance(keep, str):
        found = tuple(re.findall(r"[A-Za-z_]\w*|1", keep.partition("->")[0]))
    else:
        found = tuple(map(str, dims or ()))
    return found if len(found) == ndim else ()


def _numbers(keep: Any, dims: tuple[Any, ...]) -> Any:
    """Axis numbers for names of dimensions; numbers and patterns stay as they are."""
    if isinstance(keep, str):
        return dims.index(keep) if keep in dims else keep
    if isinstance(keep, (tuple, list)):
        return tuple(dims.index(k) if k in dims else k for k in keep)
    return keep


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
