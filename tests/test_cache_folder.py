"""Code from a folder is run, so a folder or a file that others can write to is not read; what is left behind goes."""

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import keepnorm
from keepnorm.kernels.jit import cache, compile, folder
from keepnorm.kernels.jit.signature import RANKS
from tests.test_cache import CALL

pwd = pytest.importorskip("pwd", reason="POSIX")
pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owner and no mode here")
as_root = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root can give a file away")

SOMEBODY = 54321


NAME, CODE = "family_0", b"code"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder for NUMBA_CACHE_DIR with an entry, in which the next call of `read` looks."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(folder, "find", folder.find.__wrapped__)
    cache.write(NAME, CODE)
    assert cache.read(NAME) == CODE
    return tmp_path / "cache"


def entries(place):
    return sorted(p for p in place.rglob("*") if p.is_file())


FOLDERS = {
    "a folder that everybody can write to": lambda p: (p / "keepnorm").chmod(0o777),
    "a sticky folder that everybody can write to": lambda p: (p / "keepnorm").chmod(0o1777),
    "a folder that the group can write to": lambda p: (p / "keepnorm").chmod(0o770),
    "a folder in one that everybody can write to": lambda p: p.chmod(0o777),
    "a folder far below one that everybody can write to": lambda p: p.parent.chmod(0o777),
    "a folder of another user": lambda p: os.chown(p, SOMEBODY, -1),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=as_root if "another user" in n else []) for n in FOLDERS])
def test_no_code_is_run_from(place, name, caplog):
    before = sorted(place.rglob("*"))
    FOLDERS[name](place)
    assert cache.read(NAME) is None
    (line,) = caplog.messages
    assert str(place.parent) in line
    cache.write(NAME, CODE)
    assert sorted(place.rglob("*")) == before, "nothing is written or made there either"


def test_a_first_call_says_so_in_one_line_and_compiles(tmp_path):
    tmp_path.chmod(0o777)
    env = dict(os.environ) | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CALL], env=env, capture_output=True, text=True, timeout=240, check=True)
    assert int(done.stdout)
    assert len(done.stderr.splitlines()) == 1
    assert f"{tmp_path} can be written by other users" in done.stderr


def test_a_sticky_folder_for_everybody_may_have_ours_in_it(place):
    place.chmod(0o1777)
    assert cache.read(NAME) == CODE


@as_root
def test_two_users_of_one_folder_have_one_each(place):
    place.chmod(0o1777)
    os.chown(place / "keepnorm", SOMEBODY, -1)
    assert cache.read(NAME) is None
    cache.write(NAME, CODE)
    assert cache.read(NAME) == CODE
    assert [p.parent.name for p in entries(place)] == ["keepnorm", f"keepnorm-{os.geteuid()}"]


@as_root
@pytest.mark.usefixtures("place")
def test_a_folder_of_root_serves_everybody(monkeypatch):
    """As in the image of a container, which is made by root and used by others."""
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    assert cache.read(NAME) == CODE


def test_a_folder_is_made_for_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new" / "cache"))
    before = os.umask(0)
    try:
        assert folder.find.__wrapped__() == (str(tmp_path / "new" / "cache" / "keepnorm"), "")
    finally:
        os.umask(before)
    assert all(p.stat().st_mode & 0o077 == 0 for p in (tmp_path / "new", *(tmp_path / "new").rglob("*")))


def by_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def by_folder(path):
    path.unlink()
    path.mkdir()


FILES = {
    "everybody can write to": lambda p: p.chmod(0o666),
    "the group can write to": lambda p: p.chmod(0o620),
    "belongs to another user": lambda p: os.chown(p, SOMEBODY, -1),
    "is a link": by_link,
    "is a pipe": by_pipe,
    "is a folder": by_folder,
    "is huge": lambda p: os.truncate(p, 1 << 40),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=as_root if "another user" in n else []) for n in FILES])
def test_no_code_is_run_from_a_file_that(place, name):
    (path,) = entries(place)
    FILES[name](path)
    assert cache.read(NAME) is None
    cache.write(NAME, CODE)
    assert cache.read(NAME) == (None if name == "is a folder" else CODE), "a good one takes its place"


def test_an_entry_under_another_name_is_none(place):
    (path,) = entries(place)
    path.rename(cache._path("another"))
    assert cache.read("another") is None


