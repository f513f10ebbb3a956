"""An estimator of scikit-learn's kind: z-scores of arrays of any number of axes, over those that are not kept."""

from typing import Any, Self

import numpy as np

from keepnorm.functional import affine, moments, normalize
from keepnorm.inverse import denormalize
from keepnorm.keywords import described
from keepnorm.layers.missing import missing
from keepnorm.moments import Moments
from keepnorm.states.fitting import fitted

try:
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data
except ImportError as error:
    raise missing(__name__, "scikit-learn 1.6 or later", "scikit-learn") from error

Array = Any

_FLOATS = (np.float64, np.float32, np.float16)


class Standardizer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Standardise arrays: ``(x - mean) / std``, one mean and one standard deviation for each cell of the kept axes.

    For tables it is scikit-learn's StandardScaler, to more digits: NaN counts for nothing and stays, a constant column is
    divided by 1. Arrays of more axes, such as images, keep what `keep` says.

    Parameters
    ----------
    keep : int, tuple of int, or pattern, default -1
        The axes that survive: the features of a table, the channels of images that have them last.
    with_mean, with_std : bool, default True
        Whether the mean is subtracted, and whether the deviation divides.
    constant : {"center", "bias", "nan", "error"}
        What a cell of variance 0 gives, as in :func:`keepnorm.normalize`.

    Attributes
    ----------
    moments_ : Moments
        Of all that has been fitted.
    mean_, var_, scale_ : array of float64
        Its mean and variance, and what divides: the deviation, 1 where that is 0.
    n_samples_seen_ : int, or array of int where NaN made them differ
        How many values each cell has.
    n_features_in_ : int
        The number of columns, of tables alone.

    Examples
    --------
    >>> import numpy as np
    >>> from keepnorm.layers.sklearn import Standardizer
    >>> photos = np.arange(24.0).reshape(2, 2, 2, 3)
    >>> scaler = Standardizer(keep=-1).fit(photos)
    >>> scaler.mean_, scaler.transform(photos).std(axis=(0, 1, 2))
    (array([10.5, 11.5, 12.5]), array([1., 1., 1.]))
    """

    moments_: Moments

    def __init__(self, keep: Any = -1, *, with_mean: bool = True, with_std: bool = True, constant: str = "center") -> None:
        self.keep = keep
        self.with_mean = with_mean
        self.with_std = with_std
        self.constant = constant

    def fit(self, X: Array, y: Any = None, sample_weight: Array | None = None) -> Self:
        """Measure an array; what was measured before is forgotten.

        Parameters
        ----------
        X : array
            Real numbers, of two or more axes, of which the first is that of the samples.
        y : ignored
        sample_weight : array of shape (n_samples,), optional
            How often each sample counts.
        """
        if hasattr(self, "moments_"):
            del self.moments_
        return self.partial_fit(X, y, sample_weight)

    def partial_fit(self, X: Array, y: Any = None, sample_weight: Array | None = None) -> Self:  # noqa: ARG002
        """Measure one more batch; see `fit`."""
        first = not hasattr(self, "moments_")
        X = self._checked(X, first)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            weights = weights.reshape((-1,) + (1,) * (X.ndim - 1))
        found = moments(X, self.keep, nan_policy="omit", weights=weights)
        self.moments_ = found if first else self.moments_ + fitted(found, self.moments_)
        m = self.moments_
        self.mean_ = np.asarray(m.shift + m.delta)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.var_ = np.asarray(m.squares / np.asarray(m.divisor, np.float64))
        self.scale_ = np.where(self.var_ == 0, 1.0, np.sqrt(self.var_))
        self.n_samples_seen_ = _plain(m.count if m.sum_weights is None else m.sum_weights)
        return self

    def transform(self, X: Array) -> Array:
        """Standardise an array with what has been measured; NaN stays."""
        check_is_fitted(self)
        X = self._checked(X, False)
        given = self._given(X)
        if self.with_mean and self.with_std:
            return normalize(X, self.keep, eps=0.0, moments=given, constant=self.constant)
        if self.with_mean:
            return affine(X, np.ones_like(self.scale_), -self.mean_, keep=self.keep)
        return affine(X, 1 / self.scale_, keep=self.keep) if self.with_std else X

    def inverse_transform(self, X: Array) -> Array:
        """The array of which `transform` made X."""
        check_is_fitted(self)
        X = self._checked(X, False)
        given = self._given(X)
        if self.with_mean and self.with_std:
            back = given.replaced(m2=np.where(given.m2 == 0, np.asarray(given.divisor, np.float64), given.m2))
            return denormalize(X, self.keep, eps=0.0, moments=back)
        if self.with_mean:
            return affine(X, np.ones_like(self.scale_), self.mean_, keep=self.keep)
        return affine(X, self.scale_, keep=self.keep) if self.with_std else X

    def _given(self, X: Array) -> Moments:
        """The moments of what has been measured, for an array of as many axes."""
        if X.ndim != self.moments_.ndim:
            raise ValueError(f"X has {X.ndim} axes, but {type(self).__name__} was fitted to arrays of {self.moments_.ndim}")
        return self.moments_

    def _checked(self, X: Array, first: bool) -> Array:
        """X as NumPy's array of floats; tables as scikit-learn checks them, with their number and names of columns."""
        for name in ("with_mean", "with_std"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise TypeError(f"{name} must be True or False; got {described(getattr(self, name))}")
        words: dict[str, Any] = {"dtype": _FLOATS, "ensure_all_finite": "allow-nan", "estimator": self}
        if getattr(X, "ndim", 2) <= 2:
            words.pop("estimator")
            return validate_data(self, X, reset=first, **words)
        return check_array(X, allow_nd=True, input_name="X", **words)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _plain(counts: Any) -> Any:
    """One number where all cells have the same."""
    values = np.asarray(counts)
    if values.size and (values == values.flat[0]).all():
        one = values.flat[0]
        return int(one) if one == int(one) else float(one)
    return values
