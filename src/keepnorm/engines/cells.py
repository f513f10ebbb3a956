"""What the engines that work with an array library's own operations share: sums, counts and extremes of cells, and rules.

Arrays of cells have a 1 for each reduced axis. A condition is applied before a function as well as after it, since a
library that differentiates both branches of ``where`` multiplies 0 by the NaN of the other branch.
"""

from typing import Any

from array_api_compat import array_namespace, device

from keepnorm.axes import Axes
from keepnorm.moments import Moments
from keepnorm.powers import exponent_of, times_power, unit

Array = Any


def has(name: str, x: Array, xp: Any) -> bool:
    """Whether there are arrays of this dtype where x is."""
    info = getattr(xp, "__array_namespace_info__", None)
    return info is None or name in info().dtypes(device=device_of(x))


def device_of(x: Array) -> Any:
    """Where x is, in the words of its namespace."""
    try:
        found = device(x)
    except AttributeError:  # MLX's arrays are on no device: its operations are
        return None
    # A traced JAX array has no device yet, and NumPy's is a word that its own info refuses in no version.
    return None if type(found).__module__.startswith("jax") else found


def constant(x: Array) -> Array:
    """x without its history, in the libraries that keep one."""
    root = type(x).__module__.partition(".")[0]
    if root in ("jax", "jaxlib"):
        from jax.lax import stop_gradient

        return stop_gradient(x)
    return x.detach() if hasattr(x, "detach") else x


def number(mask: Array | None, axes: Axes, xp: Any) -> Any:
    """How many values each cell has: an int, or an array where a mask makes them differ."""
    if mask is None:
        return axes.count
    whole = truths(mask, xp.int64 if has("int64", mask, xp) else xp.int32, xp)
    return total(whole, axes.reduce, xp)


def truths(x: Array, dtype: Any, xp: Any) -> Array:
    """1 where x is true, else 0: a cast may take its byte, which may be any."""
    return xp.where(x, xp.ones_like(x, dtype=dtype), xp.zeros_like(x, dtype=dtype))


def total(x: Array, over: tuple[int, ...], xp: Any) -> Array:
    """The sum over some axes, which stay with size 1; no axes, no sum (libraries disagree on ``axis=()``)."""
    return xp.sum(x, axis=over, keepdims=True) if over else x


def real(count: Any, like: Array, xp: Any) -> Any:
    """A count as a float, or as an array of the dtype of `like`."""
    if hasattr(count, "dtype"):
        return xp.astype(count, like.dtype)
    return float(count) if isinstance(count, int) else count  # a size that torch.export leaves open


def divide(values: Array, count: Any, xp: Any) -> Array:
    """values / count, and NaN where nothing was counted."""
    if not hasattr(count, "dtype"):
        return values / count if count else xp.full_like(values, xp.nan)
    divisor = real(count, values, xp)
    none = divisor == 0
    return xp.where(none, xp.full_like(values, xp.nan), values / xp.where(none, xp.ones_like(divisor), divisor))


def variance(state: Moments) -> Array:
    """The population variance of a state, in its own precision and, where that has an exponent, in its unit."""
    return state.m2 if state.count is None else divide(state.m2, state.count, array_namespace(state.m2))


def in_unit(state: Moments, eps: float) -> tuple[Array | None, Moments]:
    """A unit for each cell, and the moments of the data in it; None where float holds what they need as they are."""
    if state.exponent is None:
        return None, state
    xp = array_namespace(state.m2)
    # Where values are smaller than the root of eps, that is what counts.
    least = exponent_of(unit(xp.full_like(state.m2, eps**0.5), 0.0, xp), xp)
    exponent = xp.where(state.exponent > least, state.exponent, least) if eps else state.exponent
    return times_power(xp.ones_like(state.m2), -exponent), state.at(exponent)


def extremes(x: Array, mask: Array | None, axes: Axes, xp: Any) -> tuple[Array, Array]:
    """The least and the largest value of each cell, without a gradient; not finite where a cell has no finite value."""
    still = constant(x)
    if axes.count == 0:
        nothing = xp.zeros_like(xp.sum(still, axis=axes.reduce, keepdims=True))
        return nothing, nothing
    least = most = still
    if mask is not None:
        least, most = (xp.where(mask, still, xp.full_like(still, limit)) for limit in (xp.inf, -xp.inf))
    if axes.reduce:
        least, most = (f(a, axis=axes.reduce, keepdims=True) for f, a in ((xp.min, least), (xp.max, most)))
    return least, most


def member(least: Array, xp: Any) -> Array:
    """A finite value of each cell, 0 where there is none: the least, which a mask finds as easily as any other."""
    return xp.where(xp.isfinite(least), least, xp.zeros_like(least))


def largest(least: Array, most: Array, xp: Any) -> Array:
    """The largest magnitude between two bounds."""
    low, high = xp.abs(least), xp.abs(most)
    return xp.where(low > high, low, high)


def reciprocal(var: Array, eps: Any, xp: Any) -> Array:
    """``1 / sqrt(var + eps)``: 0 where that root is 0 or infinite, NaN where a variance below 0 leaves nothing above 0."""
    under = var + eps
    sound = under > 0
    root = xp.sqrt(xp.where(sound, under, xp.ones_like(under)))
    found = xp.where(sound, 1 / root, xp.zeros_like(root))
    return xp.where(xp.isnan(under) | ((var < 0) & ~sound), xp.full_like(found, xp.nan), found)


def left_out(x: Array, mask: Array | None, xp: Any) -> Array | None:
    """Where the mask leaves out what is no number: what is computed there must reach nothing else."""
    return None if mask is None else ~(mask | xp.isfinite(x))
