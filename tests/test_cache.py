"""The compiled kernels are kept on disk where that is possible, and where it is not, nobody hears of it."""

import os
import stat
from pathlib import Path

import pytest

from keepnorm.kernels import cache

# A first call with every warning an error, and how many functions Numba has compiled for it.
CALL = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np, keepnorm as kn
from numba.core import event
class Listener(event.Listener):
    compiled = 0
    def on_start(self, _): Listener.compiled += 1
    def on_end(self, _): pass
event.register("numba:compile", Listener())
x = np.arange(12, dtype=np.float32).reshape(4, 3)
y = kn.normalize(x, 1)
assert np.abs(y.astype(np.float64).mean(0)).max() < 1e-6, y
assert np.abs(y.std(0) - 1).max() < 1e-5, y
print(Listener.compiled)
"""


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


class TestFolderThatCannotBeWritten:
    def test_is_no_error(self, run_python, tmp_path):
        (tmp_path / "a file").write_text("not a folder")
        run_python(CALL, env={"NUMBA_CACHE_DIR": str(tmp_path / "a file" / "cache")})

    def test_a_home_that_does_not_exist(self, run_python):
        run_python(CALL, env={"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "/dev/null"})

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder(self, run_python, tmp_path):
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        try:
            run_python(CALL, env={"NUMBA_CACHE_DIR": str(tmp_path)})
            assert entries(tmp_path) == []
        finally:
            tmp_path.chmod(stat.S_IRWXU)

    def test_a_folder_that_vanishes_after_the_import(self, run_python, tmp_path):
        vanish = "import keepnorm.kernels.runs, shutil; shutil.rmtree(sys.argv[1])\nx ="
        run_python(CALL.replace("x =", vanish, 1), tmp_path / "cache", env={"NUMBA_CACHE_DIR": str(tmp_path / "cache")})

    def test_a_disk_that_is_full(self, run_python, tmp_path):
        """Writing ends as on a full disk, with an entry half written."""
        full = """
import errno, os
def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
os.replace = full
"""
        run_python(full + CALL, env={"NUMBA_CACHE_DIR": str(tmp_path)})


def test_entries_that_are_damaged_are_compiled_anew(run_python, warm, tmp_path):
    """Emptied, cut short, or overwritten: whatever a crash leaves behind."""
    for number, source in enumerate(entries(warm)):
        target = tmp_path / source.relative_to(warm)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = source.read_bytes()
        target.write_bytes((b"", data[: len(data) // 2], b"\x80\x04garbage")[number % 3])
    assert int(run_python(CALL, env={"NUMBA_CACHE_DIR": str(tmp_path)})) > 0


def test_what_is_always_inlined_has_no_machine_code_of_its_own(monkeypatch):
    monkeypatch.setattr(cache, "folder", str)  # '': nothing is kept

    @cache.helper
    def doubled(value):
        return 2.0 * value

    @cache.entry()
    def kernel(value):
        return doubled(value) + 1.0

    assert kernel(3.0) == 7.0
    (inside,), (whole,) = doubled.overloads.values(), kernel.overloads.values()
    engine = whole.library.codegen._engine
    assert engine.is_symbol_defined(whole.fndesc.llvm_func_name)
    assert not engine.is_symbol_defined(inside.fndesc.llvm_func_name)
