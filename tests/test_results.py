"""Memory of large results: used again when nobody holds it, never while somebody does, and never in the way."""

import gc
import mmap
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

import keepnorm as kn
from keepnorm.engines.host import pool

SINGLE = np.dtype("f4")
pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_FREE"), reason="the system has no memory that is free and kept")


@pytest.fixture(autouse=True)
def none_kept(monkeypatch):
    """Small results count as large, and nothing is kept from other tests."""
    monkeypatch.setattr(pool, "LARGE", 4096)
    monkeypatch.setattr(pool, "WARM", 1 << 27)
    forget()
    yield
    gc.collect()
    forget()


def forget():
    pool._warm.clear()
    pool._kept.clear()


def places_of(pieces):
    return [address(np.frombuffer(piece, "u1")) for piece in pieces]


def address(a):
    return a.__array_interface__["data"][0]


def large():
    return np.zeros((64, 100, 7), np.float32)


LAYOUTS = [
    lambda a: a,
    lambda a: a.T,
    lambda a: np.asfortranarray(a),
    lambda a: a.transpose(1, 0, 2),
    lambda a: a.transpose(1, 2, 0),
    lambda a: a.transpose(2, 0, 1),
    lambda a: a[::-1],
    lambda a: a[:, ::2],
    lambda a: np.broadcast_to(a[:1], a.shape),
    lambda a: a[:0],
    lambda a: a.T[:, :, None],
    lambda a: a.T[None],
    lambda a: a.transpose(1, 0, 2)[:, None],
    lambda a: a.reshape(1, *a.shape).transpose(0, 2, 1, 3)[::-1],
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [SINGLE, np.dtype("f8"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)])
def test_shape_strides_and_dtype_are_those_of_numpy(layout, dtype):
    x = layout(large())
    got, right = pool.empty_like(x, dtype), np.empty_like(x, dtype)
    assert (got.shape, got.strides, got.dtype) == (right.shape, right.strides, right.dtype)
    assert got.flags.writeable
    assert got.flags.aligned


def test_free_memory_is_used_again_and_not_before():
    y = pool.empty_like(large(), SINGLE)
    first = address(y)
    view = y[3:, ::2]
    assert not y.flags.owndata
    del y
    assert address(pool.empty_like(large(), SINGLE)) != first
    del view
    assert address(pool.empty_like(large(), SINGLE)) == first


def test_the_most_recently_freed_goes_first():
    every = [pool.empty_like(large(), SINGLE) for _ in range(3)]
    places = [address(y) for y in every]
    for number in (1, 0, 2):
        every[number] = None
    again = [pool.empty_like(large(), SINGLE) for _ in range(3)]
    assert [address(y) for y in again] == [places[2], places[0], places[1]]


@pytest.mark.parametrize("layout", LAYOUTS[:6])
def test_every_dense_layout_has_it(layout):
    assert not pool.empty_like(layout(large()), SINGLE).flags.owndata


def test_a_piece_belongs_to_one():
    y = pool.empty_like(large(), SINGLE)
    del y
    (piece,) = pool._warm
    assert pool._take(piece, pool._warm)
    assert not pool._take(piece, pool._warm)


@pytest.mark.parametrize("hold", [memoryview, np.from_dlpack, lambda a: a.reshape(-1).view("u1")])
def test_whoever_holds_it_keeps_it(hold):
    y = pool.empty_like(large(), SINGLE)
    y[...] = 7
    held = hold(y)
    del y
    others = [pool.empty_like(large(), SINGLE) for _ in range(3)]
    for other in others:
        other[...] = 1
    assert np.all(np.asarray(held).view(np.float32) == 7)


def test_two_results_share_nothing():
    every = [pool.empty_like(large(), SINGLE) for _ in range(5)]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(every) for b in every[:i])


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(pool, "WARM", 2 << 21)
    monkeypatch.setattr(pool, "KEPT", 3 << 21)
    every = [pool.empty_like(large(), SINGLE) for _ in range(7)]
    places = [address(y) for y in every]
    while every:
        del every[0]
    assert places_of(pool._warm) == places[5:], "the last stay as they are"
    assert places_of(pool._kept) == places[2:5], "the oldest go"
    huge = pool.empty_like(np.empty(1 << 21, np.float32), SINGLE)
    del huge
    assert places_of(pool._warm + pool._kept) == places[5:] + places[2:5], "too large to be kept"
    again = [pool.empty_like(large(), SINGLE) for _ in range(5)]
    assert [address(y) for y in again] == [places[n] for n in (6, 5, 4, 3, 2)]


