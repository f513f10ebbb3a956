"""The accuracy contract: moments to the last place, outputs to two, at any offset, in any layout, for every dtype."""

from fractions import Fraction
from itertools import combinations

import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from tests import oracle
from tests.layouts import broadcasts, layouts
from tests.tolerance import DIGITS, assert_moments, assert_output, assert_within, digits

SIZES = (3, 4, 5, 2, 3)
OFFSETS = (0.0, 100.0, 1e4, -3e5)
SUBSETS = [
    (SIZES[:ndim], keep) for ndim in range(1, 6) for size in range(ndim + 1) for keep in combinations(range(ndim), size)
]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def check(x, keep, cells, reference, what, moments_dtype="float32"):
    """Moments and output of x against an oracle that several layouts of the same values share."""
    got = kn.moments(x, keep)
    assert got.mean.shape == oracle.kept_shape(x, keep), what
    assert_moments(got, cells, moments_dtype, what)
    y = kn.normalize(x, keep)
    assert y.shape == x.shape, what
    assert_output(y, reference, cells.count, what)


@pytest.mark.parametrize(("shape", "keep"), SUBSETS, ids=str)
def test_every_keep_subset_in_every_layout_at_every_offset(rng, shape, keep):
    for offset in OFFSETS:
        x = (rng.standard_normal(shape) + offset).astype(np.float32)
        cells, reference = oracle.moments(x, keep), oracle.normalize(x, keep)
        for name, stored in layouts(x):
            check(stored, keep, cells, reference, f"offset {offset}, {name}")


@pytest.mark.parametrize(("shape", "keep"), [case for case in SUBSETS if len(case[0]) in (1, 2, 3)], ids=str)
def test_every_keep_subset_of_a_broadcast_array(rng, shape, keep):
    for offset in OFFSETS:
        for name, repeated, plain in broadcasts((rng.standard_normal(shape) + offset).astype(np.float32)):
            check(repeated, keep, oracle.moments(plain, keep), oracle.normalize(plain, keep), f"offset {offset}, {name}")


# The shapes of the measured tables, with fewer samples where the answer does not depend on them.
TABLE = [
    ((4, 64, 56, 56), 1),
    ((4, 56, 56, 64), -1),
    ((16, 256, 14, 14), 1),
    ((16, 14, 14, 256), -1),
    ((4, 3, 224, 224), 1),
    ((4, 224, 224, 3), -1),
    ((8192, 128), -1),
    ((256, 1024), -1),
    ((600, 1100), -1),
    ((16, 512, 7, 7), 1),
    ((8, 32, 16), 1),
    ((64, 768), 0),
    ((40001, 7), -1),
    ((3, 100003), 0),
    ((300007,), ()),
    ((5, 6, 7, 8), (1, 3)),
    ((2, 130, 3, 129), (1, 3)),
    ((70000, 2, 3), 1),
    ((3, 5, 70001), (0, 1)),
]


@pytest.mark.parametrize(("shape", "keep"), TABLE, ids=str)
@pytest.mark.parametrize("offset", OFFSETS)
def test_the_shapes_of_the_tables(rng, shape, keep, offset):
    x = (rng.standard_normal(shape, np.float32) + offset).astype(np.float32)
    cells = oracle.moments(x, keep)
    check(x, keep, cells, oracle.normalize(x, keep, cells=cells), "C")
    if offset == 100.0:
        last = np.moveaxis(x, 0, -1)
        moved = tuple((a - 1) % x.ndim for a in oracle.kept_axes(keep, x.ndim))
        cells = oracle.moments(last, moved)
        check(last, moved, cells, oracle.normalize(last, moved, cells=cells), "transposed")
        check(x[::-1], keep, oracle.moments(x[::-1], keep), oracle.normalize(x[::-1], keep), "negative")


INTEGERS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
SHAPES = [
    ((6, 5, 4, 3), 1),
    ((6, 5, 4, 3), -1),
    ((6, 5, 4, 3), (0, 1)),
    ((600, 3), 1),
    ((3, 600), 0),
    ((7, 11), ()),
    ((4, 5), (0, 1)),
]


