"""The state of every kept cell: its parts, and what follows from them in their own precision.

The state of a cell is ``(n, K, delta, M2)`` with ``mean = K + delta`` left unevaluated and ``var = M2 / n``. K is a value
of the data, so that delta and M2 are small numbers that have lost nothing, however far the data lie from zero.

Where float64 cannot hold the squares of the data, M2 is that of the data times ``2^-exponent``, a whole number for each cell.
There is no exponent in any other state.

Where values have weights, W, their sum, takes the place of n in these formulas: n then is how many values there are.
"""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from array_api_compat import array_namespace

from keepnorm.labels import CellLabels
from keepnorm.powers import quiet, times_power
from keepnorm.states import reshaping
from keepnorm.states.merging import real
from keepnorm.states.reshaping import PARTS
from keepnorm.transfer import read

Array = Any


class State:
    """The parts of the moments of all cells; :class:`keepnorm.Moments` is what people use of it."""

    __slots__ = ("count", "delta", "dtype", "exponent", "export", "keep", "labels", "m2", "ndim", "shift", "sum_weights")

    def __init__(
        self,
        count: Any,
        shift: Array,
        delta: Array,
        m2: Array,
        *,
        keep: tuple[int, ...],
        ndim: int,
        dtype: str = "float32",
        export: Callable[[Array, str], Array] | None = None,
        exponent: Array | None = None,
        labels: CellLabels | None = None,
        sum_weights: Array | None = None,
    ) -> None:
        self.count = count
        self.shift = shift
        self.delta = delta
        self.m2 = m2
        self.keep = keep
        self.ndim = ndim
        self.dtype = dtype
        self.export = export
        self.exponent = exponent
        self.labels = labels
        self.sum_weights = sum_weights

    @property
    def divisor(self) -> Any:
        """What M2 is divided by: the sum of the weights where there are any, else the count."""
        return self.count if self.sum_weights is None else self.sum_weights

    @property
    def shape(self) -> tuple[int, ...]:
        """The kept shape: the shape of mean and var."""
        return tuple(self.shift.shape)

    @property
    def squares(self) -> Array:
        """M2 of the data as they are; infinite or 0 where float64 cannot hold it."""
        return self._in_full(self.m2)

    def replaced(self, **parts: Any) -> Self:
        """The same moments with other parts."""
        return type(self)(**{name: parts.get(name, getattr(self, name)) for name in State.__slots__})

    def root(self, eps: float) -> Array:
        """``sqrt(var + eps)`` of the data as they are, in the precision of the state."""
        variance = self._variance(0)
        xp = array_namespace(variance)
        if self.exponent is None:
            return xp.sqrt(variance + eps)
        std, least = self._in_full(xp.sqrt(variance), 1), eps**0.5
        large = xp.where(std > least, std, xp.full_like(std, least))
        small = xp.where(std > least, xp.full_like(std, least), std)
        ratio = small / xp.where(large > 0, large, xp.ones_like(large))
        return large * xp.sqrt(1 + ratio * ratio)

    def without_count(self) -> Self:
        """The same means and variances, which normalise and no more."""
        return self if self.count is None else self.replaced(count=None, m2=self._variance(0), sum_weights=None)

    def at(self, exponent: Array) -> Self:
        """The moments of the data times 2^-exponent."""
        own = 0 if self.exponent is None else self.exponent
        m2 = times_power(times_power(self.m2, own - exponent), own - exponent)
        return self.replaced(
            shift=times_power(self.shift, -exponent), delta=times_power(self.delta, -exponent), m2=m2, exponent=None
        )

    def back(self, exponent: Array) -> Self:
        """The moments of the data whose moments times 2^-exponent these are; float64 may not hold their M2."""
        xp = array_namespace(self.m2)
        # K becomes the mean, since a mean of large values may lie too far from one of them.
        mean = self.shift + self.delta
        changed = exponent != 0
        shift = xp.where(changed, mean, self.shift)
        with np.errstate(invalid="ignore"):  # of an infinite mean
            delta = xp.where(changed, (self.shift - mean) + self.delta, self.delta)
        return self.replaced(shift=times_power(shift, exponent), delta=times_power(delta, exponent), exponent=exponent)

    def spread_over(self, divisor: Any) -> Array:
        """M2 over a divisor, in the precision of the state and of the data as they are; NaN where they hold an infinity."""
        return self._in_full(self._m2_of_finite() / divisor)

    def _in_full(self, values: Array, power: int = 2) -> Array:
        """Squares, or first powers, of the data as they are, from those times a power of two."""
        for _ in range(0 if self.exponent is None else power):
            values = times_power(values, self.exponent)
        return values

    def _m2_of_finite(self) -> Array:
        """M2; NaN where the data hold an infinity: their M2 is infinite, and they have no variance."""
        xp = array_namespace(self.m2)
        return xp.where(xp.isfinite(self.delta), self.m2, xp.full_like(self.m2, xp.nan))

    def _variance(self, correction: float) -> Array:
        xp = array_namespace(self.m2)
        m2, nothing = self._m2_of_finite(), xp.full_like(self.m2, xp.nan)
        if self.count is None:
            if correction:
                raise ValueError(f"correction={correction} needs the count, which these moments do not have")
            return m2
        if isinstance(self.divisor, int):
            free = self.divisor - correction
            return m2 / free if free > 0 else nothing
        divisor = real(self.divisor, self.m2, xp) - correction
        positive = divisor > 0
        return xp.where(positive, m2 / xp.where(positive, divisor, xp.ones_like(divisor)), nothing)

    def _where_filled(self, values: Array) -> Array:
        n = self.divisor
        if n is None or (isinstance(n, int) and n > 0):
            return values
        xp = array_namespace(values)
        empty = xp.full_like(values, xp.nan)
        return empty if isinstance(n, int) else xp.where(n > 0, values, empty)

    def _hand_out(self, values: Array) -> Array:
        if self.export is not None:
            values = self.export(values, self.dtype)
        else:
            if isinstance(values, float):  # NumPy's arithmetic turns an array without axes into a scalar
                values = np.asarray(values)
            values = narrowed(values, self.dtype)
        return values if self.labels is None else self.labels.attach(values)

    def __dask_graph__(self) -> Any:
        """What dask reads of a state of its arrays, so that dask.compute and persist take it as a whole; None of others."""
        return reshaping.dask_graph(self, PARTS)

    def __dask_keys__(self) -> list[Any]:
        return [part.__dask_keys__() for _, part in reshaping.lazy(self, PARTS)]

    def __dask_postcompute__(self) -> Any:
        return reshaping.finished, (self, PARTS)

    def __dask_postpersist__(self) -> Any:
        return reshaping.persisted, (self, PARTS)

    @property
    def __dask_optimize__(self) -> Any:
        import dask.array as da

        return da.Array.__dask_optimize__

    @property
    def __dask_scheduler__(self) -> Any:
        import dask.array as da

        return da.Array.__dask_scheduler__

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in State.__slots__)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(State.__slots__, state, strict=True):
            setattr(self, name, value)


def narrowed(values: Array, dtype: str) -> Array:
    """Values in a dtype, or as they are where they can be read and one that is finite would not be any more."""
    xp = array_namespace(values)
    with quiet(values, over="ignore"):
        narrow = xp.astype(values, getattr(xp, dtype))
    if narrow.dtype == values.dtype or (here := read(values)) is None:
        return narrow
    limit = np.finfo(dtype).max
    return values if np.any((np.abs(here) > limit) & np.isfinite(here)) else narrow
