"""What a call says beyond its axes and parameters: about gaps, weights, constant cells, and masked places of the result.

`nan_policy` becomes a mask and `weights` become given moments, so that every engine serves them by what it has.
"""

from numbers import Real
from typing import Any, NamedTuple

from array_api_compat import array_namespace, is_dask_array

from keepnorm import validate
from keepnorm.engines import dispatch
from keepnorm.keywords import described
from keepnorm.moments import Moments
from keepnorm.precision import FLOATING
from keepnorm.request import Request
from keepnorm.transfer import is_passing, read
from keepnorm.validate import Asked, Call

Array = Any

NAN_POLICIES = ("propagate", "omit", "raise")
CONSTANTS = ("bias", "center", "nan", "error")


class Policies(NamedTuple):
    """What is said about values and cells that need a decision.

    Attributes
    ----------
    nan_policy : str
        "propagate": a NaN makes its cell NaN; "omit": it does not count; "raise": it is an error.
    weights : array or None
        How often each value counts.
    constant : str
        What a cell of variance 0 gives: "bias", "center" (``x - mean``, as with a deviation of 1), "nan", or an "error".
    fill : float, "input" or None
        What the result holds where a mask leaves a value out: a number, the value itself, or the normalised value.
    """

    nan_policy: str
    weights: Array | None
    constant: str
    fill: float | str | None


def said(nan_policy: Any, weights: Array | None = None, constant: Any = "bias", fill: Any = None) -> Policies | None:
    """What a call says; None where it says nothing.

    Raises
    ------
    TypeError, ValueError
        If a word is none of the choices.
    """
    if nan_policy == "propagate" and weights is None and constant == "bias" and fill is None:
        return None
    _choice(nan_policy, "nan_policy", NAN_POLICIES)
    _choice(constant, "constant", CONSTANTS)
    if isinstance(fill, str):
        _choice(fill, "fill", ("input",))
    elif fill is not None and (isinstance(fill, bool) or not isinstance(fill, Real)):
        raise TypeError(f'fill must be a number, "input" or None; got {described(fill)}')
    return Policies(nan_policy, weights, constant, fill)


def _choice(word: Any, name: str, choices: tuple[str, ...]) -> None:
    if not isinstance(word, str) or word not in choices:
        kind = ValueError if isinstance(word, str) else TypeError
        raise kind(f"{name} must be {' or '.join(map(repr, choices))}; got {described(word)}")


def moments(x: Array, known: Call, where: Array | None, policies: Policies) -> Moments:
    """The moments of x, of the values that a mask and the policy let in, with their weights."""
    if _omits_alone(x, where, policies):
        omitted: Moments = known.engine.omitting_moments(x, known.axes)
        return omitted
    where = _seen(x, where, policies.nan_policy, known)
    if policies.weights is None:
        found: Moments = known.engine.moments(x, known.axes, where)
        return found
    weights = _weights(policies.weights, where, known)
    weighted: Moments = known.engine.weighted_moments(x, known.axes, weights)
    return weighted


def normalize(x: Array, known: Call, asked: Asked, policies: Policies, out: Array | None) -> Array:
    """x normalised as asked."""
    request, _ = _request(x, known, asked, policies)
    out = validate.output(out, known)
    # Before anything is written: out may be x.
    seen = None if policies.fill is None else _seen(x, asked[5], policies.nan_policy, known)
    source = x
    if out is not None and seen is not None and policies.fill == "input":
        source = array_namespace(x).asarray(x, copy=True)
    y = known.engine.normalize(x, request, out)
    if seen is None:
        return y
    filled = _filled(y, source, seen, policies.fill)
    if out is None:
        return filled
    out[...] = filled
    return out


def normalize_vjp(x: Array, known: Call, asked: Asked, policies: Policies) -> tuple[Array, Any]:
    """x normalised as asked, and the function from the gradient of the result."""
    request, weights = _request(x, known, asked, policies, differentiates=True)
    if weights is None:
        y, pull = known.engine.normalize_vjp(x, request)
    else:
        y, pull = dispatch.elementary(x).normalize_vjp(x, request, None, weights)
    seen = None if policies.fill is None else _seen(x, asked[5], policies.nan_policy, known)
    if seen is None:
        return y, pull
    xp = array_namespace(x)

    def filled(dy: Array) -> Any:
        """Where the result is filled in, it does not depend on the moments: its gradient is dy, or none."""
        nothing = xp.zeros_like(dy)
        found = pull(xp.where(seen, dy, nothing))
        through = xp.astype(dy, found.x.dtype) if policies.fill == "input" else xp.zeros_like(found.x)
        return found._replace(x=xp.where(seen, found.x, through))

    return _filled(y, x, seen, policies.fill), filled


