"""The request of a normalisation, as every engine takes it, and what an engine is."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from keepnorm.axes import Axes
from keepnorm.gradients import Gradients
from keepnorm.moments import Moments

Array = Any


class Request(NamedTuple):
    """What is asked of one array: checked, and the same for every engine.

    Attributes
    ----------
    axes : Axes
        The roles of its axes.
    weight, bias : array or None
        In the affine shape of the axes, or in that of the array's own axes where a pattern splits them.
    eps : float
        Added to the variance.
    center : bool
        Whether the mean is subtracted; else the root mean square divides.
    moments : Moments or None
        Given ones, instead of the array's own.
    where : array of bool or None
        Which values count in the array's own moments.
    """

    axes: Axes
    weight: Array | None = None
    bias: Array | None = None
    eps: float = 1e-5
    center: bool = True
    moments: Moments | None = None
    where: Array | None = None

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays that come with it, besides those of the given moments; None for what is missing."""
        return self.weight, self.bias, self.where

    def converted(self, array: Callable[[Array], Array], state: Callable[[Moments], Moments]) -> "Request":
        """The same request with its arrays and given moments in another form; what is missing stays so."""
        weight, bias, where = (a if a is None else array(a) for a in self.arrays)
        moments = self.moments if self.moments is None else state(self.moments)
        return Request(self.axes, weight, bias, self.eps, self.center, moments, where)


class Engine(Protocol):
    """The functions of an engine, which is a module. Each takes what `validate` has checked."""

    def moments(self, x: Array, axes: Axes, where: Array | None) -> Moments:
        """Count, mean and variance of each kept cell, of the values where the mask is true."""

    def omitting_moments(self, x: Array, axes: Axes) -> Moments:
        """The same of the values that are no NaN; x holds floats."""

    def weighted_moments(self, x: Array, axes: Axes, weights: Array) -> Moments:
        """The same of values that count as often as their weights say; the weights broadcast to x."""

    def affine(self, x: Array, scale: Array, shift: Array | None, axes: Axes, out: Array | None) -> Array:
        """``x * scale + shift``."""

    def normalize(self, x: Array, request: Request, out: Array | None) -> Array:
        """The normalised array, in `out` if that is given."""

    def normalize_with_moments(self, x: Array, request: Request) -> tuple[Array, Moments]:
        """The normalised array and the moments that normalised it; none are given."""

    def normalize_vjp(self, x: Array, request: Request) -> tuple[Array, Callable[[Array], Gradients]]:
        """The normalised array, and the function from its gradient to those of x, weight and bias."""
