"""out=: the same array comes back, holding what a call without it gives, whatever its layout and whatever it overlaps."""

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keepnorm as kn
from keepnorm.axes import resolve
from keepnorm.engines.host.memory import parameters_for, walk
from keepnorm.places import distinct
from tests.layouts import LAYOUTS

SHAPE = (4, 6, 5, 3)
CALLS = {
    "affine": lambda x, p, **k: kn.affine(x, p, p, keep=1, **k),
    "normalize": lambda x, p, **k: kn.normalize(x, 1, p, p, **k),
    "normalize over none": lambda x, p, **k: kn.normalize(x, (0, 1, 2, 3), bias=p, affine=1, **k),
    "normalize over all": lambda x, p, **k: kn.normalize(x, (), p, affine=1, **k),
    "given moments": lambda x, p, **k: kn.normalize(x, 1, p, moments=kn.moments(x, 1), **k),
    "mask": lambda x, p, **k: kn.normalize(x, 1, p, where=np.arange(5).reshape(5, 1) < 3, **k),
    "batch_norm": lambda x, p, **k: kn.batch_norm(x, p, channel=1, **k),
    "instance_norm": lambda x, p, **k: kn.instance_norm(x, p, channel=1, **k),
    "layer_norm": lambda x, p, **k: kn.layer_norm(x, bias=p, axes=1, **k),
    "group_norm": lambda x, p, **k: kn.group_norm(x, p, groups=2, channel=1, **k),
    "rms_norm": lambda x, p, **k: kn.rms_norm(x, p, axes=1, **k),
}


def operands(rng, dtype=np.float32, shape=SHAPE):
    return (rng.standard_normal(shape) + 10).astype(dtype), rng.standard_normal(shape[1]).astype(np.float32)


@pytest.mark.parametrize("name", CALLS)
class TestOut:
    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
    def test_is_what_comes_back_and_holds_the_result(self, rng, name, dtype):
        x, p = operands(rng, dtype)
        out = np.full(SHAPE, -1, dtype)
        assert CALLS[name](x, p, out=out) is out
        assert out.tobytes() == CALLS[name](x, p).tobytes()

    @pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.int64])
    def test_of_integers_is_floating(self, rng, name, dtype):
        x, p = operands(rng, dtype)
        out = np.empty(SHAPE, np.float64 if dtype is np.int64 else np.float32)
        assert CALLS[name](x, p, out=out) is out
        assert out.tobytes() == CALLS[name](x, p).tobytes()

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_in_another_layout(self, rng, name, layout):
        x, p = operands(rng)
        out = LAYOUTS[layout](np.full(SHAPE, -1, np.float32))
        around = None if out.base is None else np.asarray(out.base)
        before = None if around is None else around.copy()
        assert CALLS[name](x, p, out=out) is out
        np.testing.assert_array_equal(out, CALLS[name](x, p))
        if around is not None and around.size > out.size:
            out[...] = -1
            np.testing.assert_array_equal(around, before, err_msg="wrote beside out")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_in_place(self, rng, name, layout):
        x, p = operands(rng)
        expected = CALLS[name](x, p)
        x = LAYOUTS[layout](x)
        assert CALLS[name](x, p, out=x) is x
        np.testing.assert_allclose(x, expected, rtol=0, atol=2 * np.spacing(np.abs(expected).max()))

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
    def test_in_place_in_every_dtype(self, rng, name, dtype):
        x, p = operands(rng, dtype)
        expected = CALLS[name](x, p)
        CALLS[name](x, p, out=x)
        assert x.tobytes() == expected.tobytes()

    @pytest.mark.parametrize("shift", [1, -1, 2])
    def test_that_overlaps_x_elsewhere(self, rng, name, shift):
        """One buffer, x and out one or two samples apart."""
        buffer, p = operands(rng, shape=(8, *SHAPE[1:]))
        x, out = buffer[2:6], buffer[2 + shift : 6 + shift]
        expected = CALLS[name](x.copy(), p)
        untouched = buffer.copy()
        assert CALLS[name](x, p, out=out) is out
        np.testing.assert_array_equal(out, expected)
        untouched[2 + shift : 6 + shift] = expected
        np.testing.assert_array_equal(buffer, untouched)

    def test_that_is_x_turned_round(self, rng, name):
        x, p = operands(rng)
        expected = CALLS[name](x.copy(), p)
        out = x[::-1]
        CALLS[name](x, p, out=out)
        np.testing.assert_array_equal(out, expected)

    def test_that_shares_bytes_not_places(self, rng, name):
        """out begins in the middle of a value of x."""
        raw = np.zeros(4 * 360 + 6, np.uint8)
        x, p = operands(rng)
        mine = raw[: 4 * 360].view(np.float32).reshape(SHAPE)
        mine[...] = x
        out = np.ndarray(SHAPE, np.float32, raw, 6)
        assert CALLS[name](mine, p, out=out) is out
        np.testing.assert_array_equal(out, CALLS[name](x, p))

    def test_in_foreign_byte_order(self, rng, name):
        x, p = operands(rng)
        out = np.empty(SHAPE, ">f4")
        assert CALLS[name](x, p, out=out) is out
        np.testing.assert_array_equal(out, CALLS[name](x, p))

    def test_x_is_never_written(self, rng, name):
        x, p = operands(rng)
        before = x.copy()
        x.flags.writeable = False
        CALLS[name](x, p, out=np.empty_like(before))
        CALLS[name](x, p)
        np.testing.assert_array_equal(x, before)


