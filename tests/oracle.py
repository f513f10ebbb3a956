"""What the answers are, from the definitions: exact on small data, two passes of `math.fsum` on the rest.

Nothing here shares a line or an idea with the library: no shift, no blocks, no merge. Cells are cut out with NumPy
indexing and every sum is correctly rounded.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Cells(NamedTuple):
    """The exact moments of every kept cell, with reduced axes as 1 so that they broadcast against x."""

    count: np.ndarray
    mean: np.ndarray  # the mean, rounded to float64
    rest: np.ndarray  # what that rounding has lost
    var: np.ndarray
    square: np.ndarray  # the mean of the squares, for RMS


def kept_axes(keep, ndim):
    return tuple(sorted(a % ndim for a in ((keep,) if isinstance(keep, int) else keep)))


def kept_shape(x, keep):
    return tuple(x.shape[a] for a in kept_axes(keep, x.ndim))


def cells_of(x, keep, where=None):
    """The values of each kept cell, as a list of 1-D arrays in C order of the kept axes."""
    kept = kept_axes(keep, x.ndim)
    reduced = tuple(a for a in range(x.ndim) if a not in kept)
    order = kept + reduced
    number = math.prod(x.shape[a] for a in kept)
    size = math.prod(x.shape[a] for a in reduced)
    rows = np.asarray(x).transpose(order).reshape(number, size)
    if where is None:
        return list(rows)
    mask = np.broadcast_to(where, x.shape).transpose(order).reshape(number, size)
    return [row[m] for row, m in zip(rows, mask, strict=True)]


def exact(values):
    """Mean and population variance of one cell as fractions."""
    numbers = [Fraction(v) for v in values.tolist()]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    return mean, sum(((v - mean) ** 2 for v in numbers), Fraction(0)) / len(numbers)


def root(value, digits=40):
    """The square root of a fraction, to many more digits than a float has."""
    with localcontext() as context:
        context.prec = digits
        return Fraction((Decimal(value.numerator) / Decimal(value.denominator)).sqrt())


def _two_pass(values):
    n = len(values)
    if n == 0:
        return 0, math.nan, math.nan, math.nan, math.nan
    if values.dtype.kind in "iub":
        whole = [int(v) for v in values.tolist()]
        total = sum(whole)
        mean = Fraction(total, n)
        high = float(mean)
        square = Fraction(sum(v * v for v in whole), n)
        return n, high, float(mean - Fraction(high)), float(square - mean * mean), float(square)
    numbers = values.astype(np.float64)
    high = math.fsum(numbers) / n
    rest = math.fsum(numbers - high) / n
    centred = (numbers - high) - rest
    return n, high, rest, math.fsum(centred * centred) / n, math.fsum(numbers * numbers) / n


def moments(x, keep, where=None):
    """The moments of every kept cell, from two passes of correctly rounded sums."""
    kept = kept_axes(keep, x.ndim)
    shape = tuple(n if a in kept else 1 for a, n in enumerate(x.shape))
    columns = zip(*(_two_pass(cell) for cell in cells_of(x, keep, where)), strict=True)
    return Cells(*(np.asarray(column, np.float64).reshape(shape) for column in columns))


def affine_view(parameter, axes, ndim):
    """A weight or a bias with a 1 for every other axis, in float64."""
    if parameter is None:
        return None
    values = np.asarray(parameter, np.float64)
    sizes = iter(values.shape)
    return values.reshape([next(sizes) if a in axes else 1 for a in range(ndim)])


def centred(x, cells):
    """x minus its mean, without the rounding of the mean, nor that of a 64-bit integer."""
    if x.dtype.kind in "iu" and x.dtype.itemsize == 8:
        whole = np.trunc(cells.mean)
        return (
            (x.astype(object) - np.vectorize(int, otypes=[object])(whole)).astype(np.float64)
            - (cells.mean - whole)
            - cells.rest
        )
    return (x.astype(np.float64) - cells.mean) - cells.rest


def normalize(x, keep, weight=None, bias=None, *, affine=None, eps=1e-5, center=True, where=None, cells=None):
    """The normalised array in float64."""
    cells = moments(x, keep, where) if cells is None else cells
    axes = kept_axes(keep if affine is None else affine, x.ndim)
    y = centred(x, cells) if center else x.astype(np.float64)
    y = y / np.sqrt((cells.var if center else cells.square) + eps)
    if weight is not None:
        y = y * affine_view(weight, axes, x.ndim)
    return y if bias is None else y + affine_view(bias, axes, x.ndim)


def normalize_exact(x, keep, eps=1e-5):
    """The normalised array of small data, every value correctly rounded to float64: the reference for float64 input."""
    kept = kept_axes(keep, x.ndim)
    y = np.empty(x.shape, np.float64)
    for at in np.ndindex(*(x.shape[a] for a in kept)):
        place = tuple(at[kept.index(a)] if a in kept else slice(None) for a in range(x.ndim))
        cell = np.asarray(x[place])
        mean, var = exact(cell.ravel())
        deviation = root(var + Fraction(eps))
        y[place] = np.reshape([float((Fraction(v) - mean) / deviation) for v in cell.ravel().tolist()], cell.shape)
    return y


def gradients(x, dy, keep, weight=None, *, affine=None, eps=1e-5, center=True, where=None, given=None):
    """dx, dweight and dbias in float64, each reduced sum correctly rounded; `given` are the Cells of given moments.

    The last is the size of the terms of dx, which cancel where a cell has one value.
    """
    cells = moments(x, keep, where) if given is None else given
    axes = kept_axes(keep if affine is None else affine, x.ndim)
    deviation = np.sqrt((cells.var if center else cells.square) + eps)
    hat = (centred(x, cells) if center else x.astype(np.float64)) / deviation
    dy = dy.astype(np.float64)
    dhat = dy if weight is None else dy * affine_view(weight, axes, x.ndim)
    dx = dhat / deviation
    terms = np.abs(dx)
    if given is None:
        seen = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
        # What is neither under the mask nor finite takes part in no gradient but its own.
        hole = ~seen & ~np.isfinite(x)
        hat, dy, dhat = (np.where(hole, 0, values) for values in (hat, dy, dhat))
        # Every value of the cell is normalised, but only those under the mask move its mean and its variance.
        back = sums(dhat * hat, keep) * hat
        if center:
            back = back + sums(dhat, keep)
        count = np.where(cells.count > 0, cells.count, 1)
        dx = dx - np.where(seen, back / count, 0) / deviation
    return dx, sums(dy * hat, axes).squeeze(_others(axes, x.ndim)), sums(dy, axes).squeeze(_others(axes, x.ndim)), terms


def sums(values, keep):
    """Correctly rounded sums over the axes that are not kept, with a 1 for each."""
    kept = kept_axes(keep, values.ndim)
    shape = [n if a in kept else 1 for a, n in enumerate(values.shape)]
    return np.reshape([math.fsum(cell) for cell in cells_of(values, keep)], shape)


def _others(axes, ndim):
    return tuple(a for a in range(ndim) if a not in axes)
