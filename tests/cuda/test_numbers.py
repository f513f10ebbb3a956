"""Values of every dtype become float64 and come back as on the CPU."""

import ml_dtypes
import numpy as np
import pytest

from keepnorm.kernels.cuda.device import Memory, load, store, vector
from keepnorm.kernels.cuda.numbers import anchor, difference, narrow, settle, widen

EVERY_HALF = np.arange(2**16, dtype=np.uint16)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_every_half_widens_exactly(dtype):
    name = np.dtype(dtype).name
    for bits in EVERY_HALF[::37]:
        exact = bits.view(dtype).astype(np.float64)
        np.testing.assert_array_equal(widen(name)(bits), exact)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_narrowing_rounds_to_the_nearest_half(dtype, rng):
    name = np.dtype(dtype).name
    values = np.concatenate([
        rng.standard_normal(300) * 10.0 ** rng.integers(-9, 6, 300),
        [0.0, -0.0, np.inf, -np.inf, 1e300, -1e300, 65504.0, 65520.0, 1.00390625, 1.01171875, 3.3895e38],
    ])  # fmt: skip
    with np.errstate(over="ignore"):
        for value in values:
            expected = np.float32(value).astype(dtype)
            assert narrow(name)(value) == expected.view(np.uint16), value
        assert np.isnan(narrow(name)(np.nan).view(dtype))


@pytest.mark.parametrize("name", ["int64", "uint64"])
def test_integers_of_64_bits_lose_nothing_to_their_shift(name):
    low = 2**62 if name == "int64" else 2**63
    values = np.array([low + 3, low + 5, low + 4096], name)
    shift = anchor(name)(values[0])
    assert [difference(name)(v, shift) for v in values] == [int(v) - int(shift) for v in values]
    assert settle(name)(shift + 0.75) == shift


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_shift_is_finite(value):
    assert anchor("float32")(np.float32(value)) == 0.0
    assert anchor("float32")(np.float32(2.5)) == 2.5


@pytest.mark.parametrize(("names", "wide"), [
    (("float32",), 4), (("float16", "float16"), 8), (("float64",), 2), (("uint8",), 8), (("uint8", "float32"), 4),
    (("int64", "float64"), 2), (("bfloat16", "float32"), 4),
])  # fmt: skip
def test_a_thread_reads_sixteen_bytes_of_the_widest_operand(names, wide):
    assert vector(*names) == wide


def test_vectors_are_read_and_written_in_step():
    memory = Memory(np.arange(8.0, dtype=np.float32))
    assert load("float32", 4)(memory, 4) == (4.0, 5.0, 6.0, 7.0)
    store("float32", 4)(memory, 0, (9.0, 8.0, 7.0, 6.0))
    np.testing.assert_array_equal(memory.values, [9, 8, 7, 6, 4, 5, 6, 7])
    with pytest.raises(AssertionError, match="out of step"):
        load("float32", 4)(memory, 2)
