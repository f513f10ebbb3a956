"""Arithmetic on pairs of float32, for JAX where float64 is not to be had.

A pair stands for ``high + low``; high is the value rounded to float32. Additions keep their rounding errors (two-sum).
Products are of halves of 12 bits, which makes them exact: a compiler that fuses a product and a sum changes nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from keepnorm.engines import cells

Array = Any
Pair = tuple[Array, Array]


def whole(x: Array) -> Pair:
    """An integer of 32 bits as a pair: its upper and its lower half are exact in float32."""
    lower = x & 0xFFFF
    return two_sum((x - lower).astype(jnp.float32), lower.astype(jnp.float32))


def split(value: Any) -> tuple[Any, Any]:
    """A number or an array of float64 as a pair of float32."""
    with np.errstate(invalid="ignore", over="ignore"):
        high = np.float32(value)
        low = np.float32(value - high.astype(np.float64))
    return high, np.where(np.isfinite(low), low, np.float32(0))


def precise(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function of pairs the derivatives of a plain one; the first argument of both is no array."""

    def decorate(exact: Callable[..., Any]) -> Callable[..., Any]:
        function: Any = jax.custom_jvp(exact, nondiff_argnums=(0,))

        def rule(static: Any, primals: Any, tangents: Any) -> tuple[Any, Any]:
            return function(static, *primals), jax.jvp(partial(plain, static), primals, tangents)[1]

        function.defjvp(rule)
        made: Callable[..., Any] = function
        return made

    return decorate


def _plain_totals(over: tuple[int, ...], pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    highs = [cells.total(high + low, over, jnp) for high, low in pairs]
    return tuple((high, jnp.zeros_like(high)) for high in highs)


@precise(_plain_totals)
def totals(over: tuple[int, ...], pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """The sums of several arrays of pairs over some axes, which stay with size 1, in one pass."""
    if not over:
        return pairs
    flat = [part for pair in pairs for part in pair]
    found = lax.reduce(flat, [jnp.zeros((), jnp.float32)] * len(flat), _add_pairs, over)
    found = [jnp.expand_dims(part, over) for part in found]
    return tuple(settled(*found[i : i + 2]) for i in range(0, len(found), 2))


def _add_pairs(a: Any, b: Any) -> list[Array]:
    sums: list[Array] = []
    for i in range(0, len(a), 2):
        high, error = two_sum(a[i], b[i])
        sums += [high, error + (a[i + 1] + b[i + 1])]
    return sums


def _plain_reciprocal(static: tuple[()], var: Pair, eps: Pair) -> Pair:
    root = cells.reciprocal(var[0], eps[0], jnp)
    return root, jnp.zeros_like(root)


@precise(_plain_reciprocal)
def reciprocal(static: tuple[()], var: Pair, eps: Pair) -> Pair:
    """``1 / sqrt(var + eps)``, by one step of Newton's iteration from that of float32."""
    root = cells.reciprocal(var[0], eps[0], jnp)
    high, low = times(times((root, jnp.zeros_like(root)), plus(var, eps)), (root, jnp.zeros_like(root)))
    low = root * (((1 - high) - low) / 2)
    return root, jnp.where((root > 0) & jnp.isfinite(low), low, 0)


def but(bad: Array | None, pair: Pair) -> Pair:
    """A pair, and 0 where `bad` is true."""
    return pair if bad is None else (jnp.where(bad, 0, pair[0]), jnp.where(bad, 0, pair[1]))


def two_sum(a: Array, b: Array) -> Pair:
    """a + b rounded, and the error of that rounding, for any order of magnitude."""
    high = a + b
    part = high - a
    return high, (a - (high - part)) + (b - part)


def settled(high: Array, low: Array) -> Pair:
    """A pair whose high part is the rounded sum of both; an infinity or NaN has no low part."""
    finite = jnp.isfinite(high)
    found, rest = two_sum(high, jnp.where(finite, low, 0))
    return found, jnp.where(finite, rest, 0)


def _halves(a: Array) -> Pair:
    """The upper and the lower 12 bits of the significand."""
    upper = lax.bitcast_convert_type(lax.bitcast_convert_type(a, jnp.uint32) & jnp.uint32(0xFFFFF000), jnp.float32)
    return upper, a - upper


def product(a: Array, b: Array) -> Pair:
    """a * b, to 36 bits or more."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    high, low = two_sum(a_high * b_high, a_high * b_low + a_low * b_high)
    plain = a * b
    # Halves of an infinity are none.
    high, low = (jnp.where(jnp.isfinite(plain), part, other) for part, other in ((high, plain), (low + a_low * b_low, 0)))
    return settled(high, low)


def times(a: Pair, b: Pair) -> Pair:
    high, low = product(a[0], b[0])
    return settled(high, low + (a[0] * b[1] + a[1] * b[0]))


def plus(a: Pair, b: Pair) -> Pair:
    high, low = two_sum(a[0], b[0])
    return settled(high, low + (a[1] + b[1]))


def minus(a: Pair) -> Pair:
    return -a[0], -a[1]


def as_pair(count: Any) -> tuple[Any, Any]:
    return split(np.float64(count)) if isinstance(count, int) else whole(count)


def over(total: Pair, count: Any) -> Pair:
    """A pair divided by a count, NaN where that is 0."""
    divisor = (count, jnp.zeros_like(count)) if "float" in str(getattr(count, "dtype", "")) else as_pair(count)
    high = total[0] / divisor[0]
    rest = plus(total, minus(times((high, jnp.zeros_like(high)), divisor)))
    return settled(high, rest[0] / divisor[0])
