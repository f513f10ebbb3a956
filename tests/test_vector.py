"""Eight values at once: every dtype against exact arithmetic, every short end, and not one value read or written too many."""

import ctypes
import mmap
import os
import platform
import subprocess
import sys
from fractions import Fraction

import llvmlite.binding as llvm
import ml_dtypes
import numpy as np
import pytest
from llvmlite import ir
from numba import from_dtype, njit, types

from keepnorm.kernels.cpu import simd
from keepnorm.kernels.jit import compile
from keepnorm.kernels.records import BFLOAT16, FLOAT16

WIDTH = simd.WIDTH
REAL = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
WHOLE = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
HALVES = {"float16": FLOAT16, "bfloat16": BFLOAT16}


def name(dtype):
    return np.dtype(dtype).name


def raw(x):
    """An array as the kernels take it."""
    return x.view(HALVES.get(x.dtype.name, x.dtype))


def some(dtype, n=3 * WIDTH):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, n, dtype, endpoint=True)
        values[:2] = info.min, info.max
        return values
    values = rng.normal(10, 300, n).astype(dtype)
    values[:4] = np.inf, -np.inf, np.nan, -0.0
    return values


@njit
def subtract(x, at, k, out):
    simd.save(out, 0, 0, simd.differences(simd.load(x, at, 0), simd.load(k, 0, 0)))
    simd.save(out, 0, WIDTH, simd.deviations(simd.load(x, 0, at), simd.load(k, 0, 0)))
    simd.save(out, WIDTH, WIDTH, simd.floats(simd.load(x, 1, at - 1)))


@pytest.mark.parametrize("at", [0, 3, 2 * WIDTH])
@pytest.mark.parametrize("dtype", [*REAL, *WHOLE], ids=name)
def test_values_less_others(dtype, at):
    x, out = some(dtype), np.zeros(3 * WIDTH)
    k = some(dtype, WIDTH).astype(np.float64)
    k[:4] = 0.0, 4.0, 7.0, 2.0
    if np.dtype(dtype) in (np.int64, np.uint64):
        k[4:] = np.trunc(k[4:] / 4)
    subtract(raw(x), at, k, out)
    for i, value in enumerate(x[at : at + WIDTH]):
        if np.isfinite(np.float64(value)):
            exact = Fraction(int(value)) if np.dtype(dtype).kind in "iu" else Fraction(float(value))
            assert out[i] == out[WIDTH + i] == float(exact - Fraction(k[i]))
        else:
            np.testing.assert_equal(out[i], np.float64(value))
        np.testing.assert_equal(out[2 * WIDTH + i], np.float64(value))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64], ids=name)
def test_large_integers_less_a_mean_that_is_not_whole(dtype):
    x, out = np.full(WIDTH, 2**62 + 1, dtype), np.zeros(3 * WIDTH)
    mean = np.array([2.0**62, 2.0**50 + 0.25, 0.5, 1e300, 2.0**40 + 1e-4, 3.75, 2.0**63, 1.0])
    subtract(x, 0, mean, out)
    most = np.iinfo(dtype).max
    for got, m in zip(out[WIDTH : 2 * WIDTH], mean, strict=True):
        assert abs(Fraction(got) - (2**62 + 1 - Fraction(m))) <= abs(Fraction(got)) * Fraction(2, 2**53) + (m > most) * 2048


@njit
def centre(x, mean, low, out):
    simd.save(out, 0, 0, simd.centred_values(simd.load(x, 0, 0), simd.load(mean, 0, 0), simd.load(low, 0, 0)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.int32, np.uint32, np.int16], ids=name)
def test_the_second_part_of_a_mean_counts_for_wide_values_alone(dtype):
    x, out = np.full(WIDTH, 1000, dtype), np.zeros(WIDTH)
    centre(x, np.full(WIDTH, 1000.0), np.full(WIDTH, 1e-20), out)
    assert (out == (0.0 if dtype in (np.float32, np.int16) else -1e-20)).all()


@njit
def first_ones(x, at, n, out):
    simd.save(out, 0, 0, simd.first(simd.floats(simd.load_n(x, at, 0, n)), n))
    simd.save(out, 0, WIDTH, simd.floats(simd.load_n(x, 0, at, n)))


@njit
def learn(x, out):
    simd.save(out, 0, 0, simd.larger(simd.floats(simd.load(x, 0, 0)), simd.load(out, 0, 0)))
    simd.save(out, 0, WIDTH, simd.lost(simd.load(x, 0, 0)))
    return simd.largest(simd.load(out, 0, 0))


