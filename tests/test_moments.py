"""Moments are a monoid: any way to split the data gives the same answer, and a state survives every kind of copying."""

import copy
import json
import pickle
from fractions import Fraction
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import keepnorm as kn
from keepnorm.tuning import PREFETCH
from tests import oracle
from tests.tolerance import assert_moments, assert_output, assert_within, state, ulp

finite = st.floats(-1e6, 1e6, width=32)
columns = st.integers(1, 3).flatmap(
    lambda width: hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(width)), elements=finite)
)


def bits(moments):
    """Everything that a state holds, as bytes."""
    count = moments.count if isinstance(moments.count, int) or moments.count is None else moments.count.tobytes()
    arrays = tuple(np.asarray(a).tobytes() for a in (moments.shift, moments.delta, moments.m2))
    return (count, arrays, moments.keep, moments.ndim, moments.dtype, moments.shape)


def assert_same_moments(a, b, reach, count):
    """Equal within the rounding of a float64 state of data no larger than `reach`."""
    assert a.count == b.count
    loose = 16 * state(count)
    assert_within(a.shift + a.delta, b.shift + b.delta, loose * reach, "mean")
    assert_within(a.m2, b.m2, loose * count * reach**2, "m2")


@given(columns, st.data())
def test_any_split_gives_the_moments_of_the_whole(x, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(x)), max_size=4)))
    parts = np.split(x, cuts)
    merged = reduce(add, (kn.moments(part, 1) for part in parts))
    assert merged.count == len(x)
    if len(x):
        assert_same_moments(merged, kn.moments(x, 1), np.abs(x).max(), len(x))


@given(hnp.arrays(np.float64, st.tuples(st.integers(3, 20), st.just(2)), elements=finite))
def test_the_merge_is_associative_and_commutative_within_rounding(x):
    a, b, c = (kn.moments(part, 1) for part in np.array_split(x, 3))
    reach = np.abs(x).max()
    assert_same_moments((a + b) + c, a + (b + c), reach, len(x))
    assert_same_moments(a + b, b + a, reach, len(x))


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.just(2)), elements=finite))
def test_single_values_merge_to_the_whole(x):
    merged = sum(kn.moments(row[None], 1) for row in x)
    cells = oracle.moments(x, 1)
    assert merged.count == len(x)
    reach = np.abs(x).max(initial=0)
    assert_within(merged.mean, cells.mean.ravel(), ulp(cells.mean.ravel(), "float32") + 16 * state(len(x)) * reach)
    assert_within(merged.var, cells.var.ravel(), ulp(cells.var.ravel(), "float32") + 16 * state(len(x)) * reach**2)
    assert np.all(merged.var >= 0)