def test_a_piece_larger_than_what_stays_is_marked(monkeypatch):
    monkeypatch.setattr(pool, "WARM", 1 << 21)
    y = pool.empty_like(np.empty(1 << 20, np.float32), SINGLE)
    del y
    assert (len(pool._warm), len(pool._kept)) == (0, 1)


def test_what_stays_keeps_its_values():
    """It is not marked as free, so that its pages need not be cleared again."""
    y = pool.empty_like(large(), SINGLE)
    y[...] = 7
    del y
    assert np.all(pool.empty_like(large(), SINGLE) == 7)


def test_much_smaller_results_leave_it_alone():
    wide = pool.empty_like(np.empty(38 << 18, np.float32), SINGLE)
    first = address(wide)
    del wide
    assert address(pool.empty_like(np.empty(32 << 18, np.float32), SINGLE)) != first
    assert address(pool.empty_like(np.empty(34 << 18, np.float32), SINGLE)) == first


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_kept_is_free_for_the_system():
    code = """
import numpy as np
from keepnorm.engines.host import pool as results
y = results.empty_like(np.empty(1 << 26, np.float32), np.dtype("f4"))
y[...] = 1
del y
lines = open("/proc/self/smaps").read().splitlines()
print(sum(int(line.split()[1]) for line in lines if line.startswith("LazyFree")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 1 << 18, "kB of 256 MiB"


def test_many_threads_keep_their_values():
    wrong = []

    def work(number):
        for _ in range(200):
            y = pool.empty_like(large(), SINGLE)
            y[...] = number
            if not np.all(y == number):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_the_interpreter_ends_quietly():
    code = """
import numpy as np, keepnorm as kn
from keepnorm.engines.host import pool as results
y = kn.normalize(np.ones((1 << 16, 129), np.float32), 1)
assert not y.flags.owndata
import sys
sys.kept = [y, y.T, (lambda: y)]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_where_the_system_has_none_numpy_has(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no memory of this kind")

    monkeypatch.setattr(pool.mmap, "mmap", refuse)
    assert pool.empty_like(large(), SINGLE).flags.owndata


def refusing(advice):
    """Memory of a system that does not know one advice."""

    class Refusing(mmap.mmap):
        def madvise(self, given, *rest):
            if given == advice:
                raise OSError("no advice of this kind")
            return super().madvise(given, *rest)

    return Refusing


def test_memory_that_cannot_be_marked_is_not_kept(monkeypatch):
    monkeypatch.setattr(pool, "WARM", 0)
    monkeypatch.setattr(pool.mmap, "mmap", refusing(mmap.MADV_FREE))
    y = pool.empty_like(large(), SINGLE)
    assert not y.flags.owndata
    del y
    assert not pool._warm + pool._kept


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no advice for huge pages")
def test_without_huge_pages_memory_is_kept(monkeypatch):
    monkeypatch.setattr(pool.mmap, "mmap", refusing(mmap.MADV_HUGEPAGE))
    y = pool.empty_like(large(), SINGLE)
    del y
    assert len(pool._warm) == 1


def test_a_result_outlives_the_module(monkeypatch):
    y = pool.empty_like(large(), SINGLE)
    monkeypatch.setattr(pool, "_keep", None)
    del y
    assert not pool._warm + pool._kept


def test_large_results_come_from_it(monkeypatch):
    monkeypatch.undo()
    x = np.random.default_rng(0).standard_normal((pool.LARGE // 400 + 1, 100), dtype=np.float32)
    y, vjp = kn.normalize_vjp(x, 1)
    right, first = y[:100].copy(), address(y)
    dx = vjp(x).x
    assert not dx.flags.owndata
    del y
    again = kn.normalize(x, 1)
    assert address(again) == first
    assert np.array_equal(again[:100], right)