@pytest.mark.parametrize("dtype", REAL, ids=name)
@pytest.mark.parametrize("values", [
    [0.1, -7.25, 0, -0.0, 65000, -1e-7, 3, 2],
    [np.nan, np.inf, 1, 2, 3, 4, 5, 6],
    [1e-320, 1e300, -1e39, 2.0**-149, 1, 1 + 2.0**-30, -3, 0.5],
], ids=["usual", "not finite", "beyond float32"])  # fmt: skip
def test_magnitudes_and_what_float32_loses(values, dtype):
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.array(values).astype(dtype)
        wide = x.astype("f8")
        right = np.abs(wide - wide.astype("f4"))
    out = np.full(2 * WIDTH, 2.5)
    greatest = learn(raw(x), out)
    np.testing.assert_array_equal(out[:WIDTH], np.fmax(np.abs(wide), 2.5))
    np.testing.assert_array_equal(out[WIDTH:], right)
    assert greatest == out[:WIDTH].max()


def page_before_a_wall():
    """A page of memory, with one behind it that nobody may touch."""
    size = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(size), 0) == 0
    return memory, np.frombuffer(memory, np.uint8, size)


@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="mprotect is POSIX")
@pytest.mark.parametrize("dtype", [*REAL, np.uint8, np.int64], ids=name)
def test_the_end_of_an_array_is_the_end(dtype):
    _memory, page = page_before_a_wall()
    x = page.view(dtype)
    x[:] = np.arange(1, x.size + 1) % 100
    for n in range(WIDTH):
        out = np.full(2 * WIDTH, 7.0)
        first_ones(raw(x), x.size - n, n, out)
        expected = np.zeros(WIDTH)
        expected[:n] = x[x.size - n :]
        assert (out.reshape(2, WIDTH) == expected).all()
        if dtype in REAL:
            write_first(raw(x), x.size - n, n, out)


@njit
def write_first(y, at, n, values):
    simd.store_n(y, at - 1, 1, n, simd.load(values, 0, 0))


@njit
def write_all(y, at, values, past):
    simd.write(y, at - 1, 1, simd.load(values, 0, 0), past)


@pytest.mark.parametrize("dtype", REAL, ids=name)
def test_results_are_rounded_and_have_no_neighbours(dtype):
    values = np.array([1 / 3, -1e300, 1e-300, np.nan, np.inf, -0.0, 65519.99, 1.0009765625])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32).astype(dtype) if dtype is not np.float64 else values
    memory = np.full(8 * WIDTH, 5, dtype)
    start = -memory.ctypes.data % 64 // memory.itemsize
    for n in range(WIDTH):
        y = np.full(3 * WIDTH, 5, dtype)
        write_first(raw(y), WIDTH + 1, n, values)
        np.testing.assert_array_equal(y[WIDTH + 1 :][:n].astype(np.float64), expected[:n].astype(np.float64))
        assert (np.delete(y, slice(WIDTH + 1, WIDTH + 1 + n)) == 5).all()
    for past in (True, False):
        y = memory[start : start + 3 * WIDTH]
        y[:] = 5
        write_all(raw(y), WIDTH, values, past)
        np.testing.assert_array_equal(y[WIDTH : 2 * WIDTH].astype(np.float64), expected.astype(np.float64))
        assert (y[:WIDTH] == 5).all()
        assert (y[2 * WIDTH :] == 5).all()


@njit
def copy_both(x, y, at, past):
    one, other = simd.load_both(x, at - 1, 1)
    simd.write_both(y, at - 1, 1, (simd.floats(one), simd.floats(other)), past)


@njit
def copy_two(x, y, at, past):
    simd.write_two(y, 1, at - 1, simd.floats(simd.load(x, at, 0)), simd.floats(simd.load(x, at, WIDTH)), past)


@pytest.mark.parametrize("copy", [copy_both, copy_two])
@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("dtype", REAL, ids=name)
def test_sixteen_values_come_to_their_places(dtype, past, copy):
    size = 128 // np.dtype(dtype).itemsize
    memory = np.full(5 * size, 5, dtype)
    start = -memory.ctypes.data % 128 // memory.itemsize
    x, y = some(dtype, 3 * size), memory[start : start + 3 * size]
    copy(raw(x), raw(y), size, past)
    got, right = (a[size:][: 2 * WIDTH].astype(np.float64) for a in (y, x))
    np.testing.assert_array_equal(got, right)
    assert (np.delete(y, slice(size, size + 2 * WIDTH)) == 5).all()


@njit
def add_up(values):
    return simd.total(simd.load(values, 0, 0))


@njit
def arithmetic(a, out):
    x, y = simd.load(a, 0, 0), simd.fill(3.0)
    z = x + y
    z += x
    z -= y
    z *= y
    simd.save(out, 0, 0, z - x * y)
    simd.save(out, 0, WIDTH, simd.fma(x, y, x))
    simd.save(out, 0, 2 * WIDTH, simd.scaled(x, y, z))


