"""The moment reduction in the simulator: every role, layout and dtype against the exact oracle."""

import ml_dtypes
import numpy as np
import pytest

from keepnorm.axes import resolve
from keepnorm.engines.cuda import engine
from keepnorm.engines.host import engine as host
from tests import oracle, tolerance
from tests.cuda.device import data, measure, subsets
from tests.layouts import LAYOUTS, broadcasts

ROLES = [(shape, keep) for shape in [(9,), (3, 11), (2, 5, 7), (2, 3, 3, 5)] for keep in subsets(len(shape))]


def result(dtype):
    return np.float64 if np.dtype(dtype).itemsize == 8 else np.float32


def check(x, keep, where=None, what=""):
    tolerance.assert_moments(measure(x, keep, where), oracle.moments(x, keep, where), result(x.dtype), what)


@pytest.mark.parametrize(("shape", "keep"), ROLES, ids=str)
def test_every_role(shape, keep, rng):
    x = data(rng, shape, offset=100)
    check(x, keep)
    assert measure(x, keep).count == x.size // max(1, np.prod([shape[a] for a in keep], dtype=int))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [(1,), (2,), (0, 1)], ids=str)
def test_every_layout(layout, keep, rng):
    check(LAYOUTS[layout](data(rng, (3, 6, 8), offset=-30)), keep)


@pytest.mark.parametrize("keep", [(0,), (1,), ()], ids=str)
def test_repeated_rows(keep, rng):
    for name, x, _ in broadcasts(data(rng, (4, 5))):
        check(x, keep, what=name)


@pytest.mark.parametrize(
    "dtype",
    ["float16", ml_dtypes.bfloat16, "float32", "float64", "bool", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64))],
    ids=lambda d: np.dtype(d).name,
)
@pytest.mark.parametrize(("shape", "keep"), [((3, 40), (0,)), ((21, 6), (1,))], ids=["runs", "lanes"])
def test_every_dtype(dtype, shape, keep, rng):
    check(data(rng, shape, dtype, offset=3), keep)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 63, 65, 129])
def test_runs_of_every_length(size, rng):
    check(data(rng, (2, size), offset=10), (0,))
    check(data(rng, (2, size + 3), offset=10)[:, 1 : size + 1], (0,))  # out of step with 16 bytes


@pytest.mark.parametrize("lanes", [1, 2, 3, 4, 5, 8, 9, 17, 33])
def test_rows_of_every_width(lanes, rng):
    check(data(rng, (13, lanes), offset=10), (1,))


def test_short_reduced_axes_behind_a_kept_one(rng):
    check(data(rng, (6, 5, 3)), (1,))
    check(data(rng, (7, 3, 2, 2)), (1,))
    check(data(rng, (4, 2, 100)), (1,))  # too long for the lanes of a small block


@pytest.mark.parametrize(("shape", "keep"), [((1500,), ()), ((2, 700), (0,)), ((400, 3), (1,)), ((90, 20), (1,))], ids=str)
def test_many_blocks_merge_in_one_launch(shape, keep, rng):
    x = data(rng, shape, offset=1000)
    check(x, keep)
    np.testing.assert_array_equal(measure(x, keep).m2, measure(x, keep).m2)


def test_the_counters_are_zero_again_after_every_launch(rng):
    from keepnorm.engines.cuda.walk import _scratch_of

    check(data(rng, (700,)), ())
    assert _scratch_of
    assert not any(counters.any() for _, counters in _scratch_of.values())


@pytest.mark.parametrize("offset", [0, 100, 1e4, -3e5])
@pytest.mark.parametrize(("shape", "keep"), [((200,), ()), ((60, 3), (1,))], ids=["runs", "lanes"])
def test_offsets_cost_no_digits(offset, shape, keep, rng):
    check(data(rng, shape, offset=offset), keep)
    check(data(rng, shape, "float64", offset=offset), keep)


@pytest.mark.parametrize("blocks", ["one", "many"])
@pytest.mark.parametrize("keep", [(0,), (1,)], ids=["runs", "lanes"])
def test_an_outlier_for_a_shift_costs_no_digits(keep, blocks, rng):
    """Its cell is swept again about the mean: inside the launch, or by a second one where the cell has many blocks."""
    x = data(rng, (2, 30) if blocks == "one" else (2, 300), "float64")
    x[:, 0] = 1e9
    x = np.ascontiguousarray(x if keep == (0,) else x.T)
    check(x, keep)


def test_outliers_in_some_cells_leave_the_others_alone(rng):
    x = data(rng, (40, 5), "float64", offset=7)
    before = measure(x, 1)
    x[0, 2] = 1e12
    after = measure(x, 1)
    for row in ("shift", "delta", "m2"):
        np.testing.assert_array_equal(np.delete(getattr(after, row), 2), np.delete(getattr(before, row), 2))
    check(x, (1,))


def test_certified_values():
    for values, mean, deviation in [
        ([10000001.0, 10000003.0, 10000002.0], 10000002, 1),
        ([1.2, *([1.1, 1.3] * 50)], 1.2, 0.1),
        ([1000000.2, *([1000000.1, 1000000.3] * 50)], 1000000.2, 0.1),
    ]:
        m = measure(np.array(values), ())
        exact_mean, exact_var = oracle.exact(np.array(values))
        exact = float(oracle.root(exact_var * len(values) / (len(values) - 1)))
        assert tolerance.digits(float(np.sqrt(m.variance(correction=1))), exact) >= tolerance.DIGITS
        assert float(m.mean) == pytest.approx(float(exact_mean), rel=1e-15)
        assert float(m.mean) == pytest.approx(mean, rel=1e-9)
        assert exact == pytest.approx(deviation, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, -1.5, 1e10, 0.1])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_constant_has_variance_zero(value, dtype):
    with np.errstate(over="ignore"):
        x = np.full((3, 50), value, dtype)
    if np.isfinite(x).all():
        for keep in [(0,), (1,), ()]:
            np.testing.assert_array_equal(measure(x, keep).var, 0)


