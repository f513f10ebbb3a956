"""Mean and scale of eight cells at once have the bits of the formulas for one."""

import numpy as np
import pytest
from numba import njit

from keepnorm.kernels.columns import DELTA, LOW, M2, MEAN, SCALE, K, N
from keepnorm.kernels.cpu.scale import OFF_HALFWAY, set_centers


@njit
def worked_out(state, cell, cells, eps, center, narrow):
    set_centers(state, cell, cells, eps, center, narrow, state[MEAN], state[LOW], state[SCALE], cell)


def shortened(value, unit):
    return (value + unit * OFF_HALFWAY + unit) - unit


def one(n, shift, delta, m2, eps, center, narrow):
    """The same in NumPy, for a single cell, step by step as centres.py says it."""
    with np.errstate(all="ignore"):
        var = m2 / n
        mean = shift + delta
        low = (shift - mean) + delta
        square = np.inf if np.inf in (abs(mean), var) else var + mean * mean
        spread = (var if center else square) + eps
        scale = 1.0 / np.sqrt(spread) if spread != 0.0 else np.float64(0.0)
        if narrow and var > 0.0 and scale > 0.0:
            c = scale * 33554433.0
            scale = c - (c - scale)
            unit = 12582912.0 / scale
            whole, rest = mean, low
            mean = shortened(whole, unit)
            low = shortened((whole - mean) + rest, unit)
            low = np.float64(0.0) if np.isnan(low) else low  # of an infinite mean
    return (mean, low, scale) if center else (np.float64(0.0), np.float64(0.0), scale)


def states(cells):
    rng = np.random.default_rng(cells)
    state = np.full((7, cells + 9), 5.0)
    state[N] = rng.integers(1, 1000, cells + 9)
    state[K] = rng.standard_normal(cells + 9) * 10.0 ** rng.integers(-300, 300, cells + 9)
    state[DELTA] = state[K] * rng.standard_normal(cells + 9)
    state[M2] = rng.random(cells + 9) * 10.0 ** rng.integers(-300, 300, cells + 9)
    special = [0.0, np.nan, np.inf, 1e-320, 1e308]
    for row, values in ((N, [0.0, np.nan]), (K, [0.0, np.inf, -np.inf, np.nan]), (DELTA, special), (M2, special)):
        places = rng.integers(0, cells + 9, cells // 3)
        state[row, places] = rng.choice(values, cells // 3)
    return state


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_every_cell_has_the_bits_of_the_formula_and_no_neighbour_is_touched(eps, narrow, center):
    for cells in (*range(1, 20), 997):
        before = states(cells)
        after = before.copy()
        worked_out(after, 4, cells, eps, center, narrow)
        inside = slice(4, 4 + cells)
        expected = [one(*values, eps, center, narrow) for values in before[:4, inside].T]
        np.testing.assert_array_equal(after[MEAN : SCALE + 1, inside], np.array(expected).T)
        after[MEAN : SCALE + 1, inside] = before[MEAN : SCALE + 1, inside]
        np.testing.assert_array_equal(after, before)
