"""The formulas that combine two states: the merge, the rest without a part, and the comparison.

A state here is anything with the parts of :class:`keepnorm.moments.Moments`.
"""

from typing import Any

import numpy as np

from keepnorm.powers import exponent_of, exponents, is_held, unit
from keepnorm.transfer import read

Array = Any
State = Any
Parts = tuple[Array, Array, Array, Array | None]

_MOST = 2**63 - 1

# How many times larger than the rest's M2 that of the whole may be: float64 then leaves the rest the digits of a float32.
_WORST = 2.0**26


def total(a: Any, b: Any) -> Any:
    """The sum of two counts, exact: Python's ints have no end, those of arrays are refused beyond int64."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if not any("float" in str(getattr(c, "dtype", "")) for c in (a, b)):
        counts: list[Any] = [c if isinstance(c, int) else read(c) for c in (a, b)]
        if all(c is not None and np.size(c) for c in counts) and sum(int(np.max(c)) for c in counts) > _MOST:
            largest = int(np.max(np.asarray(counts[0], object) + np.asarray(counts[1], object)))
            if largest > _MOST:
                raise ValueError(f"counts in an array go up to 2^63 - 1; the sum of two is {largest}")
    return a + b


def rest(a: Any, b: Any) -> Any:
    """The count of a whole less that of a part, which must not be larger.

    Raises
    ------
    ValueError
        If it is.
    """
    left = a - b
    here = left if isinstance(left, int) else read(left)
    if here is not None and np.any(np.asarray(here) < 0):
        raise ValueError(f"a part has no more values than the whole; got a cell with {np.min(here)} left")
    return left


def merge(a: State, b: State, xp: Any) -> Parts:
    """The merged (K, delta, M2), and the exponent where float64 cannot hold M2."""
    usual = a.exponent is None and b.exponent is None
    shift, delta, m2 = _merge(a, b, xp)
    can_read = isinstance(m2, np.ndarray | np.generic)
    can_tell = can_read and "float64" in (a.dtype, b.dtype)
    if usual and not (can_tell and not is_held(shift, m2)):
        return shift, delta, m2, None
    sizes = [xp.abs(part) for m in (a, b) for part in (m.shift, m.delta, m._in_full(xp.sqrt(m.m2), 1))]
    exponent = exponents(np.fmax.reduce(sizes)) if can_read else _exponent(sizes, xp)
    if can_read and not exponent.any():
        return shift, delta, m2, None
    merged = _merge(a.at(exponent), b.at(exponent), xp)
    whole = a.replaced(**dict(zip(("shift", "delta", "m2"), merged, strict=True))).back(exponent)
    return whole.shift, whole.delta, whole.m2, exponent


def subtract(a: State, b: State, xp: Any) -> Parts:
    """The (K, delta, M2) of a whole without a part: ``M2 = M2_1 - M2_2 - d^2 n1 n2 / n``, with n what is left.

    Raises
    ------
    ValueError
        If a cell's M2 would be lost among those of the whole and the part, and can be read.
    """
    exponent = None
    if a.exponent is not None or b.exponent is not None:
        exponent = _exponent([xp.abs(part) for m in (a, b) for part in (m.shift, m.delta, m._in_full(xp.sqrt(m.m2), 1))], xp)
        a, b = a.at(exponent), b.at(exponent)
    n1, n2 = (real(m.divisor, m.m2, xp) + xp.zeros_like(m.m2) for m in (a, b))
    n = n1 - n2
    left = n > 0
    safe = xp.where(left, n, xp.ones_like(n))
    some = n2 > 0
    d = xp.where(some, (b.shift - a.shift) + (b.delta - a.delta), xp.zeros_like(n))
    delta = a.delta - d * (n2 / safe)
    m2 = a.m2 - xp.where(some, b.m2, xp.zeros_like(n)) - d * d * (n1 / safe * n2)
    m2 = xp.where(some, m2, a.m2)
    alone = left & (n == 1) if a.sum_weights is None and b.sum_weights is None else left & ~left
    nothing = xp.zeros_like(n)
    m2 = xp.where(alone | ~left, nothing, m2)
    lost = (m2 * _WORST < a.m2) & left & ~alone
    here = read(lost)
    if here is not None and np.any(here):
        cell = tuple(map(int, np.argwhere(here)[0])) if np.ndim(here) else ()
        raise ValueError(
            f"the rest of cell {cell} varies too little beside the part that is taken away: too few digits are left; "
            "take the moments of the rest itself"
        )
    shift, delta = (xp.where(left, part, nothing) for part in (a.shift, delta))
    m2 = xp.where(m2 < 0, nothing, m2)
    if exponent is None:
        return shift, delta, m2, None
    whole = a.replaced(shift=shift, delta=delta, m2=m2).back(exponent)
    return whole.shift, whole.delta, whole.m2, exponent


def equal(a: State, b: State) -> bool:
    """Whether two states on NumPy give the same counts, means and variances."""
    if (a.count is None) != (b.count is None) or (a.sum_weights is None) != (b.sum_weights is None):
        return False
    counts = a.count is None or bool(np.all(np.asarray(a.count) == np.asarray(b.count)))
    weights = a.sum_weights is None or np.array_equal(a.sum_weights, b.sum_weights)
    means = (a.shift + a.delta, b.shift + b.delta)
    return bool(counts and weights and _same(*means) and _same(a.squares, b.squares))


def close(a: State, b: State, rtol: float, atol: float) -> bool:
    """Whether two states on NumPy have the same counts, and means and deviations within a tolerance."""
    if (a.count is None) != (b.count is None) or not (
        a.count is None or bool(np.all(np.asarray(a.count) == np.asarray(b.count)))
    ):
        return False
    means = [np.asarray(m.shift + m.delta) for m in (a, b)]
    with np.errstate(invalid="ignore"):
        stds = [np.asarray(m._in_full(np.sqrt(m._variance(0)), 1)) for m in (a, b)]
    size = np.fmax.reduce([np.abs(values) for values in (*means, *stds)])
    with np.errstate(invalid="ignore"):
        near = [_alike(x, y) | (np.abs(x - y) <= atol + rtol * size) for x, y in (means, stds)]
    return bool(np.all(near[0]) and np.all(near[1]))


def real(count: Any, like: Array, xp: Any) -> Array:
    """A count as a float, or as an array of the dtype of `like`."""
    return float(count) if isinstance(count, int) else xp.astype(count, like.dtype)


def _same(x: Array, y: Array) -> bool:
    return bool(np.all(_alike(np.asarray(x), np.asarray(y))))


def _alike(x: Array, y: Array) -> Array:
    return (x == y) | (np.isnan(x) & np.isnan(y))


def _exponent(sizes: list[Array], xp: Any) -> Array:
    """The exponents of the largest of some sizes, for arrays that cannot be read."""
    largest = xp.zeros_like(sizes[0])
    for size in sizes:
        largest = xp.where(size > largest, size, largest)
    most = xp.full_like(largest, float(xp.finfo(largest.dtype).max))
    return exponent_of(unit(xp.where(largest < most, largest, most), 0.0, xp), xp)


def _merge(a: State, b: State, xp: Any) -> tuple[Array, Array, Array]:
    """The merged (K, delta, M2); kernels/cpu/scalars.py has the same formula for scalars, and a test holds them equal."""
    if isinstance(a.divisor, int) and isinstance(b.divisor, int):
        n = a.divisor + b.divisor
        share, weight = b.divisor / n, a.divisor / n * b.divisor
        a_empty = b_empty = None
    else:
        n1, n2 = real(a.divisor, a.m2, xp), real(b.divisor, b.m2, xp)
        n = n1 + n2
        safe = xp.where(n > 0, n, xp.ones_like(n))
        share, weight = n2 / safe, n1 / safe * n2
        a_empty, b_empty = n1 == 0, n2 == 0
    d = (b.shift - a.shift) + (b.delta - a.delta)
    finite = xp.isfinite(d)
    # An infinite value makes the mean infinite; the difference of two infinities would make it NaN.
    delta = xp.where(
        finite, a.delta + xp.where(finite, d, xp.zeros_like(d)) * share, a.delta + (b.delta + (b.shift - a.shift))
    )
    m2 = a.m2 + (b.m2 + xp.where(d == d, d * d * weight, xp.zeros_like(d)))  # M2 itself tells of infinities and of NaN
    shift = a.shift + xp.zeros_like(delta)
    if a_empty is not None:
        shift = xp.where(a_empty, b.shift, shift)
        delta = xp.where(a_empty, b.delta, xp.where(b_empty, a.delta, delta))
        m2 = xp.where(a_empty, b.m2, xp.where(b_empty, a.m2, m2))
    return shift, delta, m2