@pytest.mark.parametrize("keep", [(0,), (1,)], ids=["runs", "lanes"])
@pytest.mark.parametrize("where", [0, 5, 39])
def test_nan_and_infinity_stay_in_their_cell(keep, where, rng):
    x = data(rng, (4, 40) if keep == (0,) else (40, 4))
    cells = x if keep == (0,) else x.T
    cells[1, where], cells[2, where] = np.nan, np.inf
    m = measure(x, keep)
    assert np.isnan(m.mean[1])
    assert np.isnan(m.var[1])
    assert m.mean[2] == np.inf
    assert np.isfinite(m.mean[[0, 3]]).all()
    assert np.isfinite(m.var[[0, 3]]).all()


def test_the_mean_of_an_infinity_and_one_is_infinite():
    assert measure(np.array([np.inf, 1.0], np.float32), ()).mean == np.inf
    assert measure(np.array([1.0, -np.inf], np.float64), ()).mean == -np.inf


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
@pytest.mark.parametrize(("shape", "keep"), [((5, 33), (0,)), ((33, 5), (1,)), ((3, 200), (0,)), ((4, 5, 6), ())], ids=str)
def test_masks(dtype, shape, keep, rng):
    x = data(rng, shape, dtype, offset=4)
    where = rng.random(shape) < 0.6
    check(x, keep, where)
    got = measure(x, keep, where)
    np.testing.assert_array_equal(np.ravel(got.count), np.ravel(oracle.moments(x, keep, where).count))
    assert got.count.dtype == np.int64


def test_a_mask_hides_whatever_lies_under_it(rng):
    x = data(rng, (4, 50), offset=20)
    where = np.ones(x.shape, bool)
    where[:, 0] = where[2] = False
    x[:, 0] = [1e30, np.nan, 3, -np.inf]
    m = measure(x, 0, where)
    clean = oracle.moments(np.ascontiguousarray(x[[0, 1, 3]][:, 1:]), 0)
    np.testing.assert_array_equal(m.count, [49, 49, 0, 49])
    assert np.isnan(m.mean[2])
    np.testing.assert_allclose(m.mean[[0, 1, 3]], clean.mean.ravel(), rtol=1e-6)
    np.testing.assert_allclose(m.var[[0, 1, 3]], clean.var.ravel(), rtol=1e-6)


def test_a_mask_broadcasts(rng):
    x = data(rng, (3, 4, 5))
    check(x, 0, rng.random((4, 1)) < 0.5)
    check(x, 2, np.array(True))


@pytest.mark.parametrize(("shape", "keep"), [((6, 70), (0,)), ((6, 3, 40), (0, 1)), ((6, 30, 4), (0, 2))], ids=str)
def test_a_cell_has_the_same_bits_in_any_batch(shape, keep, rng):
    x = data(rng, shape, offset=5)
    whole = measure(x, keep)
    for batch in (1, 2, 5):
        part = measure(x[:batch], keep)
        for row in ("shift", "delta", "m2"):
            np.testing.assert_array_equal(getattr(part, row), getattr(whole, row)[:batch])


def test_patterns_split_axes(rng):
    x = data(rng, (2, 6, 3, 3))
    axes = resolve(x.shape, "n (g c) h w -> n g", None, {"g": 2})
    m = engine.moments(x, axes, None)
    tolerance.assert_moments(m, oracle.moments(x.reshape(2, 2, 3, 3, 3), (0, 1)), np.float32)


def test_no_data_has_no_moments():
    m = measure(np.zeros((0, 3), np.float32), 1)
    assert m.count == 0
    assert np.isnan(m.mean).all()
    assert m.mean.shape == (3,)
    assert measure(np.zeros((3, 0), np.float32), 1).mean.shape == (0,)


@pytest.mark.parametrize("keep", [(0,), (1,), (0, 2)], ids=str)
def test_a_card_and_a_processor_agree(keep, rng):
    x = data(rng, (4, 6, 9), offset=50)
    ours, theirs = measure(x, keep), host.moments(x, resolve(x.shape, keep))
    for name in ("mean", "var"):
        limit = tolerance.ulp(getattr(theirs, name), np.float32)
        tolerance.assert_within(getattr(ours, name), getattr(theirs, name).astype(np.float64), limit)
    both = ours + theirs  # one state, whoever measured it
    assert both.count == 2 * ours.count
    np.testing.assert_allclose(both.mean, theirs.mean, rtol=1e-6)


@pytest.mark.parametrize("keep", [(), (1,), (0, 1)], ids=str)
def test_gaps_and_weights(keep, rng):
    """By the array library's own operations: weights of 0 and 1 are a mask, and NaN is left out."""
    x = data(rng, (5, 4), "float64", offset=100)
    mask = rng.random(x.shape) < 0.6
    exact = oracle.moments(x, keep, mask)
    axes = resolve(x.shape, keep)
    for found in (
        engine.weighted_moments(x, axes, mask.astype("f4")),
        engine.omitting_moments(np.where(mask, x, np.nan), axes),
    ):
        tolerance.assert_moments(found, exact, np.float64, "gaps")
        np.testing.assert_array_equal(np.ravel(found.count), exact.count.ravel())