@pytest.mark.parametrize("home", ["/dev/null", "/dev/null/home", None])
def test_a_user_without_a_home_has_a_temporary_folder(home, tmp_path, monkeypatch, caplog):
    """As in a container: HOME is not set or leads nowhere, and the system does not know the user."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert folder.find.__wrapped__() == (str(tmp_path / f"keepnorm-{os.geteuid()}"), "")
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    place, fault = folder.find.__wrapped__()
    assert place == ""
    assert "/dev/null/keepnorm" in fault
    assert not caplog.messages, "nobody is told of what is only missing"


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """A function that puts a file of so many bytes into the folder, used some seconds ago, and one for the names there."""
    monkeypatch.setattr(folder, "find", lambda: (str(tmp_path), ""))
    monkeypatch.setattr(cache, "_ALL", 10_000)

    def put(name, size, age):
        path = tmp_path / name
        path.write_bytes(bytes(size))
        os.utime(path, (time.time() - age,) * 2)

    return put, lambda: {p.name for p in tmp_path.iterdir()}


DAY = 86400


def test_what_dead_writers_left_goes(ours):
    put, names = ours
    for name, age in (("tmpold.part", DAY), ("tmpnew.part", 10), ("notes.txt", 1000 * DAY)):
        put(name, 10, age)
    cache.write("new", b"code")
    assert names() == {"tmpnew.part", "notes.txt", cache._path("new").name}


def test_the_folder_is_bounded_and_entries_of_other_stamps_go_first(ours):
    put, names = ours
    mine = cache.stamp()[:16]
    put("other_new.o", 4000, 1)
    put("other_old.o", 4000, DAY)
    put("other_unused.o", 10, 100 * DAY)
    put(f"{mine}_old.o", 4000, 200 * DAY)
    cache.write("new", b"code")
    assert names() == {"other_new.o", f"{mine}_old.o", f"{mine}_new.o"}
    put(f"{mine}_newer.o", 4000, DAY)
    cache.write("new", b"code")
    assert names() == {f"{mine}_newer.o", f"{mine}_old.o", f"{mine}_new.o"}
    put(f"{mine}_newest.o", 4000, 1)
    cache.write("new", b"code")
    assert names() == {f"{mine}_newer.o", f"{mine}_newest.o", f"{mine}_new.o"}


@pytest.mark.usefixtures("ours")
def test_an_entry_that_is_used_stays_new():
    cache.write("new", b"code")
    path = cache._path("new")
    os.utime(path, (time.time() - 100 * DAY,) * 2)
    assert cache.read("new") == b"code"
    assert time.time() - path.stat().st_mtime < DAY


def test_doctor_tells_why_there_is_no_folder(run_python, tmp_path):
    tmp_path.chmod(0o777)
    code = "from keepnorm.cli.main import main\nmain(['doctor'])"
    lines = run_python(code, env={"NUMBA_CACHE_DIR": str(tmp_path)}).splitlines()
    (line,) = (line for line in lines if line.startswith("cache folder"))
    assert f"{tmp_path} can be written by other users" in line


CHANGE = """
import sys
from pathlib import Path
from keepnorm.kernels.jit import cache
root = Path(sys.argv[1])
def stamp():
    cache.stamp.cache_clear()
    return cache.stamp()
for name in sys.argv[2:]:
    before, path = stamp(), root / name
    text = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((text or b"") + b"# another line")
    print(name, int(stamp() != before))
    path.write_bytes(text) if text is not None else path.unlink()
    assert stamp() == before
"""


def imported(path, root):
    """The files of keepnorm that a file imports, at any depth of nesting."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keepnorm."):
            module = root.joinpath(*node.module.split(".")[1:])
            for file in (module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)):
                if file.is_file():
                    yield file


def made_of(starts, root):
    """The files that some files import, directly or not, and these themselves."""
    known, new = set(), set(starts)
    while new:
        known |= new
        new = {file for path in new for file in imported(path, root)} - known
    return sorted(path.relative_to(root).as_posix() for path in known)


def test_one_changed_line_of_what_kernels_are_made_of_compiles_anew(run_python, tmp_path):
    """Whatever a family of kernels and the compiler import from here, in whatever folder."""
    root = Path(keepnorm.__file__).parent
    shutil.copytree(root, tmp_path / "keepnorm", ignore=shutil.ignore_patterns("__pycache__"))
    of_cpu = [p for p in (root / "kernels").rglob("*.py") if "cuda" not in p.relative_to(root).as_posix()]
    starts = [p for p in of_cpu if p.parent.name == "cpu" and p.stem in RANKS] + [Path(compile.__file__)]
    assert len(starts) == len(RANKS) + 1
    needed = made_of(starts, root)
    assert len(needed) > 15
    new, others = ["kernels/new.py", "kernels/of_processors/new.py"], ["kernels/cuda_new.py", "kernels/cuda/new.py", "demo.py"]
    out = run_python(CHANGE, tmp_path / "keepnorm", *needed, *new, *others, env={"PYTHONPATH": str(tmp_path)})
    changes = dict.fromkeys((*needed, *new), "1") | dict.fromkeys(others, "0")
    assert dict(line.split() for line in out.splitlines()) == changes


@pytest.mark.parametrize("setting", [f"NUMBA_{name}" for name in ("OPT", "LOOP_VECTORIZE", "CPU_NAME", "BOUNDSCHECK")])
def test_a_setting_that_changes_machine_code_compiles_anew(setting, monkeypatch):
    before = cache.stamp.__wrapped__()
    monkeypatch.setenv(setting, "something else")
    assert cache.stamp.__wrapped__() != before