@pytest.mark.parametrize(("shape", "keep"), SHAPES, ids=str)
class TestDtypes:
    @pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32], ids=str)
    @pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
    def test_floating_point(self, rng, shape, keep, dtype, offset):
        x = (rng.standard_normal(shape) * (1 if offset < 1e4 else 300) + offset).astype(dtype)
        cells, reference = oracle.moments(x, keep), oracle.normalize(x, keep)
        for name, stored in layouts(x):
            check(stored, keep, cells, reference, name)
            assert kn.normalize(stored, keep).dtype == dtype

    @pytest.mark.parametrize("offset", OFFSETS)
    def test_float64_against_fractions(self, rng, shape, keep, offset):
        x = rng.standard_normal(shape) + offset
        cells, reference = oracle.moments(x, keep), oracle.normalize_exact(x, keep)
        for name, stored in layouts(x):
            check(stored, keep, cells, reference, name, "float64")
            assert kn.normalize(stored, keep).dtype == np.float64

    @pytest.mark.parametrize("dtype", INTEGERS)
    def test_integers_from_end_to_end_of_their_range(self, rng, shape, keep, dtype):
        if dtype == "bool":
            x = rng.random(shape) < 0.3
        else:
            info = np.iinfo(dtype)
            x = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        wide = "float64" if dtype.endswith("64") else "float32"
        cells = oracle.moments(x, keep)
        for name, stored in layouts(x):
            assert_moments(kn.moments(stored, keep), cells, wide, name)
            y = kn.normalize(stored, keep)
            assert y.dtype == wide
            assert_output(y, oracle.normalize(x, keep, cells=cells), cells.count, name)

    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64"])
    def test_integers_of_one_size_far_from_zero(self, rng, shape, keep, dtype):
        top = min(np.iinfo(dtype).max, 2**53)
        x = (top - rng.integers(0, 9, shape)).astype(dtype)
        assert_moments(kn.moments(x, keep), oracle.moments(x, keep), "float64" if dtype == "int64" else "float32")

    @pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">f2", ">u8"])
    def test_foreign_byte_order(self, rng, shape, keep, dtype):
        x = (rng.standard_normal(shape) * 50 + 100).astype(dtype)
        native = x.astype(np.dtype(dtype).newbyteorder("="))
        np.testing.assert_array_equal(kn.moments(x, keep).mean, kn.moments(native, keep).mean)
        np.testing.assert_array_equal(kn.normalize(x, keep), kn.normalize(native, keep))

    def test_an_address_that_is_not_aligned(self, rng, shape, keep):
        x = (rng.standard_normal(shape) + 100).astype(np.float32)
        crooked = np.ndarray(shape, np.float32, b"\0" + x.tobytes(), 1)
        assert not crooked.flags.aligned
        check(crooked, keep, oracle.moments(x, keep), oracle.normalize(x, keep), "not aligned")


NUMACC = {
    "NumAcc1": [10000001, 10000003, 10000002],
    "NumAcc2": [1.2] + [1.1, 1.3] * 500,
    "NumAcc3": [1000000.2] + [1000000.1, 1000000.3] * 500,
    "NumAcc4": [10000000.2] + [10000000.1, 10000000.3] * 500,
}


def assert_fifteen_digits(x):
    """The standard deviation of one cell, population and sample, has 15 right digits, against fractions."""
    _, variance = oracle.exact(x)
    sample = oracle.root(variance * len(x) / (len(x) - 1))
    got = kn.moments(x, ())
    assert digits(Fraction(float(np.sqrt(got.variance(correction=1)))), sample) >= DIGITS
    assert digits(Fraction(float(got.std)), oracle.root(variance)) >= DIGITS


class TestFifteenDigits:
    @pytest.mark.parametrize("name", NUMACC)
    def test_the_certified_sets(self, name):
        x = np.array(NUMACC[name], np.float64)
        assert_fifteen_digits(x)
        assert digits(Fraction(float(kn.moments(x, ()).mean)), oracle.exact(x)[0]) >= DIGITS

    @pytest.mark.parametrize("name", NUMACC)
    def test_the_certified_sets_as_columns_and_in_batches(self, name):
        x = np.array(NUMACC[name], np.float64)
        one = kn.moments(x, ())
        side_by_side = kn.moments(np.stack([x, -x, x], 1), 1)
        in_batches = sum(kn.moments(part, ()) for part in np.array_split(x, 3))
        _, variance = oracle.exact(x)
        for moments in (one, side_by_side, in_batches):
            for std in np.atleast_1d(moments.std):
                assert digits(Fraction(float(std)), oracle.root(variance)) >= DIGITS

    @pytest.mark.parametrize("offset", OFFSETS)
    @pytest.mark.parametrize("n", [2, 17, 1001])
    def test_random_data(self, rng, n, offset):
        assert_fifteen_digits(rng.standard_normal(n) + offset)

    @pytest.mark.parametrize("distance", [10, 30, -1000])
    def test_where_the_first_value_is_an_outlier(self, rng, distance):
        x = rng.standard_normal(1001)
        x[0] = distance
        assert_fifteen_digits(x)


