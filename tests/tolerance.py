"""The one tolerance rule of the suite; no test chooses its own.

An answer may be wrong by the units in the last place that the contract grants to its dtype, and by what a float64 state
loses: `sqrt(n)` roundings of float64 for a sum of n values (a random walk of n of them), times the condition number. For
answers up to float32 the second term is a millionth of the first; for float64 answers it is what there is.
"""

import math

import ml_dtypes
import numpy as np

MOMENT_ULPS = 1
OUTPUT_ULPS = 2
GRADIENT_ULPS = 4
DIGITS = 15  # of a standard deviation in float64, on small data

_EPS64 = 2.0**-52


def ulp(values, dtype):
    """The unit in the last place of `values` in `dtype`, as float64."""
    info = ml_dtypes.finfo(dtype)
    size = np.maximum(np.abs(np.asarray(values, np.float64)), float(info.smallest_normal))
    return np.exp2(np.floor(np.log2(size))) * float(info.eps)


def state(count):
    """The relative rounding of a float64 state after `count` values."""
    return _EPS64 * np.sqrt(np.maximum(np.asarray(count, np.float64), 1.0))


def assert_within(got, exact, limit, what=""):
    """Every value of `got` is within `limit` of `exact`; NaN and infinities have to be the same."""
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    assert got.shape == exact.shape, f"{what}: shape {got.shape}, needed {exact.shape}"
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(got[~finite], exact[~finite], err_msg=what)
    off, allowed = np.abs(got[finite] - exact[finite]), np.broadcast_to(limit, exact.shape)[finite]
    wrong = ~(off <= allowed)
    if wrong.any():
        worst = np.argmax(np.where(wrong, off / allowed, 0))
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} values out of tolerance; the worst is {got[finite][worst]!r}, "
            f"exact {exact[finite][worst]!r}, limit {allowed[worst]!r}"
        )


def assert_moments(got, cells, dtype, what=""):
    """Mean, variance and standard deviation of every cell against the oracle's."""
    shape = got.mean.shape
    mean, var, count = (np.reshape(v, shape) for v in (cells.mean, cells.var, cells.count))
    std = np.sqrt(var)
    assert got.mean.dtype == got.var.dtype == got.std.dtype == np.dtype(dtype), (
        f"{what}: dtype {got.mean.dtype}, needed {dtype}"
    )
    assert_within(got.mean, mean, MOMENT_ULPS * ulp(mean, dtype) + state(count) * std, f"{what} mean")
    assert_within(got.var, var, MOMENT_ULPS * ulp(var, dtype) + 4 * state(count) * var, f"{what} var")
    assert_within(got.std, std, MOMENT_ULPS * ulp(std, dtype) + 4 * state(count) * std, f"{what} std")
    assert not np.any(np.asarray(got.var) < 0), f"{what}: negative variance"


def assert_output(got, reference, count, what="", size=None):
    """A normalised array against the float64 result; `size` is what its dtype rounds, |y| unless terms cancel in it."""
    scale = np.maximum(np.abs(reference) if size is None else size, 1.0)
    assert_within(got, held(reference, got.dtype), OUTPUT_ULPS * ulp(scale, got.dtype) + 4 * state(count) * scale, what)


def assert_gradient(got, reference, largest, count, what="", terms=None):
    """A gradient against the float64 one; `largest` is the largest of the cell, `terms` what it is the difference of."""
    limit = GRADIENT_ULPS * ulp(largest, got.dtype) + 4 * state(count) * (largest if terms is None else terms)
    assert_within(got, held(reference, got.dtype), limit, what)


def held(values, dtype):
    """Values, infinite where a dtype rounds them to that."""
    with np.errstate(over="ignore"):
        narrow = np.asarray(values).astype(dtype).astype(np.float64)
    return np.where(np.isinf(narrow), narrow, values)


def digits(got, exact):
    """How many digits of `got` are right, as NIST counts them: the log relative error."""
    if got == exact:
        return math.inf
    return -math.log10(abs(float((got - exact) / exact)))