def test_sums_have_one_order_and_operators_are_what_they_say():
    a, out = np.random.default_rng(1).normal(size=WIDTH), np.zeros(3 * WIDTH)
    halves = a[:4] + a[4:]
    quarters = halves[:2] + halves[2:]
    assert add_up(a) == quarters[0] + quarters[1]
    arithmetic(a, out)
    assert (out[:WIDTH] == (((a + 3.0) + a) - 3.0) * 3.0 - a * 3.0).all()
    np.testing.assert_allclose(out[WIDTH : 2 * WIDTH], 4 * a, rtol=2e-15)
    assert (out[2 * WIDTH :] == a * 3.0 + ((a + 3.0) + a - 3.0) * 3.0).all()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="asks for instructions of one family")
def test_float16_is_converted_by_the_older_instruction_where_there_is_a_slower_one():
    class Codegen:
        _tm = None

        @staticmethod
        def _customize_tm_options(options):
            features = "+avx512f,+avx512vl,+avx512bw,+f16c,+avx512fp16"
            options |= {"cpu": "sapphirerapids", "features": features, "jit": True}

    code = llvm.parse_assembly("""
        define <8 x double> @widened(<8 x i16> %bits) {
            %half = bitcast <8 x i16> %bits to <8 x half>
            %double = fpext <8 x half> %half to <8 x double>
            ret <8 x double> %double
        }
    """)
    text = compile._machine(Codegen).emit_assembly(code)
    assert "vcvtph2ps\t" in text
    assert "vcvtps2pd" in text


VECTORS = """
    define <8 x double> @sum(<8 x double> %a, <8 x double> %b) ATTRIBUTES {
        %c = fadd <8 x double> %a, %b
        ret <8 x double> %c
    }
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="asks for registers of one family")
@pytest.mark.parametrize(
    ("family", "dtype", "processor", "short"),
    [
        ("rows_elementwise", np.float32, "sapphirerapids", True),
        ("columns", np.float32, "sapphirerapids", True),
        ("rows", np.float32, "sapphirerapids", False),
        ("columns", np.float32, "znver4", False),
        ("columns", np.float64, "sapphirerapids", False),
        ("columns_elementwise", FLOAT16, "sapphirerapids", False),
    ],
)
def test_kernels_of_float32_have_short_vectors(family, dtype, processor, short, monkeypatch):
    monkeypatch.setattr(compile.llvm, "get_host_cpu_name", lambda: processor)
    kinds = (types.Array(from_dtype(np.dtype(dtype)), 1, "C"),)
    assert compile._has_short_vectors(family, kinds) == short
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), ()), "nothing")
    ir.IRBuilder(function.append_basic_block()).ret_void()
    if short:
        compile._shorten_vectors(module)
    attributes = " ".join(function.attributes)
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine("sapphirerapids", "+avx512f,+avx512vl")
    text = machine.emit_assembly(llvm.parse_assembly(VECTORS.replace("ATTRIBUTES", attributes)))
    assert ("ymm" in text) == short


AVX2 = "+avx,+avx2,+fma,+f16c"

OTHER_PROCESSOR = """
import numpy as np
import keepnorm as kn
rng = np.random.default_rng(5)
for dtype in (np.float32, np.float64, np.int64, np.uint8):
    for shape in ((9, 21, 150), (50, 21, 3)):
        x = (rng.random(shape) * 200).astype(dtype)
        exact = x.astype(np.float64)
        mean, var = exact.mean((0, 2), keepdims=True), exact.var((0, 2), keepdims=True)
        expected = (exact - mean) / np.sqrt(var + 1e-5)
        y, vjp = kn.normalize_vjp(x, 1)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(vjp(np.ones_like(y))[0], 0, atol=1e-5)
for dtype in HALVES:
    for shape in ((9, 21, 150), (50, 21, 3), (9, 5, 7)):
        x = rng.standard_normal(shape).astype(dtype)
        exact = x.astype(np.float64)
        expected = (exact - exact.mean((0, 2), keepdims=True)) / np.sqrt(exact.var((0, 2), keepdims=True) + 1e-5)
        y = kn.normalize(x, 1, out=x).astype(np.float64)
        half_a_place = 2.0**-11 if dtype is np.float16 else 2.0**-8
        assert (abs(y - expected) <= np.maximum(abs(expected), 2.0**-10) * half_a_place * 1.01).all()
print("done")
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names processors of one family")
@pytest.mark.parametrize(("processor", "features"), [("x86-64", ""), ("haswell", AVX2)])
def test_processors_with_shorter_vectors(processor, features, tmp_path):
    if features == AVX2 and not llvm.get_host_cpu_features().get("avx512f"):
        pytest.skip("this processor's own vectors are those of AVX2")
    chosen = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    halves = "(np.float16, bfloat16)" if "f16c" in features else "(bfloat16,)"
    command = [sys.executable, "-c", f"from ml_dtypes import bfloat16{OTHER_PROCESSOR.replace('HALVES', halves)}"]
    run = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True, timeout=600, check=False)
    assert run.stdout == "done\n", run.stderr[-2000:]