class TestConstants:
    @pytest.mark.parametrize("value", [1e10, 0.1, -7.0, 0.0, 1e-30, -3e38])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize(("shape", "keep"), [((1001, 5), 1), ((5, 1001), 0), ((30, 3, 40), 1), ((40001,), ())], ids=str)
    def test_have_no_variance(self, value, dtype, shape, keep):
        x = np.full(shape, value, dtype)
        got = kn.moments(x, keep)
        np.testing.assert_array_equal(got.var, np.zeros_like(got.var))
        np.testing.assert_array_equal(got.mean, np.full_like(got.mean, dtype(value)))
        np.testing.assert_array_equal(kn.normalize(x, keep), np.zeros_like(x))

    @pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, *INTEGERS], ids=str)
    def test_in_every_dtype(self, dtype):
        x = np.full((1001, 5), 100, dtype)
        got = kn.moments(x, 1)
        assert not np.any(got.var)
        assert not np.any(np.asarray(kn.normalize(x, 1), np.float64))
        assert not np.any((got + kn.moments(x[:7], 1)).var)

    def test_the_largest_numbers_of_a_half(self):
        x = np.full((70000, 2), 65504, np.float16)
        assert np.all(kn.moments(x, 1).mean == 65504)
        assert not np.any(kn.moments(x, 1).var)
        x[::2] *= -1
        assert np.all(kn.moments(x, 1).mean == 0)
        assert np.all(kn.moments(x, 1).var == np.float32(65504.0**2))
        assert np.all(np.abs(kn.normalize(x, 1)) == 1)
        x[1::2] = 0
        assert np.isfinite(kn.normalize(x, 1, center=False)).all()

    @pytest.mark.parametrize("offset", OFFSETS)
    def test_nearly_constant_data_have_a_variance_of_at_least_zero(self, rng, offset):
        x = np.full((1000, 3), offset, np.float32)
        x[rng.integers(0, 1000, 5)] = np.nextafter(np.float32(offset), np.float32(np.inf))
        assert_moments(kn.moments(x, 1), oracle.moments(x, 1), "float32")


class TestParameters:
    @pytest.mark.parametrize("layout", ["C", "last"])
    @pytest.mark.parametrize(
        ("keep", "affine"),
        [(1, None), (-1, None), ((0, 1), (1,)), ((0,), (1, 2)), ((1,), (0, 2)), ((), (1,)), ((0, 1, 2), ())],
    )
    @pytest.mark.parametrize("size", [0.1, 1.0, 10.0, 1e4])
    @pytest.mark.parametrize("offset", OFFSETS)
    def test_weight_and_bias(self, rng, keep, affine, size, offset, layout):
        x = (rng.standard_normal((6, 5, 7)) + offset).astype(np.float32)
        if layout == "last":
            x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        shape = oracle.kept_shape(x, keep if affine is None else affine)
        weight, bias = (np.asarray(size * rng.standard_normal(shape), np.float32) for _ in range(2))
        count, plain = oracle.moments(x, keep).count, np.abs(oracle.normalize(x, keep))
        axes = oracle.kept_axes(keep if affine is None else affine, 3)
        for w, b in ((weight, bias), (weight, None), (None, bias)):
            reference = oracle.normalize(x, keep, w, b, affine=affine)
            # What is rounded is the normalised value, at the size of 1, and then its product with the weight.
            terms = np.abs(reference) if w is None else np.abs(oracle.affine_view(w, axes, 3)) * np.maximum(plain, 1)
            what = f"{w is not None} {b is not None}"
            assert_output(
                kn.normalize(x, keep, w, b, affine=affine), reference, count, what, np.maximum(terms, np.abs(reference))
            )

    @pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 1e-3, 1.0])
    @pytest.mark.parametrize("spread", [1e-6, 1e-2, 1.0, 1e6])
    @pytest.mark.parametrize("keep", [0, 1])
    def test_eps(self, rng, eps, spread, keep):
        x = (rng.standard_normal((60, 50)) * spread).astype(np.float32)
        assert_output(kn.normalize(x, keep, eps=eps), oracle.normalize(x, keep, eps=eps), 50)

    @pytest.mark.parametrize("offset", OFFSETS)
    @pytest.mark.parametrize("keep", [0, 1, 2, (0, 1), (0, 2), ()])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_without_centre(self, rng, keep, offset, dtype):
        if dtype is np.float16 and abs(offset) > 6e4:
            offset = -6e4
        x = (rng.standard_normal((6, 5, 7)) + offset).astype(dtype)
        weight = np.asarray(rng.standard_normal(oracle.kept_shape(x, keep)), dtype)
        for w in (None, weight):
            y = kn.normalize(x, keep, w, center=False)
            assert_output(y, oracle.normalize(x, keep, w, center=False), 210)

    @pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e20, 1e37, 1e38])
    @pytest.mark.parametrize("keep", [0, 1])
    def test_the_ends_of_the_range_of_float32(self, rng, scale, keep):
        x = (rng.standard_normal((40, 30)).clip(-3, 3) * scale).astype(np.float32)
        cells = oracle.moments(x, keep)
        assert_output(kn.normalize(x, keep, eps=0.0), oracle.normalize(x, keep, eps=0.0, cells=cells), cells.count)
        mean = kn.moments(x, keep).mean
        assert_within(mean, cells.mean.ravel(), np.abs(np.spacing(cells.mean.ravel().astype(np.float32))))


