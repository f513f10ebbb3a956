"""Results so large that they are written past the caches: every value, at every alignment, and nothing beside them."""

import ctypes
import mmap

import ml_dtypes
import numpy as np
import pytest
from numba import njit

import keepnorm as kn
from keepnorm.kernels.cpu import prefetch
from keepnorm.tuning import RUN_ARRAY, STREAM, WRITE_ARRAY

# In each way to walk them, rows that end inside a cache line and, in even lanes, with one: (shape, kept axis). In float32,
# each has more than STREAM bytes, and rows of more than ROW.
WALKS = {
    "long runs": ((317, 20011), 0),
    "runs and pieces": ((60, 3, 35_003), 1),
    "short runs": ((497, 67, 193), 1),
    "rows of some lines": ((20011, 331), 0),
    "lanes": ((30011, 211), 1),
    "even lanes": ((30011, 224), 1),
    "wide lanes": ((1127, 5623), 1),
    "folded lanes": ((2_100_011, 3), 1),
    "short reduced lanes": ((497, 260, 49), 1),
}
WIDTHS = [np.float64, np.float16, ml_dtypes.bfloat16, np.uint8]


def data(shape, dtype):
    return np.random.default_rng(3).integers(0, 250, shape, np.uint8).astype(dtype)


def beside(shape, dtype, start):
    """An array that begins `start` values after a cache line, in memory that is marked on both sides."""
    size = int(np.prod(shape))
    memory = np.full(size + 256, 77, dtype)
    first = -memory.ctypes.data % 64 // memory.itemsize + start
    return memory, slice(first, first + size), memory[first : first + size].reshape(shape)


def pieces(shape, keep, itemsize):
    """Slices along the longest reduced axis, each of a result below STREAM."""
    axis = max((a for a in range(len(shape)) if a != keep), key=lambda a: shape[a])
    count = np.prod(shape) * itemsize // STREAM + 2
    for part in np.array_split(np.arange(shape[axis]), count):
        yield (*[slice(None)] * axis, slice(part[0], part[-1] + 1))


@pytest.mark.parametrize(
    ("walk", "dtype", "start"),
    [
        *((walk, np.float32, start) for walk in WALKS for start in (0, 5)),
        *((walk, np.float32, start) for walk in ("long runs", "lanes", "rows of some lines") for start in (1, 15)),
        *((walk, dtype, 3) for walk in ("long runs", "wide lanes", "rows of some lines") for dtype in WIDTHS),
        *(("folded lanes", dtype, 19) for dtype in WIDTHS[1:3]),
    ],
)
def test_forward_writes_what_small_results_have(walk, dtype, start):
    shape, keep = WALKS[walk]
    if np.dtype(dtype).itemsize == 2:
        shape = (2 * shape[0], *shape[1:])
    x = data(shape, dtype)
    memory, inside, out = beside(shape, np.float32 if dtype is np.uint8 else dtype, start)
    assert out.nbytes >= STREAM
    assert kn.normalize(x, keep, out=out) is out
    assert (memory[: inside.start] == 77).all()
    assert (memory[inside.stop :] == 77).all()
    moments = kn.moments(x, keep)
    for part in pieces(shape, keep, out.itemsize):
        expected = kn.normalize(np.ascontiguousarray(x[part]), keep, moments=moments)
        assert expected.nbytes < STREAM
        assert out[part].tobytes() == expected.tobytes()


@njit
def cut(y, start, n, step, past):
    head = prefetch.before_lines(y, start, n, past)
    return head, prefetch.whole_steps(y, n - head, step, past)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16], ids=lambda d: np.dtype(d).name)
def test_what_goes_past_the_caches_is_whole_lines(dtype):
    """A line of which a part goes through the caches takes longer than a row."""
    _, _, y = beside((400,), dtype, 0)
    line = 64 // y.itemsize
    for start in range(line + 1):
        for n in (1, 7, 40, 131, 300):
            head, whole = cut(y, start, n, 8, True)
            assert head == min(n, -start % line)
            assert whole == (n - head) // line * line
            assert cut(y, start, n, 8, False) == (0, n // 8 * 8)


@njit
def before(y, start, step):
    return prefetch.before_steps(y, start, step)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16], ids=lambda d: np.dtype(d).name)
