"""The compiled kernels are kept on disk where that is possible, and where it is not, nobody hears of it."""

import ctypes
import os
import stat
from pathlib import Path

import numpy as np
import pytest

import keepnorm as kn
from keepnorm.axes import resolve
from keepnorm.engines.host.memory import plain, walk
from keepnorm.kernels.columns import CHUNK, ROWS
from keepnorm.kernels.jit import cache, launch
from keepnorm.kernels.jit.compile import object_code
from keepnorm.kernels.jit.signature import RANKS, layout_of

# A first call with every warning an error, and whether anything was compiled for it: Numba is loaded for nothing else.
CALL = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np, keepnorm as kn
x = np.arange(12, dtype=np.float32).reshape(4, 3)
y = kn.normalize(x, 1)
assert np.abs(y.astype(np.float64).mean(0)).max() < 1e-6, y
assert np.abs(y.std(0) - 1).max() < 1e-5, y
print(int("numba" in sys.modules))
"""

X, TABLE, DOUBLE = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.float64)
TABLES = ((TABLE, 1), (TABLE, 2), (TABLE, 2), (DOUBLE, 3), (DOUBLE, 2))
FORWARD = ((X, 1), (X, 1), *TABLES, (X, 1), (X, 1), float, bool)
BACKWARD = ((X, 1), (X, 1), (X, 1), *TABLES, (DOUBLE, 2), (DOUBLE, 1), (DOUBLE, 2), (DOUBLE, 2), float, bool, bool, bool)
LAYOUTS = {
    "rows": FORWARD,
    "columns": FORWARD,
    "rows_elementwise": FORWARD,
    "columns_elementwise": FORWARD,
    "masked": ((X, 1), (np.dtype(np.uint8), 1), *TABLES),
    "rows_backward": BACKWARD,
    "columns_backward": BACKWARD,
}


def entries(folder):
    return sorted(p for p in Path(folder).rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def warm(run_python, tmp_path_factory):
    """A cache folder with the kernels of one call in it."""
    folder = tmp_path_factory.mktemp("cache")
    assert int(run_python(CALL, env={"NUMBA_CACHE_DIR": str(folder)})) > 0
    assert entries(folder)
    return folder


def test_a_second_process_compiles_nothing(run_python, warm):
    before = {p: p.stat().st_mtime_ns for p in entries(warm)}
    assert int(run_python(CALL, env={"NUMBA_CACHE_DIR": str(warm)})) == 0
    assert {p: p.stat().st_mtime_ns for p in entries(warm)} == before


@pytest.mark.parametrize("when", ["before the import", "after it"])
def test_kernels_are_compiled_where_numba_is_told_not_to(run_python, tmp_path, when):
    """NUMBA_DISABLE_JIT is for finding errors in one's own functions, and stays set for these."""
    env = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DISABLE_JIT": "1" if when == "before the import" else "0"}
    code = CALL.replace("x =", "import os; os.environ['NUMBA_DISABLE_JIT'] = '1'\nx =", 1)
    assert int(run_python(f"{code}\nimport numba\nassert numba.config.DISABLE_JIT == 1", env=env)) == 1


class TestFolderThatCannotBeWritten:
    def test_is_no_error(self, run_python, tmp_path):
        (tmp_path / "a file").write_text("not a folder")
        run_python(CALL, env={"NUMBA_CACHE_DIR": str(tmp_path / "a file" / "cache")})

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder(self, run_python, tmp_path):
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        try:
            run_python(CALL, env={"NUMBA_CACHE_DIR": str(tmp_path)})
            assert entries(tmp_path) == []
        finally:
            tmp_path.chmod(stat.S_IRWXU)

    def test_a_folder_that_vanishes_after_the_import(self, run_python, tmp_path):
        vanish = "from keepnorm.kernels.jit import folder\nimport shutil; folder.find(); shutil.rmtree(sys.argv[1])\nx ="
        run_python(CALL.replace("x =", vanish, 1), tmp_path / "cache", env={"NUMBA_CACHE_DIR": str(tmp_path / "cache")})

    def test_a_disk_that_is_full(self, run_python, tmp_path):
        """Writing ends as on a full disk, with an entry half written."""
        full = """
import errno, os
def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
os.replace = full
"""
        run_python(full + CALL, env={"NUMBA_CACHE_DIR": str(tmp_path)})
        assert entries(tmp_path) == []


def flipped(data, place):
    """The same bytes with one bit changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES = {
    "emptied": lambda data: data[:0],
    "cut short": lambda data: data[: len(data) // 2],
    "overwritten": lambda data: b"\x80\x04" + data[:7],
    "one bit of the end": lambda data: flipped(data, len(data) - 1),
    "one bit of the code": lambda data: flipped(data, len(data) // 2),
    "one bit of the object's header": lambda data: flipped(data, 32 + 19),  # LLVM ends the process where it meets that
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_entries_that_are_damaged_are_compiled_anew(run_python, warm, tmp_path, damage):
    """Whatever a crash or a bad disk leaves behind."""
    for source in entries(warm):
        target = tmp_path / source.relative_to(warm)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.write_bytes(DAMAGES[damage](source.read_bytes()))
    for compiled in (1, 0):  # and the entry is whole again
        assert int(run_python(CALL, env={"NUMBA_CACHE_DIR": str(tmp_path)})) == compiled


def test_a_process_with_another_processor_compiles_anew(run_python, warm):
    """An entry for this processor could end the process on another one."""
    code = "from keepnorm.kernels.jit import link as native\nnative.processor = lambda: 'another'\n" + CALL
    assert int(run_python(code, env={"NUMBA_CACHE_DIR": str(warm)})) == 1


def test_code_that_needs_what_is_not_here_is_compiled_anew(run_python, warm, tmp_path):
    """A whole entry of another system: its linker says no, and nothing is run."""
    for source in entries(warm):
        code = source.read_bytes()[32:].replace(b"PyErr_NoMemory", b"PyErr_NoMemorx")
        assert code != source.read_bytes()[32:]
        target = tmp_path / source.relative_to(warm)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.write_bytes(cache._digest(source.stem.partition("_")[2], code) + code)
    assert int(run_python(CALL, env={"NUMBA_CACHE_DIR": str(tmp_path)})) == 1


@pytest.mark.parametrize("family", LAYOUTS)
def test_all_of_a_kernel_is_inlined_into_one_function(family):
    """No function of ours has machine code of its own, and none of Numba's runtime is left."""
    code = object_code(family, LAYOUTS[family], "entry")
    assert b"entry" in code
    assert b"NumbaEnv8keepnorm" in code  # a name that stays, in the spelling that would betray a function
    assert b"_ZN8keepnorm" not in code
    assert b"NRT_MemInfo" not in code


