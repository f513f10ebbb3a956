"""Moments: what people use of the state of every kept cell. (Its lines are mostly what its methods say of themselves.)

Its parts and formulas are in states/.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never, Self

import numpy as np
from array_api_compat import array_namespace, is_jax_array

from keepnorm import labels
from keepnorm.axes import as_ints, normal, out_of_order, refuse_order
from keepnorm.keywords import REQUIRED, check, described
from keepnorm.powers import quiet
from keepnorm.states import merging, reshaping, saved
from keepnorm.states.fitting import computed, fitted, is_numpy, moved, on_numpy
from keepnorm.states.merging import real
from keepnorm.states.reshaping import Broadcast
from keepnorm.states.state import State
from keepnorm.subclasses import refuse
from keepnorm.transfer import read, to_numpy

Array = Any


# What every saved state has.
_SAVED = ("count", "shift", "delta", "m2", "shape", "keep", "ndim", "dtype")


class Moments(State):
    """Count, mean and population variance of each kept cell; ``a + b`` are the moments of both together.

    Made by :func:`keepnorm.moments`, :meth:`from_mean_var`, :meth:`from_mean_std`, :meth:`from_dict` and :meth:`load`.
    ``whole - part`` are those of the rest. Two are equal, ``a == b``, if they give the same numbers for the same cells.

    Attributes
    ----------
    count : int or array of int64
        How many values each cell has seen; an array, of the kept shape, where a mask made them differ; None if unknown.
    sum_weights : array of float64, or None
        The sum of the weights of each cell's values, which takes the place of the count; None where values have no weights.
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

    __slots__ = ()

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
        mean, var : array or list of the kept shape
            The mean and the population variance, handed out in float32 unless they are float64 arrays. Some published
            networks store a variance slightly below 0: it is taken here, and where one normalises with it if ``var + eps``
            is positive.
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
        dtype_of = getattr(mean, "dtype", "float32")
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
        dtype = "float64" if "float64" in str(dtype_of) else "float32"
        mean, var = _widen(mean, xp), _widen(var, xp)
        m2 = var if count is None else var * real(count, var, xp)
        return cls(count, mean, xp.zeros_like(mean), m2, keep=axes, ndim=ndim, dtype=dtype)

    @classmethod
    def from_mean_std(
        cls,
        mean: Array,
        std: Array,
        *,
        keep: int | Sequence[int] = REQUIRED,
        ndim: int = REQUIRED,
        count: Any = None,
        **unknown: Never,
    ) -> Self:
        """Moments from given means and standard deviations, such as those that image models are published with.

        Parameters
        ----------
        mean, std : array or list of the kept shape
            The mean and the population standard deviation.
        keep, ndim, count
            As for :meth:`from_mean_var`.

        Raises
        ------
        TypeError, ValueError
            As :meth:`from_mean_var`; ValueError if a deviation is below 0.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> imagenet = kn.Moments.from_mean_std([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], keep=-1, ndim=4)
        >>> kn.normalize(np.full((1, 2, 2, 3), 0.5, np.float32), -1, moments=imagenet, eps=0)[0, 0, 0].round(3)
        array([0.066, 0.196, 0.418], dtype=float32)
        """
        check(Moments.from_mean_std, unknown, keep=keep, ndim=ndim)
        refuse(std, "std")
        std = _as_array(std)
        if (here := read(std)) is not None and np.any(here < 0):
            raise ValueError(f"std must be at least 0; got {float(here.min())}")
        wide = _widen(std, array_namespace(std))
        return cls.from_mean_var(mean, wide * wide, keep=keep, ndim=ndim, count=count)

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

    @property
    def stderr(self) -> Array:
        """The standard error of each cell's mean: the sample standard deviation over the root of the count.

        Of weighted values, which :meth:`variance` takes for repeated ones, over the root of the sum of the weights.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> kn.moments(np.array([[1.0], [3.0], [5.0], [7.0]]), keep=1).stderr.round(4)
        array([1.291])
        """
        if self.count is None:
            raise ValueError("the standard error needs the count, which these moments do not have")
        variance = self._variance(1)
        xp = array_namespace(variance)
        n = real(self.divisor, variance, xp)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._hand_out(self._in_full(xp.sqrt(variance / n), 1))

    def variance(self, *, correction: float = 0, **unknown: Never) -> Array:
        """The variance ``M2 / (n - correction)`` of each cell.

        With weights it is ``M2 / (W - correction)`` with their sum W: a weight says how often its value is there, as the
        fweights of numpy.cov and the weights of statsmodels' DescrStatsW do.

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
        with quiet(variance, invalid="ignore"):  # a stored variance below 0 has no root
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
        return self._combined(other, merging.merge, merging.total)

    def __sub__(self, part: object) -> "Moments":
        """The moments of what is left without a part: a rolling window takes the oldest batch away.

        Raises
        ------
        ValueError
            As `merge`; and if the part has more values than the whole, or so much of the whole's spread that too few digits
            are left for the rest.
        """
        if not isinstance(part, Moments):
            return NotImplemented
        part = fitted(part, self)
        if self.count is None or part.count is None:
            raise ValueError("moments without a count have no parts: give from_mean_var a count; got count=None")
        return self._combined(part, merging.subtract, merging.rest)

    def _combined(self, other: "Moments", combine: Callable[..., Any], count: Callable[..., Any]) -> "Moments":
        """The state that a formula gives for two that fit, in the library that one of them is in."""
        home = other if is_numpy(self.shift) and not (is_numpy(other.shift) and self.export) else self
        first, second = moved(self, home), moved(other, home)
        both = count(first.count, second.count)
        with np.errstate(invalid="ignore", over="ignore"):  # infinities have their answer in the formulas
            shift, delta, m2, exponent = combine(first, second, array_namespace(home.shift))
        weights = None
        if first.sum_weights is not None or second.sum_weights is not None:
            weights = count(*(real(m.divisor, m.m2, array_namespace(m.m2)) for m in (first, second)))
        return Moments(
            both,
            shift,
            delta,
            m2,
            keep=self.keep,
            ndim=self.ndim,
            dtype=max(self.dtype, other.dtype),  # "float64" sorts after "float32"
            export=home.export,
            exponent=exponent,
            labels=other.labels if self.labels is None else self.labels.with_those_of(other.labels),
            sum_weights=weights,
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

    def __eq__(self, other: object) -> bool:
        """Whether both have the same counts, means and variances, to the last bit, for the same cells; NaN equals NaN."""
        if not isinstance(other, Moments):
            return NotImplemented
        twin = self._twin(other)
        return twin is self or (twin is not None and merging.equal(on_numpy(self), on_numpy(twin)))

    def allclose(self, other: "Moments", *, rtol: float = 1e-5, atol: float = 0.0, **unknown: Never) -> bool:
        """Whether both have the same counts, and means and standard deviations within a tolerance, for the same cells.

        Parameters
        ----------
        other : Moments
            Of any library.
        rtol : float, default 1e-5
            Relative to the larger of the mean's magnitude and the standard deviation.
        atol : float, default 0
            Added to that.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> x = np.arange(6.0).reshape(3, 2)
        >>> kn.moments(x, 1).allclose(kn.moments(x + 1e-9, 1))
        True
        """
        check(Moments.allclose, unknown)
        if not isinstance(other, Moments):
            raise TypeError(f"allclose compares with Moments; got {type(other).__name__}")
        twin = self._twin(other)
        return twin is not None and merging.close(on_numpy(self), on_numpy(twin), rtol, atol)

    def _twin(self, other: "Moments") -> "Moments | None":
        """Another state with its cells in the order of these; None if they are other cells."""
        try:
            return other if other is self else fitted(other, self)
        except ValueError:
            return None

    def broadcast(self, x: Any, /) -> Broadcast:
        """Mean, variance and standard deviation with the reduced axes in place, as sizes 1: ready for arithmetic with x.

        Parameters
        ----------
        x : array or int
            The data, or how many axes they have.

        Returns
        -------
        Broadcast
            A tuple ``(mean, var, std)``.

        Raises
        ------
        ValueError
            If the data have another number of axes, or other sizes on the kept ones.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> x = np.arange(12.0).reshape(2, 3, 2)
        >>> mean, _, std = kn.moments(x, keep=1).broadcast(x)
        >>> mean.shape, ((x - mean) / std).std(axis=(0, 2))
        ((1, 3, 1), array([1., 1., 1.]))
        """
        return reshaping.broadcast(self, x)

    def pool(self, keep: int | Sequence[int]) -> "Moments":
        """The moments over more axes, from these and without the data: per pixel and channel to per channel.

        Parameters
        ----------
        keep : int or tuple of int
            The axes of the data that still survive, some of the kept ones.

        Raises
        ------
        ValueError
            If an axis is not kept, or the count is not known.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> x = np.arange(12.0).reshape(2, 3, 2)
        >>> kn.moments(x, keep=(1, 2)).pool(1) == kn.moments(x, keep=1)
        True
        """
        with np.errstate(invalid="ignore", over="ignore"):  # infinities have their answer in the formula
            pooled: Moments = reshaping.pool(self, keep)
        return pooled

    def scaled(self, a: Any, b: Any = 0.0) -> "Moments":
        """The moments of ``a * x + b``, such as of packed data with their scale_factor and add_offset.

        Parameters
        ----------
        a, b : float, or array of the kept shape
            What the data are multiplied by, and what is added then.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> packed = kn.moments(np.array([0, 100, 200], np.int16), keep=())
        >>> packed.scaled(0.01, 273.15).mean
        array(274.15, dtype=float32)
        """
        other: Moments = reshaping.scaled(self, a, b)
        return other

    def moved(self, keep: int | Sequence[int], ndim: int) -> "Moments":
        """The same statistics for data whose kept axes lie elsewhere: from channels last to channels first.

        Parameters
        ----------
        keep : int or tuple of int
            Where each kept axis lies, in the order of ``self.keep``.
        ndim : int
            How many axes those data have.

        Raises
        ------
        ValueError
            If the number of kept axes differs, or one is out of range or named twice.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> photos = np.arange(24.0).reshape(1, 2, 4, 3)
        >>> seen = kn.moments(photos, keep=-1)
        >>> kn.normalize(photos.transpose(0, 3, 1, 2), 1, moments=seen.moved(1, 4)).shape
        (1, 3, 2, 4)
        """
        elsewhere: Moments = reshaping.moved(self, keep, ndim)
        return elsewhere

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a .npz or a .json file, whole or not at all; :meth:`load` reads it back to the last bit.

        The file holds the entries of :meth:`to_dict` and ``version``, without pickle: numpy.load and readers of JSON take it.

        Raises
        ------
        ValueError
            If the name ends in neither.
        OSError
            If the file cannot be written; what was there stays.
        """
        saved.write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The moments that :meth:`save` or ``keepnorm stats --save`` wrote, on NumPy.

        Raises
        ------
        ValueError
            If the file holds something else, or is of a later version.
        OSError
            If it cannot be read.

        Examples
        --------
        >>> import tempfile, numpy as np, keepnorm as kn
        >>> seen = kn.moments(np.arange(6.0).reshape(3, 2), keep=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     seen.save(f"{folder}/seen.npz")
        ...     kn.Moments.load(f"{folder}/seen.npz") == seen
        True
        """
        return saved.load(path, cls.from_dict)

    def to_dict(self) -> dict[str, Any]:
        """The state as plain numbers, lists and words, for JSON or a checkpoint; `from_dict` restores it to the last bit."""
        here = computed(self)
        state = {
            "count": here.count if isinstance(here.count, int) or here.count is None else _to_list(here.count),
            "shift": _to_list(here.shift),
            "delta": _to_list(here.delta),
            "m2": _to_list(here.m2),
            "shape": list(self.shape),
            "keep": list(self.keep),
            "ndim": self.ndim,
            "dtype": self.dtype,
            **({} if here.exponent is None else {"exponent": _to_list(here.exponent)}),
            **({} if here.sum_weights is None else {"sum_weights": _to_list(here.sum_weights)}),
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
        found = saved.entries(state, set(_SAVED), ("exponent", "labels", "sum_weights"))
        shape, ndim = saved.integers(found["shape"], "shape"), saved.integer(found["ndim"], "ndim")
        keep = saved.axes(found["keep"], "keep", ndim, shape)
        count = saved.count(found["count"], "count", shape)
        shift, delta, m2 = (saved.numbers(found[name], name, shape) for name in ("shift", "delta", "m2"))
        if count is not None and np.any(m2 < 0):
            raise ValueError(f"m2, a sum of squares, must be at least 0; got {np.nanmin(m2)}")
        dtype = saved.word(found["dtype"], "dtype", ("float32", "float64"))
        named = labels.loads(saved.plain(found["labels"]), shape) if "labels" in found else None
        exponent = saved.whole(found["exponent"], "exponent", shape) if "exponent" in found else None
        weights = saved.numbers(found["sum_weights"], "sum_weights", shape) if "sum_weights" in found else None
        if weights is not None and np.any(weights < 0):
            raise ValueError(f"sum_weights must be at least 0; got {np.nanmin(weights)}")
        rest: dict[str, Any] = {"exponent": exponent, "labels": named, "sum_weights": weights}
        return cls(count, shift, delta, m2, keep=keep, ndim=ndim, dtype=dtype, **rest)

    def __repr__(self) -> str:
        plain = self.replaced(labels=None)
        parts = {"count": self.count, "mean": plain.mean, "var": plain.var, "keep": self.keep}
        return f"Moments({', '.join(f'{name}={_shown(part)}' for name, part in parts.items())})"


def _shown(part: Any) -> str:
    """A part as it is printed: of large arrays a few values."""
    if isinstance(part, int | tuple | None) or read(part) is None:
        return str(part) if part is None or isinstance(part, int | tuple) else described(part)
    edge = 2 if np.ndim(part) <= 2 else 1
    return np.array2string(np.asarray(part), threshold=12, edgeitems=edge).replace("\n", "")


def _whole(count: Array) -> Array:
    """Counts of any whole dtype in int64, where the library has it, so that their sums are right."""
    xp = array_namespace(count)
    widest = int if is_jax_array(count) else getattr(xp, "int64", count.dtype)
    return xp.astype(count, widest) if "int" in str(count.dtype) else count


def _as_array(values: Any) -> Array:
    if hasattr(values, "__array_namespace__") or hasattr(values, "dtype"):
        return values
    return np.asarray(values, np.float64)


def _widen(values: Array, xp: Any) -> Array:
    """In float64 where the library has it (JAX without x64 has not)."""
    # JAX takes Python's float for the widest that it has, and warns of float64 where it has none.
    return xp.astype(values, float if is_jax_array(values) else getattr(xp, "float64", values.dtype))


def _to_list(values: Array) -> Any:
    return to_numpy(values).tolist()