class TestMasks:
    @pytest.mark.parametrize("keep", [0, 1, 2, (0, 2), (1, 2), ()])
    @pytest.mark.parametrize("shape", [(6, 5, 7), (6, 1, 1), (7,), (5, 1), (1, 5, 7)])
    @pytest.mark.parametrize("offset", [0.0, 1e4])
    def test_moments_and_output(self, rng, keep, shape, offset):
        x = (rng.standard_normal((6, 5, 7)) + offset).astype(np.float32)
        where = rng.random(shape) < 0.7
        where[(slice(0, 1),) * len(shape)] = True
        cells = oracle.moments(x, keep, where)
        for name, stored in layouts(x):
            assert_moments(kn.moments(stored, keep, where=where), cells, "float32", name)
        seen = np.broadcast_to(cells.count > 0, x.shape)
        y = kn.normalize(x, keep, where=where)
        reference = np.where(seen, oracle.normalize(x, keep, cells=cells), 0)
        assert_output(np.where(seen, y, 0), reference, np.maximum(cells.count, 1), str(shape))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "uint8", "int64", "bool"])
    @pytest.mark.parametrize("keep", [0, 1, ()])
    def test_every_dtype(self, rng, dtype, keep):
        x = (rng.random((20, 30)) * 100).astype(BFLOAT16 if dtype == "bfloat16" else dtype)
        where = rng.random((20, 30)) < 0.5
        wide = "float64" if dtype.endswith("64") else "float32"
        assert_moments(kn.moments(x, keep, where=where), oracle.moments(x, keep, where), wide)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
    def test_a_mask_in_another_layout_than_x(self, rng, order):
        x = (rng.standard_normal((6, 5, 7)) + 100).astype(np.float32)
        where = rng.random([x.shape[a] for a in order]) < 0.7
        where = where.transpose(np.argsort(order))[::-1]
        assert_moments(kn.moments(x, 1, where=where), oracle.moments(x, 1, where), "float32")

    def test_a_large_mask(self, rng):
        x = (rng.standard_normal((400, 50, 11)) + 100).astype(np.float32)
        where = rng.random((400, 50, 1)) < 0.5
        for keep in (0, 1, 2, ()):
            cells = oracle.moments(x, keep, where)
            assert_moments(kn.moments(x, keep, where=where), cells, "float32")
            y = kn.normalize(x, keep, where=where)
            assert_output(y, oracle.normalize(x, keep, cells=cells), cells.count)


class TestGivenMoments:
    @pytest.mark.parametrize("offset", OFFSETS)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("keep", [1, -1, (0, 1), (0, 1, 2), ()])
    def test_running_statistics(self, rng, offset, keep, dtype):
        x = (rng.standard_normal((6, 5, 7)) + offset).astype(np.float32)
        shape = oracle.kept_shape(x, keep)
        mean, var = np.asarray(offset + rng.standard_normal(shape), dtype), np.asarray(rng.random(shape) + 0.1, dtype)
        given = kn.Moments.from_mean_var(mean, var, keep=keep, ndim=3)
        weight, bias = (np.asarray(rng.standard_normal(shape), np.float32) for _ in range(2))
        wide = [oracle.affine_view(v, oracle.kept_axes(keep, 3), 3) for v in (mean, var)]
        reference = oracle.normalize(x, keep, weight, bias, cells=oracle.Cells(1, wide[0], 0.0, wide[1], wide[1]))
        assert_output(kn.normalize(x, keep, weight, bias, moments=given), reference, 1)

    def test_moments_of_the_data_give_what_no_moments_give(self, rng):
        x = (rng.standard_normal((6, 5, 7)) + 1e4).astype(np.float32)
        given = kn.normalize(x, 1, moments=kn.moments(x, 1))
        assert_output(given, oracle.normalize(x, 1), 42)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("keep", [1, -1, (0, 2), (), (0, 1, 2)])