# Rows side by side in memory, in arrays of more than PREFETCH bytes: more than a tile of lanes, and not more than TILED.
TILED_ROWS = [(8209, 65), (4001, 211), (2053, 256), (1031, 512), (1033, 513), (200_003, 3), (40, 61, 7, 49)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", TILED_ROWS, ids=str)
def test_rows_that_are_summed_tile_by_tile(rng, shape, dtype):
    x = (rng.standard_normal(shape) + 100).astype(dtype)
    assert x.nbytes > PREFETCH
    keep = 1 if len(shape) == 4 else -1
    assert_moments(kn.moments(x, keep), oracle.moments(x, keep), dtype)


def test_a_long_stream_of_batches_keeps_its_digits(rng):
    x = (rng.standard_normal((1000, 3)) + 1e4).astype(np.float32)
    seen = kn.Accumulator(1)
    for batch in x:
        seen.update(batch[None])
    assert seen.moments.count == 1000
    assert_moments(seen.moments, oracle.moments(x, 1), "float32")


def test_the_kernels_merge_with_the_same_formula(rng):
    """One merge serves blocks, batches and ranks: bit by bit, infinities and empty cells included."""
    from numba import njit

    from keepnorm.kernels.columns import DELTA, M2, K, N
    from keepnorm.kernels.cpu.scalars import merge_state

    @njit
    def merge_all(a, b):
        for k in range(a.shape[1]):
            merge_state(a, b, k)

    cells = 12
    a, b = rng.standard_normal((2, 4, cells)) + np.array([0, 1e4, 0, 3])[:, None]
    a[N], b[N] = rng.integers(0, 50, (2, cells))
    a[N, :4], b[N, :4] = (0, 7, 0, 3), (5, 0, 0, 4)
    a[DELTA, 4:6] = b[DELTA, 5:7] = np.inf
    b[K, 7] = -np.inf
    states = [kn.Moments(s[N].astype(np.int64), s[K].copy(), s[DELTA].copy(), s[M2].copy(), keep=(0,), ndim=2) for s in (a, b)]
    merged = states[0] + states[1]
    merge_all(a, b)
    np.testing.assert_array_equal(a[N], merged.count)
    for row, values in ((K, merged.shift), (DELTA, merged.delta), (M2, merged.m2)):
        np.testing.assert_array_equal(a[row][a[N] > 0], values[a[N] > 0])


def test_the_merge_does_not_lose_what_a_float_cannot_hold():
    """Two batches that differ by one unit in the last place of a large mean."""
    a, b = np.full((8, 1), 1e10), np.full((8, 1), np.nextafter(1e10, 2e10))
    merged = kn.moments(a, 1) + kn.moments(b, 1)
    _, variance = oracle.exact(np.concatenate([a, b]).ravel())
    assert merged.m2 == float(16 * variance)
    assert Fraction(merged.shift[0]) + Fraction(merged.delta[0]) == (Fraction(1e10) + Fraction(float(b[0, 0]))) / 2


def test_the_moments_of_nothing_are_neutral(rng):
    x = rng.standard_normal((5, 3)).astype(np.float32)
    nothing = kn.moments(x[:0], 1)
    some = kn.moments(x, 1)
    assert nothing.count == 0
    assert bits(nothing + some) == bits(some) == bits(some + nothing)
    assert np.isnan(nothing.mean).all()
    assert np.isnan(nothing.var).all()
    assert np.isnan(nothing.std).all()
    assert np.isnan((nothing + nothing).mean).all()
    assert nothing.mean.shape == (3,)


def test_no_cells_at_all():
    empty = kn.moments(np.zeros((4, 0), np.float32), 1)
    assert empty.mean.shape == empty.var.shape == (0,)
    assert empty.count == 4
    assert kn.moments(np.zeros((4, 0), np.float32), (0, 1)).mean.shape == (4, 0)


def test_one_value_per_cell(rng):
    x = rng.standard_normal((2, 3)).astype(np.float32)
    single = kn.moments(x, (0, 1))
    assert single.count == 1
    np.testing.assert_array_equal(single.mean, x)
    np.testing.assert_array_equal(single.var, np.zeros_like(x))
    assert np.isnan(single.variance(correction=1)).all()


@pytest.mark.parametrize("correction", [0, 1, 0.5, 5, 6])
def test_the_correction_is_subtracted_from_the_count(rng, correction):
    x = rng.standard_normal((5, 3))
    got = kn.moments(x, 1).variance(correction=correction)
    if correction >= 5:
        assert np.isnan(got).all()
    else:
        np.testing.assert_allclose(got, oracle.moments(x, 1).var.ravel() * 5 / (5 - correction), rtol=1e-15)


class TestMismatch:
    @pytest.mark.parametrize(
        ("shape", "keep"), [((4, 2), 1), ((3, 4), 0), ((4, 3, 1), 1), ((3, 4, 3), (0, 2)), ((4, 3), ()), ((1, 4, 3), -1)]
    )
    def test_other_cells_do_not_merge(self, shape, keep):
        mine, other = kn.moments(np.ones((4, 3)), 1), kn.moments(np.ones(shape), keep)
        message = r"moments of different cells do not merge; got keep=\(1,\) of 2 axes with shape \(3,\) and keep="
        with pytest.raises(ValueError, match=message):
            mine.merge(other)
        with pytest.raises(ValueError, match=message):
            _ = mine + other

    @pytest.mark.parametrize("other", [1, None, np.ones(3), "moments"])
    def test_what_is_no_moments(self, other):
        with pytest.raises(TypeError, match=f"only Moments merge with Moments; got {type(other).__name__}"):
            kn.moments(np.ones((4, 3)), 1).merge(other)

    def test_a_number_does_not_add(self):
        with pytest.raises(TypeError):
            _ = kn.moments(np.ones((4, 3)), 1) + 1
        with pytest.raises(TypeError):
            _ = 1 + kn.moments(np.ones((4, 3)), 1)

    def test_without_a_count(self):
        running = kn.Moments.from_mean_var(np.zeros(3), np.ones(3), keep=1, ndim=2)
        for a, b in ((running, kn.moments(np.ones((4, 3)), 1)), (kn.moments(np.ones((4, 3)), 1), running)):
            with pytest.raises(ValueError, match=r"moments without a count do not merge.*got count=None"):
                a.merge(b)

    def test_a_failed_update_leaves_the_accumulator_as_it_was(self):
        seen = kn.Accumulator(1)
        seen.update(np.ones((4, 3)))
        before = bits(seen.moments)
        with pytest.raises(ValueError, match="do not merge"):
            seen.update(np.ones((4, 2)))
        assert bits(seen.moments) == before

    def test_an_accumulator_without_a_batch(self):
        with pytest.raises(ValueError, match="no batch yet"):
            _ = kn.Accumulator(1).moments


class TestMasks:
    def test_counts_become_an_array(self, rng):
        x = rng.standard_normal((6, 3)).astype(np.float32)
        where = rng.random((6, 3)) < 0.6
        where[:, 2] = False
        masked = kn.moments(x, 1, where=where)
        assert masked.count.dtype == np.int64
        np.testing.assert_array_equal(masked.count, where.sum(0))
        assert_moments(masked, oracle.moments(x, 1, where), "float32")
        assert np.isnan(masked.mean[2])

    @given(
        hnp.arrays(np.float64, (8, 2), elements=finite),
        hnp.arrays(np.bool_, (8, 2)),
        st.integers(0, 8),
    )
    def test_masked_parts_merge_to_the_whole(self, x, where, cut):
        whole = kn.moments(x, 1, where=where)
        merged = kn.moments(x[:cut], 1, where=where[:cut]) + kn.moments(x[cut:], 1, where=where[cut:])
        np.testing.assert_array_equal(merged.count, whole.count)
        filled = where.any(0)
        reach = np.abs(x).max()
        assert_within((merged.shift + merged.delta)[filled], (whole.shift + whole.delta)[filled], 16 * state(8) * reach)
        assert_within(merged.m2[filled], whole.m2[filled], 128 * state(8) * reach**2)
        np.testing.assert_array_equal(np.isnan(merged.mean), ~filled)

    def test_a_full_mask_merges_with_no_mask(self, rng):
        x = rng.standard_normal((8, 2))
        merged = kn.moments(x[:3], 1) + kn.moments(x[3:], 1, where=np.ones((5, 2), bool))
        np.testing.assert_array_equal(merged.count, [8, 8])
        assert_moments(merged, oracle.moments(x, 1), "float64")

    @pytest.mark.parametrize("shape", [(), (1, 1), (3,), (6, 1), (1, 3), (6, 3)])
    def test_a_mask_broadcasts_on_any_axes(self, rng, shape):
        x = rng.standard_normal((6, 3)).astype(np.float32)
        where = np.asarray(rng.random(shape) < 0.7)
        assert_moments(kn.moments(x, 1, where=where), oracle.moments(x, 1, where), "float32")
        assert_moments(kn.moments(x, 0, where=where), oracle.moments(x, 0, where), "float32")

    def test_what_a_mask_hides_may_be_anything(self, rng):
        x = rng.standard_normal((6, 3)).astype(np.float32)
        where = np.ones((6, 3), bool)
        where[2] = where[4] = False
        clean = kn.moments(x, 1, where=where)
        x[2], x[4] = np.nan, np.inf
        assert bits(kn.moments(x, 1, where=where)) == bits(clean)

    def test_the_correction_is_by_cell(self):
        x = np.array([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0], [5.0, 5.0, 5.0]])
        where = np.array([[True, True, False], [True, False, False], [True, False, False]])
        sample = kn.moments(x, 1, where=where).variance(correction=1)
        np.testing.assert_array_equal(sample, [4.0, np.nan, np.nan])


