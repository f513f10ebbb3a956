"""The shift of a block: no digits are lost whatever values come first, and who goes with a cell changes none of its bits."""

import contextlib
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from tests import backends, oracle
from tests.layouts import LAYOUTS
from tests.tolerance import assert_gradient, assert_moments, assert_output, assert_within, state

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
LOST = 2.0**7  # seven bits of float64

COUNT = 700


def row(name):
    """One cell's values, in float64."""
    rng = np.random.default_rng(11)
    values = rng.standard_normal(COUNT)
    match name:
        case "around 0":
            return values
        case "near 0":
            return values + 3
        case "just not too far":
            return values + 10
        case "too far, and the first do not tell":
            values = values / 16 + 300
            values[1] = 100
            return values
        case "far":
            return values / 4 + 100
        case "the first far away":
            values[:8] = 250
            return values
        case "the first a little less than twice as large":
            values[:8] = 100, 149, 100, 149, 100, 149, 100, 149
            return values
        case "zeros first":
            values[:8] = 0
            return values
        case "all the same":
            return np.full(COUNT, 0.3)
        case "zeros":
            return np.zeros(COUNT)
    raise AssertionError(name)


NAMES = [
    "around 0", "near 0", "just not too far", "too far, and the first do not tell", "far", "the first far away",
    "the first a little less than twice as large", "zeros first", "all the same", "zeros",
]  # fmt: skip


def layouts(rows):
    """(name, array, keep): the cells as runs, as lanes, and as runs a step apart."""
    yield "runs", rows, 0
    yield "short runs", np.ascontiguousarray(rows.reshape(len(rows), 100, 7).transpose(1, 0, 2)), 1
    yield "lanes", np.ascontiguousarray(rows.T), 1
    yield "few lanes", np.ascontiguousarray(rows.reshape(len(rows), 350, 2).transpose(1, 0, 2)), 1
    yield "strided", np.repeat(rows, 2, axis=1)[:, ::2], 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["runs", "short runs", "lanes", "few lanes", "strided"])
def test_no_digits_are_lost_whatever_comes_first(dtype, layout):
    rows = np.array([row(name) for name in NAMES]).astype(dtype)
    (array, keep) = next((a, k) for name, a, k in layouts(rows) if name == layout)
    got = kn.moments(array, keep=keep)
    wide = rows.astype("f8")
    mean = np.array([math.fsum(cell) / COUNT for cell in wide])
    m2 = np.array([math.fsum((cell - at) ** 2) for cell, at in zip(wide, mean, strict=True)])
    std = np.sqrt(m2 / COUNT)
    assert_within(np.ravel(got.shift + got.delta), mean, state(COUNT) * (np.abs(mean) + LOST * std), "mean")
    assert_within(np.ravel(got.m2), m2, state(COUNT) * LOST * m2, "M2")  # that of equal values is exactly 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_swept_again_where_the_sums_say_that_0_was_too_far(dtype):
    values = np.random.default_rng(13).standard_normal(4000) / 16 + 300
    values[1] = 100
    values = values.astype(dtype)
    mean = math.fsum(values.astype("f8")) / len(values)
    m2 = math.fsum((values.astype("f8") - mean) ** 2)
    for array, keep in ((values[None], 0), (np.stack([values, values - values], 1), 1)):
        got = kn.moments(array, keep=keep)
        assert abs(np.ravel(got.shift)[0] - mean) < 1
        assert_within(np.ravel(got.m2)[0], m2, 4 * state(len(values)) * m2, "M2")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["runs", "short runs", "lanes", "few lanes", "strided"])