def test_affine_rounds_once(rng, keep, dtype):
    x = rng.standard_normal((6, 5, 7)).astype(dtype)
    scale, shift = (np.asarray(rng.standard_normal(oracle.kept_shape(x, keep)), dtype) for _ in range(2))
    axes = oracle.kept_axes(keep, 3)
    product = x.astype(np.float64) * oracle.affine_view(scale, axes, 3)
    for s in (None, shift):
        added = 0.0 if s is None else oracle.affine_view(s, axes, 3)
        assert_output(kn.affine(x, scale, s, keep=keep), product + added, 1)


class TestNamedNorms:
    """Each named norm is one choice of kept and affine axes."""

    def x(self, rng):
        return (rng.standard_normal((4, 6, 5, 3)) + 100).astype(np.float32)

    def test_batch_norm(self, rng):
        x, (w, b) = self.x(rng), rng.standard_normal((2, 6)).astype(np.float32)
        assert_output(kn.batch_norm(x, w, b, channel=1), oracle.normalize(x, 1, w, b), 60)
        w, b = rng.standard_normal((2, 5, 3)).astype(np.float32)
        assert_output(kn.batch_norm(x, w, b, channel=(2, -1), eps=1e-3), oracle.normalize(x, (2, 3), w, b, eps=1e-3), 24)

    def test_instance_norm(self, rng):
        x, (w, b) = self.x(rng), rng.standard_normal((2, 6)).astype(np.float32)
        assert_output(kn.instance_norm(x, w, b, channel=1), oracle.normalize(x, (0, 1), w, b, affine=1), 15)
        w = rng.standard_normal(4).astype(np.float32)
        assert_output(kn.instance_norm(x, w, channel=0, batch=3), oracle.normalize(x, (0, 3), w, affine=0), 30)

    def test_layer_norm(self, rng):
        x, (w, b) = self.x(rng), rng.standard_normal((2, 5, 3)).astype(np.float32)
        assert_output(kn.layer_norm(x, w, b, axes=(-2, -1)), oracle.normalize(x, (0, 1), w, b, affine=(2, 3)), 15)
        assert_output(kn.layer_norm(x, axes=1), oracle.normalize(x, (0, 2, 3)), 6)

    def test_group_norm(self, rng):
        x, (w, b) = self.x(rng), rng.standard_normal((2, 6)).astype(np.float32)
        split = x.reshape(4, 2, 3, 5, 3)
        reference = oracle.normalize(split, (0, 1), w.reshape(2, 3), b.reshape(2, 3), affine=(1, 2)).reshape(x.shape)
        assert_output(kn.group_norm(x, w, b, groups=2, channel=1), reference, 45)
        last = np.moveaxis(x, 1, -1)
        got = kn.group_norm(last, w, b, groups=2, channel=-1)
        assert_output(np.moveaxis(got, -1, 1), reference, 45)
        by_pattern = kn.normalize(x, "n (g c) h w -> n g", w, b, affine="g c", g=2)
        assert_output(by_pattern, reference, 45)

    def test_rms_norm(self, rng):
        x, (w, b) = self.x(rng), rng.standard_normal((2, 3)).astype(np.float32)
        assert_output(kn.rms_norm(x, w, b, axes=-1), oracle.normalize(x, (0, 1, 2), w, b, affine=3, center=False), 3)


def test_nan_and_infinities_stay_in_their_cell(rng):
    x = rng.standard_normal((64, 6)).astype(np.float32)
    for keep, poisoned in ((1, (slice(None), [1, 2])), (0, ([5, 6], slice(None)))):
        clean = kn.normalize(x, keep)
        bad = x.copy()
        bad[5, 1], bad[6, 2] = np.nan, np.inf
        y = kn.normalize(bad, keep)
        touched = np.zeros(x.shape, bool)
        touched[poisoned] = True
        np.testing.assert_array_equal(y[~touched], clean[~touched])
        assert np.isnan(y[5, 1])
        assert np.isnan(y[6, 2])