def test_out_that_is_the_weight(rng):
    """The parameters are read before anything is written."""
    x = rng.standard_normal((5, 7)).astype(np.float32)
    w = rng.standard_normal((5, 7)).astype(np.float32)
    expected = kn.affine(x, w, keep=(0, 1))
    assert kn.affine(x, w.copy(), keep=(0, 1), out=x.copy()).tobytes() == expected.tobytes()
    assert kn.affine(x, w, keep=(0, 1), out=w) is w
    np.testing.assert_array_equal(w, expected)


def test_a_large_x_in_place_by_several_threads(rng):
    x = (rng.standard_normal((16, 64, 40, 40)) + 10).astype(np.float32)
    for keep in (1, 0, 3, ()):
        y = x.copy()
        kn.normalize(y, keep, out=y)
        assert y.tobytes() == kn.normalize(x, keep).tobytes()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), max_size=4), st.integers(1, 3))
def test_places_are_distinct_exactly_where_no_two_values_share_a_byte(axes, itemsize):
    shape, strides = [n for n, _ in axes], [step for _, step in axes]
    starts = [sum(i * step for i, step in zip(index, strides, strict=True)) for index in product(*map(range, shape))]
    taken = [start + byte for start in starts for byte in range(itemsize)]
    assert distinct(shape, strides, itemsize) == (len(set(taken)) == len(taken))


def test_an_output_whose_places_interleave_is_taken(rng):
    """Steps of 3 and 2 values: no axis steps over the other one, and yet no two values meet."""
    x, memory = rng.standard_normal((2, 3)).astype(np.float32), np.zeros(8, np.float32)
    out = np.lib.stride_tricks.as_strided(memory, (2, 3), (12, 8))
    assert kn.layer_norm(x, axes=1, out=out) is out
    np.testing.assert_array_equal(out, kn.layer_norm(x, axes=1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_fresh_result_has_the_layout_of_x(rng, layout):
    x = LAYOUTS[layout](rng.standard_normal(SHAPE).astype(np.float32))
    y = kn.normalize(x, 1)
    assert y.flags.writeable
    assert y.flags.owndata or y.base is not x
    assert y.strides == np.empty_like(x).strides


def test_parameters_that_lie_in_the_output_are_copied_before_it_is_written():
    memory = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((6, 64)).astype(np.float32)
    weight, bias = memory[0], memory[3]
    steps = walk(resolve(x.shape, 0, 1), (x, memory))
    for pair in ((weight, bias), (None, bias), (weight, None)):
        assert not any(np.shares_memory(memory, p) for p in parameters_for(steps, *pair, memory, False))
    expected = kn.layer_norm(x, weight.copy(), bias.copy(), axes=1)
    assert kn.layer_norm(x, weight, bias, axes=1, out=memory) is memory
    assert memory.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
@pytest.mark.parametrize("given", ["weight", "bias", "both"])
def test_parameters_of_every_dtype_give_the_bits_of_float64(given, dtype):
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    weight, bias = (np.random.default_rng(2).standard_normal((2, 64)) * 9).astype(dtype)
    weight, bias = (None if given == "bias" else weight), (None if given == "weight" else bias)
    wide = [None if a is None else a.astype(np.float64) for a in (weight, bias)]
    for axes in (1, 0):
        part = [None if a is None else (a if axes == 1 else a[:5]) for a in (weight, bias)]
        wider = [None if a is None else (a if axes == 1 else a[:5]) for a in wide]
        assert kn.layer_norm(x, *part, axes=axes).tobytes() == kn.layer_norm(x, *wider, axes=axes).tobytes()