def test_a_cell_has_the_same_bits_alone(dtype, layout):
    rows = np.array([row(name) for name in NAMES]).astype(dtype)
    (array, keep) = next((a, k) for name, a, k in layouts(rows) if name == layout)
    together = kn.moments(array, keep=keep)
    for k in range(len(NAMES)):
        twins = np.take(array, [k] * len(NAMES), axis=keep)  # the plan of a single cell may be another
        alone = kn.moments(twins, keep=keep)
        for part in ("m2", "delta", "shift"):
            assert np.ravel(getattr(alone, part))[0] == np.ravel(getattr(together, part))[k], (NAMES[k], part)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_masked_cell_has_the_same_bits_beside_one_that_is_swept_again(dtype):
    calm = (np.random.default_rng(14).standard_normal((20_000, 2)) + 2).astype(dtype)
    beside = calm.copy()
    beside[0, 1] = 1000  # the first value, and so the first K of its lane, of which there are many
    where = np.ones(calm.shape, bool)
    where[5:9] = False
    mine, other = (kn.moments(a, keep=1, where=where) for a in (beside, calm))
    assert abs(np.ravel(mine.shift)[1] - 1000) > 1
    for part in ("m2", "delta", "shift"):
        assert np.ravel(getattr(mine, part))[0] == np.ravel(getattr(other, part))[0], part


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_values_may_be_anything(dtype):
    rng = np.random.default_rng(12)
    for first in (np.inf, -np.inf, np.nan, float(ml_dtypes.finfo(dtype).max), float(ml_dtypes.finfo(dtype).tiny)):
        values = rng.standard_normal((3, 50)).astype(dtype)
        values[1, 0] = first
        wide = values.astype("f8")
        with np.errstate(invalid="ignore"):
            mean, var = wide.mean(1), wide.var(1)
        for array, keep in ((values, 0), (np.ascontiguousarray(values.T), 1)):
            got = kn.moments(array, keep=keep)
            assert_within(np.ravel(got.shift + got.delta)[[0, 2]], mean[[0, 2]], 1e-14, "mean of the others")
            if np.isfinite(first):
                assert_within(np.ravel(got.m2)[1] / 50, var[1], 1e-12 * var[1], "variance")
            else:
                np.testing.assert_array_equal(np.ravel(got.mean)[1], np.float32(mean[1]))


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("kind", ["int", "uint"])
def test_no_digits_of_integers_are_lost(kind, bits):
    """At the end of their range, with a first value at the other: 64 bits are more than float64 has."""
    info = np.iinfo(f"{kind}{bits}")
    rng = np.random.default_rng(bits)
    for spread in (3, 100, 2**40):
        rows = int(info.max) - np.minimum(rng.integers(0, spread, (6, COUNT), np.int64), int(info.max) // 2).astype(object)
        for first in (info.min, 0, info.max):
            rows[:, 0] = int(first)
            for name, x, keep in layouts(rows.astype(info.dtype)):
                dtype = "float64" if bits == 64 else "float32"
                assert_moments(kn.moments(x, keep), oracle.moments(x, keep), dtype, f"{name}, first {first}, {spread}")
                # Masked values are added one by one: 700 numbers that are nearly equal lose more than a random walk does.
                if first == info.max and spread > 3:
                    everything = np.ones(x.shape, bool)
                    assert_moments(kn.moments(x, keep, where=everything), oracle.moments(x, keep), dtype, f"masked {name}")


@pytest.mark.parametrize(("dtype", "mean"), [("uint64", -3.5), ("uint64", 2.0**65), ("int64", -(2.0**64)), ("int64", 2.0**64)])
def test_given_means_may_lie_outside_the_range_of_integers(dtype, mean):
    info = np.iinfo(dtype)
    x = np.array([info.min, 0, 1, info.max // 2, info.max - 5, info.max] * 3, dtype)
    given = kn.Moments.from_mean_var(np.float64(mean), np.float64(1), keep=(), ndim=1)
    exact = np.array([float(Fraction(int(v)) - Fraction(mean)) for v in x])
    y, vjp = kn.normalize_vjp(x, (), moments=given, eps=0)
    for got in (y, kn.normalize(x, (), moments=given, eps=0)):
        assert_within(got, exact, 2 * np.spacing(np.abs(exact)))
    assert_within(vjp(np.ones(x.shape)).x, np.ones(x.shape), 0)


@pytest.mark.parametrize("dtype", ["i4", "u4"])
@pytest.mark.parametrize(("shape", "keep", "affine"), [((60, 7), 1, 1), ((7, 60), 0, 0), ((7, 60), 0, 1), ((60, 7), 1, 0)])
def test_short_spreads_of_large_integers_keep_the_rest_of_their_mean(rng, shape, keep, affine, dtype):
    """float64 holds the mean of values near 2^31 to 2^-21, a hundred thousandth of a deviation here."""
    x = (np.iinfo(dtype).max - 1000 - rng.integers(0, 4, shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype("f4")
    weight, bias = (rng.uniform(0.5, 1, shape[affine]).astype("f4") for _ in range(2))
    exact = oracle.normalize(x, keep, weight, bias, affine=affine)
    dx, dweight, _, terms = oracle.gradients(x, dy, keep, weight, affine=affine)
    bits = set()
    for store in LAYOUTS.values():
        y, vjp = kn.normalize_vjp(store(x), keep, weight, bias, affine=affine)
        bits.add(y.tobytes())
        assert_output(y, exact, x.size)
        got = vjp(store(dy))
        assert_gradient(got.x, dx, np.abs(dx).max(), x.size, terms=terms.max())
        assert_gradient(got.weight, dweight, np.abs(dweight).max(), x.size, terms=np.abs(dy).sum())
    assert len(bits) == 1


@pytest.mark.parametrize("name", [n for n in backends.NAMES if "int64" in backends.BACKENDS[n].dtypes and n != "mlx"])
@pytest.mark.parametrize("start", [2**62, 5 - 2**63, 2**63 - 20])
def test_64_bit_integers_that_float64_cannot_hold_keep_their_differences(name, start):
    """On every engine, forward and backward; MLX has no wider float than float32."""
    k = backends.kind(name)
    x = start + np.array([1, 15, 4, 4, 9, 0])
    with wide(name):
        got = kn.moments(k.make(x), ())
        mean, var = (float(f) for f in moments_of(x))
        near = (x - start).astype("f8")  # the same numbers, so near 0 that nothing is lost
        hat = (near - near.mean()) / np.sqrt(near.var() + 1e-5)
        assert float(k.read(got.mean)) == mean
        # Delta holds what the shift cannot: up to half of its last place, in float64.
        rest = np.spacing(np.spacing(abs(float(start)))) / np.sqrt(var)
        assert_within(float(k.read(got.var)), var, 4 * (state(len(x)) + rest) * var, "variance")
        y = k.run(lambda a: kn.normalize(a, ()), k.make(x))
        assert_within(k.read(y), hat, 8 * (state(len(x)) + rest), "output")
        if k.backend.gradient != "vjp":
            return
        dy = np.arange(6.0)
        dx = k.read(kn.normalize_vjp(k.make(x), ())[1](k.make(dy)).x)
        right = kn.normalize_vjp(near, ())[1](dy).x
        assert_within(dx, right, 64 * (state(len(x)) + rest), "gradient")


def moments_of(x):
    """Mean and variance of integers, exact."""
    values = [Fraction(int(v)) for v in x]
    mean = sum(values) / len(values)
    return mean, sum((v - mean) ** 2 for v in values) / len(values)


def wide(name):
    """JAX has 64-bit integers where it is told to."""
    if not name.startswith("jax"):
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)