class TestTruths:
    """A bool is true or false, whatever its byte is: image libraries hand out 0 and 255."""

    RAW = np.random.default_rng(3).choice(np.array([0, 1, 2, 255], np.uint8), (40, 6))

    @pytest.mark.parametrize("store", [np.ascontiguousarray, np.asfortranarray, lambda a: np.repeat(a, 2, 1)[:, ::2]])
    @pytest.mark.parametrize("where", [None, np.random.default_rng(4).random((40, 6)) < 0.7])
    def test_are_what_is_counted(self, store, where):
        x, truths = store(self.RAW).view(bool), self.RAW != 0
        assert_moments(kn.moments(x, 1, where=where), oracle.moments(truths, 1, where), "float32")
        y, vjp = kn.normalize_vjp(x, 1, where=where)
        exact = oracle.normalize(truths, 1, where=where)
        assert_output(kn.normalize(x, 1, where=where), exact, 40)
        assert_output(y, exact, 40)
        dy = np.linspace(0, 1, 240, dtype=np.float32).reshape(40, 6)
        np.testing.assert_array_equal(vjp(dy).x, kn.normalize_vjp(truths, 1, where=where)[1](dy).x)

    def test_are_what_a_mask_says(self):
        x, mask = np.random.default_rng(5).standard_normal((40, 6)), self.RAW.view(bool)
        assert_moments(kn.moments(x, 1, where=mask), oracle.moments(x, 1, self.RAW != 0), "float64")
        dy = np.linspace(0, 1, 240).reshape(40, 6)
        mine, same = (kn.normalize_vjp(x, 1, where=m)[1](dy).x for m in (mask, self.RAW != 0))
        np.testing.assert_array_equal(mine, same)