class TestEntry:
    """The Python function around a kernel refuses what it was not made for, before it reads anything."""

    @pytest.fixture
    def call(self):
        """A call of an entry with good arguments, but for those that are replaced."""
        x = np.arange(12, dtype=np.float32).reshape(4, 3)
        steps = walk(plain(resolve(x.shape, 1)), (x, x))
        y, state = np.empty(12, np.float32), np.empty((7, 3))
        parameters = np.ones(1, np.float32), np.zeros(1, np.float32)
        good = [x.reshape(-1), y, steps.integers, steps.kept, steps.outer, np.empty((1, 4, 1)), state, *parameters, 1e-5, True]
        entry = launch._entry(steps.family, layout_of(steps.family, tuple(good)))

        def call(change=lambda arguments: arguments):
            arguments = change(list(good))
            entry(0, 0, 0, 1, 0, steps.groups, 4, *arguments)
            return arguments[1].reshape(-1)

        call.steps = steps
        return call

    def test_runs(self, call):
        y = call().reshape(4, 3)
        assert np.abs(y.mean(0)).max() < 1e-6
        assert np.abs(y.std(0) - 1).max() < 1e-5

    @pytest.mark.parametrize("place", range(9))
    def test_an_array_of_another_rank(self, call, place):
        def other(array):
            return lambda a: [*a[:place], array(a[place]), *a[place + 1 :]]

        expected = call().copy()
        if RANKS[call.steps.family][place] == 1:  # any rank will do
            np.testing.assert_array_equal(call(other(lambda a: a.reshape(1, -1, 1))), expected)
            return
        with pytest.raises(TypeError):
            call(other(lambda a: a[None]))
        with pytest.raises(TypeError):
            call(other(lambda _: np.array(1.0)))

    def test_an_array_with_gaps(self, call):
        with pytest.raises(TypeError):
            call(lambda a: [np.ones(24, np.float32)[::2], *a[1:]])

    def test_an_array_that_is_not_aligned(self, call):
        with pytest.raises(TypeError):
            call(lambda a: [np.zeros(49, np.uint8)[1:].view(np.float32), *a[1:]])

    def test_too_few_or_too_many_arguments(self, call):
        for change in (lambda a: a[:-1], lambda a: [*a, 1]):
            with pytest.raises(SystemError):
                call(change)

    def test_a_number_that_is_none(self, call):
        for numbers in (("1e-5", True), (1e-5, "True")):
            y = np.full(12, 7, np.float32)
            with pytest.raises(TypeError):
                call(lambda a, y=y, numbers=numbers: [a[0], y, *a[2:-2], *numbers])
            assert (y == 7).all()

    def test_no_memory(self, call):
        def greedy(arguments):
            arguments[2] = arguments[2].copy()
            arguments[2][CHUNK if call.steps.family == "columns" else ROWS] = 2**44
            return arguments

        with pytest.raises(MemoryError):
            call(greedy)


@pytest.mark.parametrize(
    ("numbers", "threads"), [([0], 3), ([1, 0], 2), ([0, 1, 2], 3), ([2, 0, 1], 3), ([1, 0], 5), ([2, 1, 0], 2)]
)
def test_every_range_is_run(numbers, threads):
    """In whatever order the threads come, and if other than as many come as were asked for."""
    x = np.arange(6 * 200, dtype=np.float32).reshape(6, 200)
    y = np.full(x.size, np.nan, np.float32)
    steps = walk(plain(resolve(x.shape, 0)), (x, x))
    assert steps.groups == 6
    state, parameters = np.empty((7, 6)), (np.ones(1, np.float32), np.zeros(1, np.float32))
    tables = steps.integers, steps.kept, steps.outer
    arguments = x.reshape(-1), y, *tables, np.empty((1, 4, 1)), state, *parameters, 1e-5, True
    coming, started = iter(numbers), []
    number = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: next(coming))
    size = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: len(numbers))
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(function, job, count, _):
        """What GOMP_parallel does, one thread after the other."""
        started.append(count)
        for _ in numbers:
            body(function)(job)

    addresses = (ctypes.cast(f, ctypes.c_void_p).value for f in (parallel, number, size))
    launch._entry(steps.family, layout_of(steps.family, arguments))(*addresses, threads, 0, 6, 4, *arguments)
    np.testing.assert_array_equal(y.reshape(x.shape), kn.normalize(x, 0))
    assert started == [threads]
    assert next(coming, None) is None
