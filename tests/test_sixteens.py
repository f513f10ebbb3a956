"""Sixteen and thirty-two values at once: every half there is, every rounding, and not one read or written too many."""

import mmap

import ml_dtypes
import numpy as np
import pytest
from numba import njit

from keepnorm.kernels.cpu import simd_single
from tests.test_vector import name, page_before_a_wall, raw

COUNT, BOTH = simd_single.COUNT, simd_single.BOTH
HALVES = [np.float16, ml_dtypes.bfloat16]


@njit
def copy(x, y, past):
    zero, one = simd_single.fill(np.float32(0.0)), simd_single.fill(np.float32(1.0))
    minus = simd_single.fill(np.float32(-0.0))
    for i in range(0, x.size // 2, COUNT):
        simd_single.write(y, 0, i, simd_single.moved(simd_single.load(x, 0, i), zero, one, minus), past)
    for i in range(x.size // 2, x.size, BOTH):
        both = simd_single.moved_both(simd_single.load_both(x, 0, i), zero, one, minus)
        simd_single.write_both(y, 0, i, both, past)


def every(dtype):
    return np.tile(np.arange(2**16, dtype=np.uint16).view(dtype), 2)


def widened(x):
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of NaN
        return x.astype(np.float32)


def cache_lines(n, dtype):
    memory = np.zeros(n + 64, dtype)
    start = -memory.ctypes.data % 64 // memory.itemsize
    return memory[start : start + n]


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_every_half_comes_back(dtype, past):
    x = every(dtype)
    y = cache_lines(x.size, dtype)
    copy(raw(x), raw(y), past)
    missing = np.isnan(widened(x))
    assert np.isnan(widened(y[missing])).all()
    assert (y[~missing].view(np.uint16) == x[~missing].view(np.uint16)).all()


@njit
def add(x, rest, y):
    zero, one = simd_single.fill(np.float32(0.0)), simd_single.fill(np.float32(1.0))
    half = y.size // 2
    for i in range(0, half, COUNT):
        given = simd_single.load(rest, 0, i)
        simd_single.write(y, 0, i, simd_single.moved(simd_single.load(x, 0, i), zero, one, given), False)
    for i in range(half, y.size, BOTH):
        given = simd_single.fill(rest[i])
        simd_single.write_both(y, 0, i, simd_single.moved_both(simd_single.load_both(x, 0, i), zero, one, given), False)


@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_results_are_the_nearest_halves_and_ties_go_to_the_even_one(dtype):
    """Sums of a half and of a part of its last place: below, at and above the middle between two halves."""
    x = every(dtype)
    wide = widened(x)
    parts = np.array([0.5, -0.5, 0.499, -0.501, 0.25, -1.5, 1.5, 0.0], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        rest = np.resize(parts, x.size) * np.spacing(np.abs(x)).astype(np.float32)
    rest[~np.isfinite(wide)] = 0
    rest[x.size // 2 :] = np.repeat(rest[x.size // 2 :: BOTH], BOTH)
    y = np.zeros(x.size, dtype)
    add(raw(x), rest, raw(y))
    with np.errstate(invalid="ignore", over="ignore"):
        right = (wide + rest).astype(dtype)
    np.testing.assert_array_equal(widened(y), widened(right))


@njit
def first_ones(x, at, y, to, n):
    zero, one = simd_single.fill(np.float32(0.0)), simd_single.fill(np.float32(1.0))
    simd_single.store_n(y, to - 1, 1, n, simd_single.moved(simd_single.load_n(x, at, 0, n), zero, one, zero))


@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="mprotect is POSIX")
@pytest.mark.parametrize("dtype", HALVES, ids=name)
def test_the_end_of_an_array_is_the_end(dtype):
    _memory, page = page_before_a_wall()
    x = page.view(dtype)
    x[:] = np.arange(1, x.size + 1) % 100
    for n in range(COUNT + 1):
        y = np.full(3 * COUNT, 5, dtype)
        first_ones(raw(x), x.size - n, raw(y), COUNT, n)
        assert (y[COUNT : COUNT + n] == x[x.size - n :]).all()
        assert (np.delete(y, slice(COUNT, COUNT + n)) == 5).all()
        first_ones(raw(x), 0, raw(x), x.size - n, n)


@njit
def largest_magnitude(values):
    most = simd_single.fill(np.float32(0.0))
    for i in range(0, values.size, COUNT):
        most = simd_single.larger(simd_single.load_n(values, 0, i, min(COUNT, values.size - i)), most)
    return simd_single.largest(most)


def test_the_largest_magnitude_is_found_in_every_place_and_nan_is_above_all():
    rng = np.random.default_rng(2)
    for n in (1, 15, 16, 17, 40):
        for place in range(n):
            values = rng.uniform(-1, 1, n).astype(np.float32)
            for most in (-3.5, 2.0, np.inf, -np.inf, np.nan, -np.nan):
                values[place] = most
                np.testing.assert_equal(largest_magnitude(values), np.float32(abs(most)))
    assert largest_magnitude(np.full(20, -0.0, np.float32)) == 0.0


@njit
def copy_first(x, y, n):
    simd_single.store_n(y, 0, 0, n, simd_single.load_n(x, 0, 0, n))


def test_float32_are_copied_as_they_are_and_no_more_than_were_asked_for():
    x = np.random.default_rng(3).standard_normal(COUNT).astype(np.float32)
    x[3] = np.nan
    for n in range(COUNT + 1):
        y = np.full(COUNT, 7, np.float32)
        copy_first(x, y, n)
        assert y.tobytes() == np.concatenate([x[:n], np.full(COUNT - n, 7, np.float32)]).tobytes()