class TestCopies:
    def states(self):
        rng = np.random.default_rng(3)
        x = (rng.standard_normal((4, 3)) + 0.1).astype(np.float32)
        yield kn.moments(x, 1)
        yield kn.moments(x.astype(np.float64), ())
        yield kn.moments(x, 1, where=x > 0)
        yield kn.moments(x[:0], 1)
        yield kn.moments(np.array([[np.inf, np.nan, 1.0]]), 1)
        yield kn.moments(x, (0, 1)) + kn.moments(x + 1, (0, 1))
        yield kn.moments(np.zeros((4, 0)), 1)
        yield kn.Moments.from_mean_var(np.zeros(3), np.ones(3), keep=1, ndim=2)
        yield kn.moments(x.reshape(2, 2, 3), "n (g c) d -> g", g=2)

    def test_a_dict_restores_every_bit(self):
        for moments in self.states():
            assert bits(kn.Moments.from_dict(moments.to_dict())) == bits(moments)

    def test_the_dict_is_json(self):
        """The same text again: JSON has one NaN, without a sign."""
        for moments in self.states():
            text = json.dumps(moments.to_dict())
            assert json.dumps(kn.Moments.from_dict(json.loads(text)).to_dict()) == text
            if np.isfinite(moments.m2).all():
                assert bits(kn.Moments.from_dict(json.loads(text))) == bits(moments)

    def test_pickle_and_copy_restore_every_bit(self):
        for moments in self.states():
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                assert bits(pickle.loads(pickle.dumps(moments, protocol))) == bits(moments)
            assert bits(copy.deepcopy(moments)) == bits(copy.copy(moments)) == bits(moments)

    def test_a_dict_that_lacks_a_key(self):
        lacking = next(self.states()).to_dict()
        del lacking["m2"]
        with pytest.raises(ValueError, match=r"state lacks \['m2'\]; got the keys "):
            kn.Moments.from_dict(lacking)

    def test_a_merge_changes_neither_side(self):
        a, b = kn.moments(np.ones((4, 3)), 1), kn.moments(np.zeros((4, 3)), 1)
        before = bits(a), bits(b)
        _ = a + b
        assert (bits(a), bits(b)) == before

    def test_repr_shows_the_numbers(self):
        assert "count=4" in repr(kn.moments(np.ones((4, 1)), 1))


class TestFromMeanVar:
    def test_is_what_it_was_given(self):
        mean, var = np.array([1.0, -2.0], np.float32), np.array([4.0, 0.0], np.float32)
        given = kn.Moments.from_mean_var(mean, var, keep=-1, ndim=3)
        assert (given.count, given.keep, given.ndim, given.shape) == (None, (2,), 3, (2,))
        np.testing.assert_array_equal(given.mean, mean)
        np.testing.assert_array_equal(given.var, var)
        np.testing.assert_array_equal(given.std, [2.0, 0.0])

    def test_with_a_count_it_merges(self, rng):
        x = rng.standard_normal((9, 2))
        first = kn.moments(x[:4], 1)
        given = kn.Moments.from_mean_var(first.mean, first.var, keep=1, ndim=2, count=4)
        np.testing.assert_allclose((given + kn.moments(x[4:], 1)).var, oracle.moments(x, 1).var.ravel(), rtol=1e-14)

    @pytest.mark.parametrize("count", [None, 7, np.array([3, 4])])
    def test_the_sample_variance_needs_the_count(self, count):
        given = kn.Moments.from_mean_var(np.zeros(2), np.ones(2), keep=0, ndim=2, count=count)
        if count is None:
            with pytest.raises(ValueError, match="correction=1 needs the count"):
                given.variance(correction=1)
        else:
            np.testing.assert_allclose(given.variance(correction=1), np.ones(2) * count / (count - 1), rtol=1e-15)

    @pytest.mark.parametrize(
        ("mean", "var", "options", "message"),
        [
            (np.zeros(2), np.ones(3), {}, r"mean and var must have one shape; got \(2,\) and \(3,\)"),
            (np.zeros((2, 2)), np.ones((2, 2)), {}, r"mean must have 1; got shape \(2, 2\)"),
            (np.zeros(2), np.ones(2), {"count": -1}, "count must be .*; got -1"),
            (np.zeros(2), np.ones(2), {"count": 2.5}, r"count must be .*; got 2.5"),
            (np.zeros(2), np.ones(2), {"count": np.array([1, 2, 3])}, r"count must be .*; got \(3,\)"),
            (np.zeros(2), np.ones(2), {"count": np.array([1, -2])}, r"count must .*; got .*-2"),
            (np.zeros(2), np.ones(2), {"keep": 2}, "between -2 and 1; got 2"),
            (np.zeros(2), np.ones(2), {"keep": (0, 0)}, "twice"),
        ],
    )
    def test_what_does_not_fit(self, mean, var, options, message):
        with pytest.raises(ValueError, match=message):
            kn.Moments.from_mean_var(mean, var, **({"keep": 1, "ndim": 2} | options))