def test_steps_begin_where_the_address_is_a_multiple_of_one(dtype):
    _, _, y = beside((100,), dtype, 0)
    line = 64 // y.itemsize
    for step in (1, 2, line // 2, line):
        for start in range(2 * line):
            assert before(y, start, step) == -start % step


@pytest.mark.parametrize("start", [0, 5, 15])
def test_few_rows_of_as_many_lanes_as_stay_in_registers(start):
    """The first whole line begins in the middle of the lanes, so that the last of them come after the first again."""
    x = data((27001, 4, 64), np.float32)
    memory, inside, out = beside(x.shape, np.float32, start)
    assert out.nbytes >= STREAM
    kn.normalize(x, (0, 2), out=out)
    assert (np.delete(memory, inside) == 77).all()
    for few in (slice(0, 9000), slice(9000, 18000), slice(18000, 27001)):
        assert out[few].tobytes() == kn.normalize(x[few], (0, 2)).tobytes()


@pytest.mark.parametrize("start", [0, 3, 18])
@pytest.mark.parametrize("dtype", [np.float32, *WIDTHS[:3]], ids=lambda d: np.dtype(d).name)
def test_layer_norm_writes_what_small_results_have(dtype, start):
    rows = 20011 * 8 // np.dtype(dtype).itemsize
    x = data((rows, 331), dtype)
    weight, bias = np.random.default_rng(4).standard_normal((2, 331)).astype(dtype)
    memory, inside, out = beside(x.shape, dtype, start)
    assert out.nbytes >= STREAM
    kn.layer_norm(x, weight, bias, axes=-1, out=out)
    assert (memory[: inside.start] == 77).all()
    assert (memory[inside.stop :] == 77).all()
    for part in np.array_split(np.arange(rows), 3):
        few = slice(part[0], part[-1] + 1)
        assert out[few].tobytes() == kn.layer_norm(x[few], weight, bias, axes=-1).tobytes()


@pytest.mark.parametrize(
    ("walk", "dtype"),
    [
        *((walk, dtype) for walk in WALKS for dtype in (np.float32, np.float64)),
        *(
            (walk, dtype)
            for walk in ("long runs", "wide lanes", "folded lanes", "rows of some lines")
            for dtype in WIDTHS[1:3]
        ),
    ],
)
def test_backward_writes_what_small_results_have(walk, dtype):
    shape, keep = WALKS[walk]
    if np.dtype(dtype).itemsize == 2:
        shape = (2 * shape[0], *shape[1:])
    x = data(shape, dtype)
    dy = x[::-1].copy()
    weight = bias = None  # sums over so many values are more than a float16 holds
    if np.dtype(dtype).itemsize > 2:
        weight = np.linspace(0.5, 1.5, shape[keep]).astype(dtype)
        bias = np.zeros_like(weight)
    moments = kn.moments(x, keep)
    dx = kn.normalize_vjp(x, keep, weight, bias, moments=moments)[1](dy)[0]
    assert dx.nbytes >= STREAM
    for part in pieces(shape, keep, dx.itemsize):
        piece, given = (np.ascontiguousarray(a[part]) for a in (x, dy))
        expected = kn.normalize_vjp(piece, keep, weight, bias, moments=moments)[1](given)[0]
        assert dx[part].tobytes() == expected.tobytes()


def before_a_wall(values):
    """The same values in memory that ends where a page begins that nobody may touch."""
    page = mmap.PAGESIZE
    size = -(-values.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) == 0
    there = np.frombuffer(memory, values.dtype, values.size, size - values.nbytes).reshape(values.shape)
    there[...] = values
    return there


@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="mprotect is POSIX")
@pytest.mark.parametrize(
    ("shape", "keep"), [((3, 3_000_017), 0), ((9, 3, 700, 500), 1), ((3_000_017, 3), 1), ((80_011, 128), 1)]
)
def test_what_is_asked_for_behind_the_end_is_not_read(shape, keep):
    plain, other = (np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in (5, 6))
    x, dy = before_a_wall(plain), before_a_wall(other)
    assert x.nbytes >= RUN_ARRAY
    weight, bias = np.random.default_rng(7).standard_normal((2, shape[keep]), dtype=np.float32)
    answers = []
    for a, b in ((x, dy), (plain, other)):
        y, vjp = kn.normalize_vjp(a, keep, weight, bias)
        answers.append(
            [part.tobytes() for part in (y, vjp(b).x, kn.moments(a, keep).m2, kn.affine(a, weight, bias, keep=keep))]
        )
    assert answers[0] == answers[1]


@pytest.mark.skipif(not hasattr(mmap, "MAP_PRIVATE"), reason="mprotect is POSIX")
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(("shape", "keep"), [((7, 200_003), 0), ((9, 301, 500), 1), ((500_017, 3), 1), ((20_011, 128), 1)])
def test_what_is_claimed_behind_the_end_is_not_written(shape, keep, dtype):
    """Nor does it end the process."""
    x = np.random.default_rng(8).standard_normal(shape, dtype=np.float32).astype(dtype)
    weight, bias = np.random.default_rng(9).standard_normal((2, shape[keep]), dtype=np.float32).astype(dtype)
    inner = np.random.default_rng(10).standard_normal((2, shape[-1]), dtype=np.float32).astype(dtype)
    out = before_a_wall(np.zeros_like(x))
    assert WRITE_ARRAY <= out.nbytes < STREAM
    for call in (
        lambda out: kn.normalize(x, keep, weight, bias, out=out),
        lambda out: kn.layer_norm(x, *inner, axes=-1, out=out),
    ):
        assert call(out).tobytes() == call(np.empty_like(x)).tobytes()


@njit
def numbers(x, n, past):
    return prefetch.distance_of_sums(x, n), prefetch.write_ahead(x, past)


def test_only_what_comes_from_far_is_asked_for():
    assert numbers(np.zeros(1 << 20, np.float32), 200, False) == (1024, 1024)
    assert numbers(np.zeros(1 << 20, np.float32), 100, True) == (0, 0)
    assert numbers(np.zeros(1 << 18, np.float64), 200, False) == (0, 512)
    assert numbers(np.zeros(1000, np.float32), 1000, False) == (0, 0)
