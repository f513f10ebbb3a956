"""Batch normalisation with running moments: the one stateful class."""

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, ClassVar, Never, Self

import numpy as np

from keepnorm import roles, running, validate
from keepnorm.axes import Axes, Keep, as_ints, refuse_order
from keepnorm.engines.dispatch import eager
from keepnorm.functional import normalize, normalize_vjp
from keepnorm.gradients import Gradients
from keepnorm.inverse import undone
from keepnorm.keywords import REQUIRED, check, check_sizes, described, show
from keepnorm.moments import Moments
from keepnorm.request import Request
from keepnorm.running import Rule, Running
from keepnorm.states import saved
from keepnorm.states.state import narrowed
from keepnorm.transfer import like, to_numpy

Array = Any


class BatchNorm:
    """Batch normalisation over all axes but the kept ones, with running moments.

    Training: ``y = (x - mean) / sqrt(var + eps) * weight + bias`` with the mean and the population variance of the batch,
    and ``running = decay * running + (1 - decay) * batch``. Inference: the same `y` with the running mean and variance.

    Parameters
    ----------
    shape : int or tuple of int
        The sizes of the kept axes: ``(64,)`` for 64 channels, ``(224, 224, 3)`` for one mean per pixel and channel.
    keep : int, tuple of int, or pattern
        The axes that survive the reduction: 1 for channels first, -1 for channels last, ``"n h w c -> c"``.
    eps : float, default 1e-5
        Added to the variance under the root.
    decay : float or None, default 0.9
        The share of the old running value that stays at an update; PyTorch's ``1 - momentum``, Keras's and Flax's
        ``momentum``. None: the cumulative average, in which every batch counts the same, and a masked batch by the share of
        its values that were taken.
    correction : {1, 0}
        What is subtracted from the count for the running variance: 1 sample, as in PyTorch; 0 population, as in Keras and
        Flax. The batch itself is always normalised with the population variance.
    affine : bool, default True
        Whether there are a weight (ones) and a bias (zeros); set ``.weight`` or ``.bias`` to None to have one of them only.
    singleton : {"error", "zero"}
        Training on cells with one value each, whose output is the bias whatever x is. "error" as in PyTorch and MLX;
        "zero" as in Keras, Flax and Haiku: the variance is 0, in the running variance too.
    empty : {"skip", "nan", "error"}
        Training on no value. "skip" as in PyTorch: the running moments stay; "nan" as in Keras and Flax: they become NaN.
        The cells that a mask leaves empty follow the same policy one by one.
    debias : bool, default False
        Whether the average starts from nothing instead of from mean 0 and variance 1, as Haiku does: after t updates the
        weights of the batches sum to 1.
    dtype : {"float32", "float64"}
        The dtype of weight, bias and running moments. Running moments that float32 cannot hold are kept in float64.
    **sizes : int
        Sizes of axes that a pattern groups, such as ``g=32``.

    Attributes
    ----------
    weight, bias : array of shape `shape`, or None
    running : Moments
        The running moments, with which inference normalises; ``.running.var`` is the running variance of `correction`.
    state : Running
        The same as plain arrays, with the counters.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above.

    Notes
    -----
    Parameters may be arrays of any library. They and the running moments are taken to the library and the device of x, and
    after an update the running moments are where the moments of x are. The update is computed in the float64 of the
    moments. Updates of several threads follow one another.

    References
    ----------
    .. [1] S. Ioffe, C. Szegedy, "Batch normalization", 2015, https://arxiv.org/abs/1502.03167

    Examples
    --------
    >>> import numpy as np, keepnorm as kn
    >>> bn = kn.BatchNorm(2, keep=-1, decay=0.5)
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    >>> bn(x, training=True).round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> bn.running.mean, bn.running.var
    (array([ 1., 10.], dtype=float32), array([  1.5, 100.5], dtype=float32))
    """

    _PLAIN: ClassVar[tuple[str, ...]] = ("shape", "eps", "decay", "correction", "singleton", "empty", "debias", "dtype")

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        keep: Keep = REQUIRED,
        eps: float = 1e-5,
        decay: float | None = 0.9,
        correction: int = 1,
        affine: bool = True,
        singleton: str = "error",
        empty: str = "skip",
        debias: bool = False,
        dtype: str = "float32",
        **sizes: int,
    ) -> None:
        check_sizes(type(self), keep, sizes)
        check(type(self), {}, keep=keep)
        self.shape = as_ints(shape, "shape")
        self.keep: str | tuple[int, ...] = keep if isinstance(keep, str) else as_ints(keep, "keep")
        self.sizes: Mapping[str, Any] = sizes
        _check(self.shape, self.keep, eps, decay, correction)
        for name, value, choices in (
            ("singleton", singleton, running.SINGLETON),
            ("empty", empty, running.EMPTY),
            ("dtype", dtype, ("float32", "float64")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {described(value)}")
        self.eps = float(eps)
        self.decay = decay
        self.correction = correction
        self.singleton = singleton
        self.empty = empty
        self.debias = validate.flag(debias, "debias")
        self.dtype = dtype
        self.weight: Array = np.ones(self.shape, dtype) if affine else None
        self.bias: Array = np.zeros(self.shape, dtype) if affine else None
        start = 0.0 if debias or decay is None else 1.0
        self.state = Running(np.zeros(self.shape, dtype), np.ones(self.shape, dtype), start)
        # Where a dialect found each part of the state that was loaded, so that it gets it back in the same form.
        self.form: tuple[str, Mapping[str, Any]] | None = None
        self._lock = Lock()

    @eager
    def __call__(
        self,
        x: Array,
        /,
        *,
        training: bool = REQUIRED,
        where: Array | None = None,
        moments: Moments | None = None,
        **unknown: Never,
    ) -> Array:
        """Normalise x; in training with the moments of the batch, which update the running ones.

        Parameters
        ----------
        x : array
            Its kept axes have the sizes `shape`.
        training : bool
            Always said: True takes the moments of the batch and updates the running ones, False takes the running moments.
        where : array of bool, optional
            Training: which values count for the moments; it broadcasts to x. Every value is normalised. Without effect
            at inference.
        moments : Moments, optional
            Training: the moments of a batch of which x is a part, such as the merged moments of several devices (synchronised
            batch norm); instead of those of x.

        Returns
        -------
        array
            Of the shape, library, device and floating dtype of x.

        Raises
        ------
        ValueError
            If x does not have cells of `shape`, or a policy says "error".
        TypeError
            If `training` is not a bool.
        """
        if unknown:
            check(type(self).__call__, unknown)
        known, axes = self._call(x)
        mask = validate.mask(where, known)
        if not validate.flag(training, "training"):
            return self._normalize(x, self._given(x, axes))
        if moments is not None:
            if where is not None:
                raise ValueError("moments= are of the values that count already; got where= as well")
            self._accept(moments)
            y = self._normalize(x, moments)
            self._advance(moments, None)
            return y
        if axes.count == 0:
            self._allow(0)
            self._advance_empty(axes)
            return self._normalize(x, self._given(x, axes))
        if mask is None:
            self._allow(axes.count)
        y, batch = known.engine.normalize_with_moments(x, Request(axes, *self._parameters(x, known), self.eps, where=mask))
        if mask is not None:
            self._allow(batch.count)
        self._advance(batch, axes.count)
        return y

    @eager
    def vjp(
        self, x: Array, /, *, training: bool | None = None, where: Array | None = None, **unknown: Never
    ) -> tuple[Array, Callable[[Array], Gradients]]:
        """The output and the function that takes its gradient back to x, weight and bias.

        Parameters
        ----------
        x : array
            As for a call.
        training : bool, optional
            True: a training step; ``y`` and the running moments afterwards are those of ``bn(x, training=True)``, which
            this call replaces. False: inference, where the moments are fixed. Left out: the gradient of a training step,
            while the running moments stay as they are: for a step that has been made already.
        where : array of bool, optional
            As for a call.

        Returns
        -------
        y : array
        vjp : callable
            ``vjp(dy)`` gives ``Gradients(x, weight, bias)``; weight and bias are None where the batch norm has none. It
            reads x again, as that of :func:`keepnorm.normalize_vjp` does.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> bn = kn.BatchNorm(1, keep=-1)
        >>> y, vjp = bn.vjp(np.array([[1.0], [2.0], [6.0]]), training=True)
        >>> vjp(np.ones_like(y)).bias
        array([3.], dtype=float32)
        """
        if unknown:
            check(type(self).vjp, unknown)
        known, axes = self._call(x)
        mask = validate.mask(where, known)
        learns = training is None or validate.flag(training, "training")
        if learns and axes.count:
            batch = None
            if training or mask is not None:
                batch = known.engine.moments(x, axes, mask)
            self._allow(axes.count if batch is None else batch.count)
            result = self._pull(x, None, mask)
            if training and batch is not None:
                self._advance(batch, axes.count)
            return result
        if learns:
            self._allow(0)
            if training:
                self._advance_empty(axes)
        return self._pull(x, self._given(x, axes), None)

    @eager
    def inverse(self, y: Array, /, **unknown: Never) -> Array:
        """The x of which inference, ``bn(x, training=False)``, made y.

        Raises
        ------
        ValueError
            If a weight is 0, which has left nothing of x, or y does not have cells of `shape`.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> bn = kn.porting.insert(np.array([[1.0], [2.0], [6.0]]), keep=-1)
        >>> bn.inverse(bn(np.array([[4.0]]), training=False))
        array([[4.]])
        """
        if unknown:
            check(type(self).inverse, unknown)
        known, axes = self._call(y)
        weight, bias = self._parameters(y, known)
        return undone(y, Request(axes, weight, bias, self.eps, True, self._given(y, axes)), known)

    @eager
    def update(self, moments: Moments, *, total: int | None = None) -> None:
        """Update the running moments from the moments of a batch, or of the parts of a batch on several devices, merged.

        Parameters
        ----------
        moments : Moments
            Of cells of `shape`, with a count.
        total : int, optional
            For masked moments and a cumulative average: how many values a cell would have had without the mask. Without it,
            the fullest cell counts as a whole batch.

        Raises
        ------
        TypeError, ValueError
            If these are no moments, of other cells, without a count, or a policy says "error".

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> bn = kn.BatchNorm(1, keep=-1, decay=None)
        >>> first, second = np.array([[1.0], [2.0]]), np.array([[3.0], [6.0]])
        >>> bn.update(kn.moments(first, keep=-1) + kn.moments(second, keep=-1))
        >>> bn.running.mean
        array([3.], dtype=float32)
        """
        self._accept(moments)
        self._advance(moments, total)

    @property
    def running(self) -> Moments:
        """The running mean and variance with which inference normalises, as Moments without a count (an average has none)."""
        state = self.state
        keep, ndim = state.keep, state.ndim
        if keep is None or ndim is None:
            # No batch so far: the fewest axes that have these.
            keep = tuple(range(len(self.shape))) if isinstance(self.keep, str) else self.keep
            ndim = max((a + 1 if a >= 0 else -a for a in keep), default=0)
        return Moments.from_mean_var(state.mean, state.var, keep=keep, ndim=ndim)

    @eager
    def variance(self, *, correction: int = REQUIRED, count: Any = None, **unknown: Never) -> Array:
        """The running variance, taken from this batch norm's correction to another one.

        ``var * (n - own correction) / (n - correction)``: what the framework that has the other correction would have
        stored, once the initial value has decayed.

        Parameters
        ----------
        correction : {0, 1}
        count : int or array of int, optional
            How many values a cell has in a training batch; that of the last batch if None.

        Raises
        ------
        ValueError
            If the corrections differ and the count is not known, or not larger than both.
        """
        check(type(self).variance, unknown, correction=correction)
        state = self.state
        if correction == self.correction:
            return state.var
        count = state.count if count is None else count
        if count is None:
            raise ValueError(
                f"a running variance with correction={self.correction} becomes one with correction={correction} only if the "
                "number of values of a cell in a training batch is known: say count=; got count=None"
            )
        number = np.asarray(to_numpy(count), np.float64)
        if number.size and number.min() <= 1:
            raise ValueError(f"count must be at least 2 for a sample variance; got {number.min():g}")
        var = to_numpy(state.var)
        scaled = var.astype(np.float64) * ((number - self.correction) / (number - correction))
        return narrowed(scaled, "float64" if var.dtype == np.float64 else "float32")

    @eager
    def fold(self, *, dtype: str | None = None, **unknown: Never) -> tuple[Array, Array]:
        """The inference as one multiplication and addition, ``y = x * scale + shift``.

        ``scale = weight / sqrt(var + eps)`` and ``shift = bias - mean * scale``, of the running moments, in float64.

        Parameters
        ----------
        dtype : {"float32", "float64"}, optional
            Of the result; that of the batch norm if None.

        Returns
        -------
        scale, shift : array of shape `shape`
            NumPy. Where ``|mean|`` is much larger than the standard deviation, the shift
            costs digits that a call does not lose.

        Raises
        ------
        ValueError
            If a running variance is below 0 by more than eps.

        Examples
        --------
        >>> import numpy as np, keepnorm as kn
        >>> bn = kn.BatchNorm(1, keep=-1, eps=0.0)
        >>> bn.weight, bn.bias = np.array([3.0]), np.array([0.5])
        >>> bn.fold()
        (array([3.], dtype=float32), array([0.5], dtype=float32))
        """
        check(type(self).fold, unknown)
        state = self.state
        var = validate.rooted(to_numpy(state.var).astype(np.float64), self.eps, "running var")
        # Of a constant nothing is left but the bias.
        scale = np.divide(1.0, np.sqrt(var + self.eps), out=np.zeros_like(var), where=var + self.eps != 0)
        if self.weight is not None:
            scale = scale * to_numpy(self.weight)
        shift = -to_numpy(state.mean).astype(np.float64) * scale
        if self.bias is not None:
            shift = shift + to_numpy(self.bias)
        dtype = self.dtype if dtype is None else dtype
        return scale.astype(dtype), shift.astype(dtype)

    def to_dict(self) -> dict[str, Any]:
        """The whole state as plain numbers and lists, for JSON or a checkpoint; `from_dict` restores it to the last bit."""
        state = self.state
        plain: dict[str, Any] = {name: getattr(self, name) for name in self._PLAIN}
        plain["shape"] = list(self.shape)
        plain["keep"] = self.keep if isinstance(self.keep, str) else list(self.keep)
        plain |= {"sizes": dict(self.sizes)} if self.sizes else {}
        plain |= {"updates": state.updates, "ndim": state.ndim, "kept": None if state.keep is None else list(state.keep)}
        arrays = {"weight": self.weight, "bias": self.bias, "mean": state.mean, "var": state.var}
        arrays |= {"share": state.share, "count": state.count}
        return plain | {name: None if a is None else _to_list(to_numpy(a)) for name, a in arrays.items()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """The batch norm that `to_dict` wrote, on NumPy; as it is, or as numpy.savez, json, msgpack or zarr gave it back.

        Raises
        ------
        TypeError
            If the state is no mapping, or something in it is of another kind.
        ValueError
            If a key is missing, or something in it fits no batch norm.
        """
        needed = {*cls._PLAIN, "keep", "weight", "bias", "mean", "var", "share", "updates", "count", "ndim", "kept"}
        found = saved.entries(state, needed, ("sizes",))
        keep = saved.plain(found["keep"])
        keep = keep if isinstance(keep, str) else tuple(int(a) for a in as_ints(keep, "keep"))
        words = {name: saved.plain(found[name]) for name in cls._PLAIN if name != "shape"}
        sizes = saved.plain(found.get("sizes", {}))
        bn = cls(saved.integers(found["shape"], "shape"), keep=keep, affine=False, **words, **sizes)
        arrays = {
            name: None if saved.plain(found[name]) is None else narrowed(saved.numbers(found[name], name, bn.shape), bn.dtype)
            for name in ("weight", "bias", "mean", "var")
        }
        for name in ("mean", "var"):
            if arrays[name] is None:
                raise ValueError(f"{name} must hold the running {name}; got None")
        bn.weight, bn.bias = arrays["weight"], arrays["bias"]
        share = saved.plain(found["share"])
        number = isinstance(share, int | float) and not isinstance(share, bool)
        gathered = float(share) if number else saved.numbers(share, "share", bn.shape)
        if not np.all(gathered >= 0):
            raise ValueError(f"share must be at least 0; got {np.min(gathered)}")
        updates, count = saved.integer(found["updates"], "updates"), saved.count(found["count"], "count", bn.shape)
        ndim, kept = saved.plain(found["ndim"]), saved.plain(found["kept"])
        if ndim is not None or kept is not None:
            ndim = saved.integer(ndim, "ndim")
            kept = saved.axes(kept, "kept", ndim, bn.shape)
        bn.state = Running(arrays["mean"], arrays["var"], gathered, updates, count, kept, ndim)
        return bn

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.shape}, keep={self.keep!r}, eps={self.eps}, decay={self.decay}, "
            f"correction={self.correction}, updates={self.state.updates})"
        )

    def _call(self, x: Array) -> tuple[validate.Call, Axes]:
        """What is known of x, and the roles of its axes; refuses cells of another shape."""
        known = validate.call(roles.general, x, (self.keep, None), self.sizes, normalize)
        if known.axes is None:
            raise TypeError("BatchNorm takes arrays without names: pass x.data of the DataArray; got xarray.DataArray")
        if known.axes.written is not None:
            refuse_order("shape", known.axes.written)
        if known.kept_shape != self.shape:
            raise ValueError(
                f"this batch norm has cells of shape {self.shape}, but keep={self.keep!r} of x with shape {known.shape} "
                f"gives {known.kept_shape}"
            )
        return known, known.axes

    def _parameters(self, x: Array, known: validate.Call) -> tuple[Array | None, Array | None]:
        weight, bias = like(self.weight, x), like(self.bias, x)
        return validate.parameter(weight, "weight", known), validate.parameter(bias, "bias", known)

    def _given(self, x: Array, axes: Axes) -> Moments:
        """The running moments where x is."""
        state = self.state
        mean, var = like(state.mean, x), like(state.var, x)
        return Moments.from_mean_var(mean, var, keep=axes.keep, ndim=len(axes.shape))

    def _normalize(self, x: Array, moments: Moments) -> Array:
        weight, bias = like(self.weight, x), like(self.bias, x)
        return normalize(x, self.keep, weight, bias, eps=self.eps, moments=moments, **self.sizes)

    def _pull(self, x: Array, moments: Moments | None, where: Array | None) -> tuple[Array, Callable[[Array], Gradients]]:
        weight, bias = like(self.weight, x), like(self.bias, x)
        return normalize_vjp(x, self.keep, weight, bias, eps=self.eps, moments=moments, where=where, **self.sizes)

    def _accept(self, moments: Any) -> None:
        """Refuse what does not update these running moments."""
        if not isinstance(moments, Moments):
            raise TypeError(f"moments must be Moments, such as keepnorm.moments(x, keep) gives; got {type(moments).__name__}")
        if moments.shape != self.shape:
            raise ValueError(f"moments of cells of shape {self.shape} are needed; got {moments.shape}")
        if moments.count is None:
            raise ValueError("moments without a count do not update: give from_mean_var a count; got count=None")
        self._allow(moments.count)

    def _allow(self, count: Any) -> None:
        running.allow(count, self.singleton, self.empty)

    def _rule(self) -> Rule:
        return Rule(self.decay, self.correction, self.empty, self.dtype)

    def _advance(self, batch: Moments, total: int | None) -> None:
        with self._lock:
            self.state = running.advance(self.state, batch, self._rule(), total)

    def _advance_empty(self, axes: Axes) -> None:
        with self._lock:
            self.state = running.advance_empty(self.state, self._rule(), axes.keep, len(axes.shape))


def _to_list(values: Array) -> Any:
    """Numbers of Python; those of ml_dtypes would stay what they are."""
    return (values if values.dtype.kind in "iuf" else values.astype(np.float64)).tolist()


def _check(shape: tuple[int, ...], keep: str | tuple[int, ...], eps: Any, decay: Any, correction: Any) -> None:
    """Refuse what no batch norm can be made of."""
    if any(n < 0 for n in shape):
        raise ValueError(f"shape must hold sizes of at least 0; got {shape}")
    if not isinstance(keep, str) and len(keep) != len(shape):
        raise ValueError(f"keep and shape must name the same number of axes; got keep={keep} and shape {shape}")
    if not isinstance(keep, str) and keep != tuple(sorted(keep)) and (min(keep) >= 0 or max(keep) < 0):
        refuse_order("shape", keep)
    validate.epsilon(eps)
    if decay is not None and not (isinstance(decay, float | int) and not isinstance(decay, bool) and 0 <= decay <= 1):
        raise ValueError(f"decay must be between 0 and 1, or None for the cumulative average; got {described(decay)}")
    if isinstance(correction, bool) or correction not in (0, 1):
        raise ValueError(f"correction must be 0 (population) or 1 (sample); got {described(correction)}")


show(BatchNorm)