def _request(
    x: Array, known: Call, asked: Asked, policies: Policies, differentiates: bool = False
) -> tuple[Request, Array | None]:
    """The request with the moments that the policies ask for, and the weights through which their gradient flows."""
    weight, bias, eps, center, given, where = asked
    if given is not None and policies.weights is not None:
        raise ValueError("weights= are those of x's own moments: leave out moments= or weights=")
    if policies.constant != "bias" and center is False:
        raise ValueError(f"constant={policies.constant!r} is about the variance: it needs center=True")
    if given is None and known.name == "host" and not (differentiates or known.empty) and _omits_alone(x, where, policies):
        given = known.engine.omitting_moments(x, known.axes)
    else:
        where = _seen(x, where, policies.nan_policy, known)
    weights = None if policies.weights is None else _weights(policies.weights, where, known)
    # The values of a constant cell are 0 about its own mean, whatever divides them.
    by_cell = policies.constant in ("nan", "error") or (policies.constant == "center" and given is not None)
    if weights is None and not by_cell:
        return validate.request(known, (weight, bias, eps, center, given, where)), None
    if given is None:
        if known.empty:
            validate.refuse_nothing(known)
        own = known.engine.moments(x, known.axes, where) if weights is None else None
        given = known.engine.weighted_moments(x, known.axes, weights) if own is None else own
        if weights is None and differentiates:
            xp = array_namespace(x)
            weights = xp.broadcast_to(xp.ones_like(xp.reshape(x, (-1,))[:1], dtype=_widest(x, xp)), x.shape)
            weights = weights if where is None else xp.where(where, weights, xp.zeros_like(weights))
    else:
        given = validate.given(given, known, validate.epsilon(eps), center)
    if by_cell:
        given = _with_constants(given, validate.epsilon(eps), policies.constant)
    return validate.request(known, (weight, bias, eps, center, given, None)), weights


def _omits_alone(x: Array, where: Array | None, policies: Policies) -> bool:
    """Whether NaN is all that is left out, of values that may be one."""
    plain = where is None and policies.weights is None and policies.nan_policy == "omit"
    return plain and dispatch.dtype_name(x.dtype) in FLOATING


def _widest(x: Array, xp: Any) -> Any:
    return xp.float32 if "float64" not in str(x.dtype) else xp.float64


def _seen(x: Array, where: Array | None, nan_policy: str, known: Call) -> Array | None:
    """The mask of the values that count; None where all do."""
    if where is not None:
        where = validate.mask(where, known)
    if nan_policy == "propagate" or dispatch.dtype_name(x.dtype) not in FLOATING:
        return where
    real = x == x
    if nan_policy == "omit":
        return real if where is None else real & where
    xp = array_namespace(x)
    sound = xp.all(real if where is None else real | ~where)
    answer = _certain(sound)
    if answer is None:
        raise TypeError(
            f'nan_policy="raise" has to read x, which is lazy or traced: use "omit" or "propagate"; got {type(x).__name__}'
        )
    if not answer:
        raise ValueError(f'x holds NaN, which nan_policy="raise" refuses: "omit" leaves it out; got shape {known.shape}')
    return where


def _certain(truth: Array) -> bool | None:
    """A truth, or None where it is not known yet."""
    here = read(truth)
    if here is not None:
        return bool(here)
    if is_dask_array(truth) or is_passing(truth) or "Tracer" in type(truth).__name__:
        return None
    return bool(truth)


def _weights(weights: Array, where: Array | None, known: Call) -> Array:
    """Weights of a shape that broadcasts to x; 0 where the mask leaves a value out."""
    weights = validate.weights(weights, known)
    if where is None:
        return weights
    xp = array_namespace(where, weights)
    return xp.where(where, weights, xp.zeros_like(weights))


def _with_constants(given: Moments, eps: float, constant: str) -> Moments:
    """Moments with which a cell of variance 0 gives what is asked for."""
    xp = array_namespace(given.m2)
    none = given.m2 == 0
    if given.divisor is not None:
        none = none & (xp.zeros_like(given.m2) + given.divisor > 0)  # a cell without a value has no variance
    if constant == "error":
        here = read(none)
        if here is None:
            raise TypeError('constant="error" has to read the variance, which is lazy or traced here: use another word')
        if here.any():
            raise ValueError(f"a cell has variance 0: {_first(here)} of the kept shape {given.shape}")
        return given
    # With "center" the root of var + eps is 1, also where eps is larger than that.
    n = 1.0 if given.divisor is None else given.divisor
    other = xp.full_like(given.m2, xp.nan if constant == "nan" else 1.0 - eps) * n
    if given.exponent is not None:
        given = given.replaced(exponent=xp.where(none, xp.zeros_like(given.exponent), given.exponent))
    return given.replaced(m2=xp.where(none, other, given.m2))


def _first(truths: Any) -> tuple[int, ...]:
    import numpy as np

    return tuple(map(int, np.argwhere(truths)[0])) if np.ndim(truths) else ()


def _filled(y: Array, x: Array, seen: Array, fill: Any) -> Array:
    """y with what is asked for where the mask leaves a value out."""
    xp = array_namespace(y)
    if fill == "input":
        return xp.where(seen, y, xp.astype(x, y.dtype))
    return xp.where(seen, y, xp.full_like(y, float(fill)))