class TestInfinities:
    def test_stay_in_their_cell(self, rng):
        x = rng.standard_normal((64, 6)).astype(np.float32)
        clean = kn.moments(x, 1)
        x[5, 1], x[6, 2], x[7, 3] = np.nan, np.inf, -np.inf
        x[8, 4], x[9, 4] = np.inf, -np.inf
        got = kn.moments(x, 1)
        np.testing.assert_array_equal(got.mean, [clean.mean[0], np.nan, np.inf, -np.inf, np.nan, clean.mean[5]])
        np.testing.assert_array_equal(np.isnan(got.var), [False, True, True, True, True, False])
        assert got.var[0] == clean.var[0]

    @pytest.mark.parametrize("values", [[np.inf, 1.0], [1.0, np.inf], [np.inf], [np.inf, np.inf], [1.0, 2.0, np.inf, 3.0]])
    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_the_mean_of_an_infinity_is_one(self, values, sign, dtype):
        x = sign * np.array(values, dtype)
        assert kn.moments(x, ()).mean == sign * np.inf
        merged = sum(kn.moments(x[i : i + 1], ()) for i in range(len(x)))
        assert merged.mean == sign * np.inf
        assert np.isnan(merged.var)
        assert np.isnan(kn.moments(x, ()).var)

    def test_opposite_infinities_have_no_mean(self):
        x = np.array([np.inf, 1.0, -np.inf])
        assert np.isnan(kn.moments(x, ()).mean)
        assert np.isnan((kn.moments(x[:2], ()) + kn.moments(x[2:], ())).mean)

    def test_masked_merges_keep_them(self):
        x = np.array([[np.inf, 1.0, np.nan], [2.0, np.inf, 1.0]])
        where = np.array([[True, False, False], [True, True, True]])
        merged = kn.moments(x[:1], 1, where=where[:1]) + kn.moments(x[1:], 1, where=where[1:])
        np.testing.assert_array_equal(merged.mean, [np.inf, np.inf, 1.0])


class TestCounts:
    def test_are_exact_or_refused_beyond_int64(self):
        def of(count):
            return kn.Moments.from_mean_var(np.zeros(2), np.ones(2), keep=1, ndim=2, count=count)

        assert (of(2**63) + of(2**63)).count == 2**64
        half = of(np.array([2**62 - 1, 5]))
        np.testing.assert_array_equal((half + half).count, [2**63 - 2, 10])
        np.testing.assert_array_equal((half + half + of(1)).count, [2**63 - 1, 11])
        for other in (of(2), of(np.array([2, 0])), of(2**70)):
            with pytest.raises(ValueError, match=r"go up to 2\^63 - 1; the sum of two is \d+"):
                half + half + other

    @pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i4"])
    def test_of_narrow_dtypes_do_not_wrap(self, dtype):
        most = np.iinfo(dtype).max
        m = kn.Moments.from_mean_var(np.zeros(2), np.ones(2), keep=1, ndim=2, count=np.array([most, 1], dtype))
        np.testing.assert_array_equal((m + m + m).count, [3 * int(most), 3])


class TestMagnitudes:
    """Float32 data whose variance float32 cannot hold."""

    @pytest.mark.parametrize("scale", [1e20, 1e30, 1e37])
    def test_variance_and_deviation_are_those_of_the_state(self, rng, scale):
        x = (rng.standard_normal((64, 3)) * scale).astype("f4")
        cells, m = oracle.moments(x, 1), kn.moments(x, 1)
        for correction in (0, 1):
            var = (cells.var * cells.count / (cells.count - correction)).ravel()
            got, std = m.variance(correction=correction), m.deviation(correction=correction)
            assert_within(got, var, ulp(var, "f8") + 4 * state(64) * var)
            assert_within(std, np.sqrt(var), ulp(np.sqrt(var), "f4"))
        assert m.std.dtype == m.mean.dtype == np.float32
