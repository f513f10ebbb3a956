"""The moments of every kept cell, as a state that merges: batches, chunks, devices and ranks add up to the same answer.

The state of a cell is ``(n, K, delta, M2)`` with ``mean = K + delta`` left unevaluated and ``var = M2 / n``. K is a value
of the data, so that delta and M2 are small numbers that have lost nothing, however far the data lie from zero.

Where float64 cannot hold the squares of the data, M2 is that of the data times ``2^-exponent``, a whole number for each cell.
There is no exponent in any other state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never, Self

import numpy as np
from array_api_compat import array_namespace, is_jax_array

from keepnorm import labels, saved
from keepnorm.axes import as_ints, normal, out_of_order, refuse_order
from keepnorm.keywords import REQUIRED, check, described
from keepnorm.labels import CellLabels
from keepnorm.powers import exponent_of, exponents, is_held, times_power, unit
from keepnorm.subclasses import refuse
from keepnorm.transfer import like, read, to_numpy

Array = Any


class Moments:
    """Count, mean and population variance of each kept cell; ``a + b`` are the moments of both together.

    Made by :func:`keepnorm.moments`, :meth:`from_mean_var` and :meth:`from_dict`.

    Attributes
    ----------
    count : int or array of int64
        How many values each cell has seen; an array, of the kept shape, where a mask made them differ; None if unknown.
    mean, var, std : array of the kept shape
        The mean, the population variance and its root, in float32 (float64 for 64-bit data, and for a variance that float32
        cannot hold), in the library of x. NaN where the count is 0.
    keep : tuple of int
        The kept axes of the data, ascending.
    ndim : int
        How many axes the data have.

    Notes
    -----
    The merge is that of Chan, Golub and LeVeque [1]_ on shifted data:
    ``d = mean2 - mean1``, ``mean = mean1 + d n2 / n``, ``M2 = M2_1 + M2_2 + d^2 n1 n2 / n``.

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance",
       The American Statistician 37 (1983), 242-247.

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> a = kn.moments(np.array([[1.0, 10.0], [2.0, 20.0]]), keep=1)
    >>> b = kn.moments(np.array([[3.0, 60.0]]), keep=1)
    >>> (a + b).count, (a + b).mean, (a + b).variance(correction=1)
    (3, array([ 2., 30.]), array([  1., 700.]))
    """

    __slots__ = ("count", "delta", "dtype", "exponent", "export", "keep", "labels", "m2", "ndim", "shift")

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

    @classmethod
    def from_mean_var(
        cls,
        mean: Array,
        var: Array,
        *,
        keep: int | Sequence[int] = REQUIRED,
        ndim: int = REQUIRED,
        count: Any = None,
        **unknown: Never,
    ) -> Self:
        """Moments from given running statistics, such as a framework's.

        Parameters
        ----------
        mean, var : array of the kept shape
            The mean and the population variance. Some published networks store a variance slightly below 0: it is taken here,
            and where one normalises with it if ``var + eps`` is positive.
        keep : int or tuple of int
            The kept axes of the data that they belong to.
        ndim : int
            How many axes those data have.
        count : int or array of int, optional
            How many values they were taken from; without it they normalise, but neither merge nor give a sample variance.

        Raises
        ------
        TypeError
            If mean, var or count is a masked array.
        ValueError
            If the shapes differ, the number of axes is not that of `keep`, or a count is negative (of arrays, only NumPy's are
            read).
        """
        check(Moments.from_mean_var, unknown, keep=keep, ndim=ndim)
        axes = normal(as_ints(keep, "keep"), ndim, "keep", (-1,) * ndim)
        written = out_of_order(as_ints(keep, "keep"), ndim)
        if written is not None:
            refuse_order("mean", written)
        for name, values in (("mean", mean), ("var", var), ("count", count)):
            refuse(values, name)
        mean, var = _as_array(mean), _as_array(var)
        xp = array_namespace(mean, var)
        if mean.shape != var.shape:
            raise ValueError(f"mean and var must have one shape; got {tuple(mean.shape)} and {tuple(var.shape)}")
        if mean.ndim != len(axes):
            raise ValueError(
                f"keep={keep} keeps {len(axes)} axes, so mean must have {len(axes)}; got shape {tuple(mean.shape)}"
            )
        if count is not None:
            if isinstance(count, float) or (not hasattr(count, "shape") and count < 0):
                raise ValueError(f"count must be a whole number of at least 0; got {described(count)}")
            if getattr(count, "shape", ()) not in ((), tuple(mean.shape)):
                raise ValueError(f"count must be one number or have shape {tuple(mean.shape)}; got {tuple(count.shape)}")
            if isinstance(count, np.ndarray) and (count.dtype.kind not in "iu" or np.any(count < 0)):
                wrong = described(count.min() if count.dtype.kind in "iu" else count)
                raise ValueError(f"count must hold whole numbers of at least 0; got {wrong}")
            if hasattr(count, "shape"):
                count = int(count) if count.shape == () else _whole(count)
        dtype = "float64" if "float64" in str(mean.dtype) else "float32"
        mean, var = _widen(mean, xp), _widen(var, xp)
        m2 = var if count is None else var * _real(count, var, xp)
        return cls(count, mean, xp.zeros_like(mean), m2, keep=axes, ndim=ndim, dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The kept shape: the shape of mean and var."""
        return tuple(self.shift.shape)

    @property
    def mean(self) -> Array:
        """The mean of each cell; NaN where the count is 0."""
        return self._hand_out(self._where_filled(self.shift + self.delta))

    @property
    def var(self) -> Array:
        """The population variance of each cell: ``variance(correction=0)``."""
        return self.variance()

    @property
    def std(self) -> Array:
        """The population standard deviation of each cell: ``deviation(correction=0)``."""
        return self.deviation()

    def variance(self, *, correction: float = 0, **unknown: Never) -> Array:
        """The variance ``M2 / (n - correction)`` of each cell.

        Parameters
        ----------
        correction : float, default 0
            What is subtracted from the count, as in the array API standard: 0 population, 1 sample.

        Returns
        -------
        array of the kept shape
            NaN where ``n - correction`` is not positive. In float64 where float32 cannot hold it, as for data of 1e20, if the
            library has that and the values can be read.

        Raises
        ------
        ValueError
            If `correction` is not 0 and the count is not known.
        """
        check(Moments.variance, unknown)
        return self._hand_out(self._in_full(self._variance(correction)))

    @property
    def squares(self) -> Array:
        """M2 of the data as they are; infinite or 0 where float64 cannot hold it."""
        return self._in_full(self.m2)

    def replaced(self, **parts: Any) -> "Moments":
        """The same moments with other parts."""
        return Moments(**{name: parts.get(name, getattr(self, name)) for name in self.__slots__})

    def deviation(self, *, correction: float = 0, **unknown: Never) -> Array:
        """The standard deviation ``sqrt(M2 / (n - correction))`` of each cell, taken in the precision of the state.

        Parameters
        ----------
        correction : float, default 0
            As for :meth:`variance`: 0 population, 1 sample.

        Returns
        -------
        array of the kept shape
            NaN where ``n - correction`` is not positive.

        Raises
        ------
        ValueError
            If `correction` is not 0 and the count is not known.
        """
        check(Moments.deviation, unknown)
        variance = self._variance(correction)
        with np.errstate(invalid="ignore"):  # a stored variance below 0 has no root
            return self._hand_out(self._in_full(array_namespace(variance).sqrt(variance), 1))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of the data of both; also ``self + other``.

        Cells with labels (those of an xarray.DataArray) belong together by dimension and label, whatever their order. Of two
        libraries, the moments come out in the other's where one is NumPy, else in that of `self`.

        Raises
        ------
        TypeError
            If `other` is no Moments.
        ValueError
            If the kept axes or shapes or labels differ, a count is not known, or one would be larger than an array of int64
            holds.
        """
        if not isinstance(other, Moments):
            raise TypeError(f"only Moments merge with Moments; got {type(other).__name__}")
        other = fitted(other, self)
        if self.count is None or other.count is None:
            raise ValueError("moments without a count do not merge: give from_mean_var a count; got count=None")
        if isinstance(other.count, int) and other.count == 0:
            return self
        if isinstance(self.count, int) and self.count == 0:
            return other
        home = other if _is_numpy(self.shift) and not (_is_numpy(other.shift) and self.export) else self
        first, second = _moved(self, home), _moved(other, home)
        with np.errstate(invalid="ignore", over="ignore"):  # infinities have their answer in _merge
            shift, delta, m2, exponent = _merge_at_any_size(first, second, array_namespace(home.shift))
        dtype = max(self.dtype, other.dtype)  # "float64" sorts after "float32"
        return Moments(
            _total(first.count, second.count),
            shift,
            delta,
            m2,
            keep=self.keep,
            ndim=self.ndim,
            dtype=dtype,
            export=home.export,
            exponent=exponent,
            labels=other.labels if self.labels is None else self.labels.with_those_of(other.labels),
        )

    def __add__(self, other: object) -> "Moments":
        if not isinstance(other, Moments):
            return NotImplemented
        return self.merge(other)

    def __radd__(self, other: object) -> "Moments":
        """Let ``sum(list_of_moments)`` work: it starts at 0."""
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    def to_dict(self) -> dict[str, Any]:
        """The state as plain numbers, lists and words, for JSON or a checkpoint; `from_dict` restores it to the last bit."""
        state = {
            "count": self.count if isinstance(self.count, int) or self.count is None else _to_list(self.count),
            "shift": _to_list(self.shift),
            "delta": _to_list(self.delta),
            "m2": _to_list(self.m2),
            "shape": list(self.shape),
            "keep": list(self.keep),
            "ndim": self.ndim,
            "dtype": self.dtype,
            **({} if self.exponent is None else {"exponent": _to_list(self.exponent)}),
        }
        return state if self.labels is None else state | {"labels": self.labels.dumps()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The moments that `to_dict` wrote, on NumPy; as they are, or as numpy.savez, json, msgpack or zarr gave them back.

        Raises
        ------
        TypeError
            If the state is no mapping, or something in it is of another kind.
        ValueError
            If a key is missing, or something in it fits no moments, such as a negative count.
        """
        found = saved.entries(state, set(_SAVED), ("exponent", "labels"))
        shape, ndim = saved.integers(found["shape"], "shape"), saved.integer(found["ndim"], "ndim")
        keep = saved.axes(found["keep"], "keep", ndim, shape)
        count = saved.count(found["count"], "count", shape)
        shift, delta, m2 = (saved.numbers(found[name], name, shape) for name in ("shift", "delta", "m2"))
        if count is not None and np.any(m2 < 0):
            raise ValueError(f"m2, a sum of squares, must be at least 0; got {np.nanmin(m2)}")
        dtype = saved.word(found["dtype"], "dtype", ("float32", "float64"))
        named = labels.loads(saved.plain(found["labels"]), shape) if "labels" in found else None
        exponent = saved.whole(found["exponent"], "exponent", shape) if "exponent" in found else None
        return cls(count, shift, delta, m2, keep=keep, ndim=ndim, dtype=dtype, exponent=exponent, labels=named)

    def __getstate__(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"Moments(count={self.count}, mean={self.mean}, var={self.var}, keep={self.keep})"

    def _in_full(self, values: Array, power: int = 2) -> Array:
        """Squares, or first powers, of the data as they are, from those times a power of two."""
        for _ in range(0 if self.exponent is None else power):
            values = times_power(values, self.exponent)
        return values

    def at(self, exponent: Array) -> "Moments":
        """The moments of the data times 2^-exponent."""
        own = 0 if self.exponent is None else self.exponent
        m2 = times_power(times_power(self.m2, own - exponent), own - exponent)
        return self.replaced(
            shift=times_power(self.shift, -exponent), delta=times_power(self.delta, -exponent), m2=m2, exponent=None
        )

    def back(self, exponent: Array) -> "Moments":
        """The moments of the data whose moments times 2^-exponent these are; float64 may not hold their M2."""
        xp = array_namespace(self.m2)
        # K becomes the mean, since a mean of large values may lie too far from one of them.
        mean = self.shift + self.delta
        changed = exponent != 0
        shift = xp.where(changed, mean, self.shift)
        delta = xp.where(changed, (self.shift - mean) + self.delta, self.delta)
        return self.replaced(shift=times_power(shift, exponent), delta=times_power(delta, exponent), exponent=exponent)

    def spread_over(self, divisor: Any) -> Array:
        """M2 over a divisor, in the precision of the state and of the data as they are; NaN where they hold an infinity."""
        return self._in_full(self._m2_of_finite() / divisor)

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
        if isinstance(self.count, int):
            free = self.count - correction
            return m2 / free if free > 0 else nothing
        divisor = _real(self.count, self.m2, xp) - correction
        positive = divisor > 0
        return xp.where(positive, m2 / xp.where(positive, divisor, xp.ones_like(divisor)), nothing)

    def _where_filled(self, values: Array) -> Array:
        if self.count is None or (isinstance(self.count, int) and self.count > 0):
            return values
        xp = array_namespace(values)
        empty = xp.full_like(values, xp.nan)
        return empty if isinstance(self.count, int) else xp.where(self.count > 0, values, empty)

    def _hand_out(self, values: Array) -> Array:
        if self.export is not None:
            values = self.export(values, self.dtype)
        else:
            if isinstance(values, float):  # NumPy's arithmetic turns an array without axes into a scalar
                values = np.asarray(values)
            values = narrowed(values, self.dtype)
        return values if self.labels is None else self.labels.attach(values)


def narrowed(values: Array, dtype: str) -> Array:
    """Values in a dtype, or as they are where they can be read and one that is finite would not be any more."""
    xp = array_namespace(values)
    with np.errstate(over="ignore"):
        narrow = xp.astype(values, getattr(xp, dtype))
    if narrow.dtype == values.dtype or (here := read(values)) is None:
        return narrow
    limit = np.finfo(dtype).max
    return values if np.any((np.abs(here) > limit) & np.isfinite(here)) else narrow


def fitted(state: Moments, home: Moments) -> Moments:
    """A state with its cells in the order of another one's, where both have labels.

    Raises
    ------
    ValueError
        If their cells are not the same.
    """
    if state.labels is not None and home.labels is not None:
        state = in_order(state, home.labels, home.keep, home.ndim)
    if (home.keep, home.ndim, home.shape) != (state.keep, state.ndim, state.shape):
        raise ValueError(
            f"moments of different cells do not merge; got keep={home.keep} of {home.ndim} axes with shape {home.shape} "
            f"and keep={state.keep} of {state.ndim} axes with shape {state.shape}"
        )
    return state


def in_order(state: Moments, wanted: CellLabels, keep: tuple[int, ...], ndim: int) -> Moments:
    """A state with labels, its cells in the order of others; `keep` and `ndim` are where those stand in their data."""
    if state.labels is None:
        return state
    order = state.labels.order(wanted, "moments")
    coords = {name: c for name, c in state.labels.coords.items() if not c.dims or name in wanted.dims}
    there = CellLabels(wanted.dims, coords | {d: wanted.coords[d] for d in wanted.dims if d in wanted.coords})
    return _with_each(state, order.apply).replaced(keep=keep, ndim=ndim, labels=there)


def _moved(state: Moments, home: Moments) -> Moments:
    """A state in the library and on the device of another one."""
    if type(state.shift) is type(home.shift) and _is_numpy(state.shift):
        return state
    if not _is_numpy(state.shift) and not _is_numpy(home.shift) and read(state.shift) is None:
        array_namespace(state.shift, home.shift)  # what cannot be read must be of one library
    return _with_each(state, lambda part: like(part, home.shift))


def _with_each(state: Moments, change: Callable[[Array], Array]) -> Moments:
    """A state with every array of it changed."""
    parts = {name: getattr(state, name) for name in ("count", "shift", "delta", "m2", "exponent")}
    return state.replaced(**{n: part if part is None or isinstance(part, int) else change(part) for n, part in parts.items()})


def _is_numpy(values: Array) -> bool:
    return isinstance(values, np.ndarray | np.generic)


_MOST = 2**63 - 1
_SAVED = ("count", "shift", "delta", "m2", "shape", "keep", "ndim", "dtype")


def _total(a: Any, b: Any) -> Any:
    """The sum of two counts, exact: Python's ints have no end, those of arrays are refused beyond int64."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    counts: list[Any] = [c if isinstance(c, int) else read(c) for c in (a, b)]
    if all(c is not None and np.size(c) for c in counts) and sum(int(np.max(c)) for c in counts) > _MOST:
        largest = int(np.max(np.asarray(counts[0], object) + np.asarray(counts[1], object)))
        if largest > _MOST:
            raise ValueError(f"counts in an array go up to 2^63 - 1; the sum of two is {largest}")
    return a + b


def _whole(count: Array) -> Array:
    """Counts of any whole dtype in int64, where the library has it, so that their sums are right."""
    xp = array_namespace(count)
    widest = int if is_jax_array(count) else getattr(xp, "int64", count.dtype)
    return xp.astype(count, widest) if "int" in str(count.dtype) else count


def _merge_at_any_size(a: Moments, b: Moments, xp: Any) -> tuple[Array, Array, Array, Array | None]:
    """The merged (K, delta, M2), and the exponent where float64 cannot hold M2."""
    usual = a.exponent is None and b.exponent is None
    shift, delta, m2 = _merge(a, b, xp)
    read = isinstance(m2, np.ndarray | np.generic)
    can_tell = read and "float64" in (a.dtype, b.dtype)
    if usual and not (can_tell and not is_held(shift, m2)):
        return shift, delta, m2, None
    sizes = [xp.abs(part) for m in (a, b) for part in (m.shift, m.delta, m._in_full(xp.sqrt(m.m2), 1))]
    exponent = exponents(np.fmax.reduce(sizes)) if read else _exponent(sizes, xp)
    if read and not exponent.any():
        return shift, delta, m2, None
    merged = _merge(a.at(exponent), b.at(exponent), xp)
    whole = a.replaced(**dict(zip(("shift", "delta", "m2"), merged, strict=True))).back(exponent)
    return whole.shift, whole.delta, whole.m2, exponent


def _exponent(sizes: list[Array], xp: Any) -> Array:
    """The exponents of the largest of some sizes, for arrays that cannot be read."""
    largest = xp.zeros_like(sizes[0])
    for size in sizes:
        largest = xp.where(size > largest, size, largest)
    most = xp.full_like(largest, float(xp.finfo(largest.dtype).max))
    return exponent_of(unit(xp.where(largest < most, largest, most), 0.0, xp), xp)


def _merge(a: Moments, b: Moments, xp: Any) -> tuple[Array, Array, Array]:
    """The merged (K, delta, M2); kernels/cpu/scalars.py has the same formula for scalars, and a test holds them equal."""
    if isinstance(a.count, int) and isinstance(b.count, int):
        n = a.count + b.count
        share, weight = b.count / n, a.count / n * b.count
        a_empty = b_empty = None
    else:
        n1, n2 = _real(a.count, a.m2, xp), _real(b.count, b.m2, xp)
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


def _as_array(values: Any) -> Array:
    if hasattr(values, "__array_namespace__") or hasattr(values, "dtype"):
        return values
    return np.asarray(values, np.float32)


def _widen(values: Array, xp: Any) -> Array:
    """In float64 where the library has it (JAX without x64 has not)."""
    # JAX takes Python's float for the widest that it has, and warns of float64 where it has none.
    return xp.astype(values, float if is_jax_array(values) else getattr(xp, "float64", values.dtype))


def _real(count: Any, like: Array, xp: Any) -> Array:
    """A count as a float, or as an array of the dtype of `like`."""
    return float(count) if isinstance(count, int) else xp.astype(count, like.dtype)


def _to_list(values: Array) -> Any:
    return to_numpy(values).tolist()
