"""No process ever ends because of a thread or a fork, whoever's threads they are, and the bits stay the same.

Every scene plays in a process of its own: what it guards against kills the process.
"""

import os
import sys

import pytest

PRELUDE = """
import hashlib, os, sys, threading, numpy as np, keepnorm as kn
x = np.random.default_rng(1).standard_normal((8, 32, 40, 40)).astype(np.float32)
w = np.linspace(0.5, 2, 32, dtype=np.float32)

def bits():
    digest = hashlib.sha256()
    for a in (kn.normalize(x, 1, w), kn.normalize(x, 3), kn.normalize(x, (0, 1)), kn.moments(x, ()).m2, kn.moments(x, 0).m2):
        digest.update(np.ascontiguousarray(a).tobytes())
    y, vjp = kn.normalize_vjp(x, 1, w)
    for a in vjp(x)[:2]:
        digest.update(a.tobytes())
    return digest.hexdigest()

def same(reference, times=3):
    for _ in range(times):
        if bits() != reference:
            raise SystemExit("other bits")

def in_threads(work, n=8):
    failed = []
    def guarded():
        try:
            work()
        except BaseException as error:
            failed.append(error)
    started = [threading.Thread(target=guarded) for _ in range(n)]
    for thread in started: thread.start()
    work()
    for thread in started: thread.join()
    if failed: raise failed[0]

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status:
        raise SystemExit(f"the child ended with {status}")
"""

SCENES = {
    "eight threads at once": "in_threads(lambda: same(reference))",
    "eight threads that ask for threads": """
def asking():
    with kn.threads(2):
        same(reference)
in_threads(asking)
""",
    "the first calls come from threads": None,
    "a fork after use": "in_child(lambda: same(reference))",
    "threads in a fork after use": "in_child(lambda: in_threads(lambda: same(reference)))",
    "a fork in a fork": "in_child(lambda: in_child(lambda: same(reference)))",
    "a fork that asks for threads": """
def asking():
    with kn.threads(2):
        same(reference)
in_child(asking)
""",
    "a fork from a thread": """
forking = threading.Thread(target=lambda: in_child(lambda: same(reference)))
forking.start()
forking.join()
same(reference)
""",
    "a fork while others compute": """
stop = threading.Event()
def work():
    while not stop.is_set(): same(reference, 1)
busy = [threading.Thread(target=work) for _ in range(3)]
for thread in busy: thread.start()
try:
    for _ in range(3): in_child(lambda: same(reference, 1))
finally:
    stop.set()
    for thread in busy: thread.join()
same(reference)
""",
    "worker processes": """
import multiprocessing
with multiprocessing.get_context("fork").Pool(3) as pool:
    if set(pool.starmap(bits, [()] * 6)) != {reference}: raise SystemExit("other bits")
same(reference)
""",
}
FIRST_IN_THREADS = """
answers = set()
in_threads(lambda: answers.add(bits()))
if len(answers) != 1: raise SystemExit("other bits")
print(answers.pop())
"""
WITHOUT_OPENMP = """
from keepnorm.kernels.jit import threads
threads._openmp = lambda: (0, 0, 0, False)
assert threads.layer() == "Python threads"
"""
LAYERS = {"the system's": "", "Python threads": WITHOUT_OPENMP}

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def reference(run_python):
    """The bits of a plain serial process."""
    return run_python(PRELUDE + "print(bits())", env={"NUMBA_NUM_THREADS": "1"}).strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scene", SCENES)
def test_survives(run_python, reference, scene, layer):
    play = SCENES[scene]
    code = FIRST_IN_THREADS if play is None else f"reference = bits()\n{play}\nprint(reference)"
    assert run_python(PRELUDE + LAYERS[layer] + code, env={"NUMBA_NUM_THREADS": "3"}).strip() == reference


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU OpenMP is used on Linux alone")
@pytest.mark.parametrize("started", [True, False])
def test_a_fork_whose_parent_had_started_the_threads_of_others(run_python, reference, started):
    """GNU OpenMP's threads do not come along in a fork, and who waits for them waits for ever; nobody tells us of them."""
    start = """
import ctypes
openmp = ctypes.CDLL("libgomp.so.1")
nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
openmp.GOMP_parallel(nothing, None, 3, 0)
"""
    child = """
import os
child = os.fork()
if child: raise SystemExit(os.waitpid(child, 0)[1] != 0)
"""
    work = PRELUDE + "from keepnorm.kernels.jit.threads import available, layer\nprint(bits(), available(), layer())"
    code = (start if started else "") + child + work
    bits, count, layer = run_python(code, env={"NUMBA_NUM_THREADS": "3"}, timeout=120).split(None, 2)
    assert (bits, int(count)) == (reference, 1 if started else 3)
    assert ("forked" in layer) == started


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_team_with_fewer_threads_than_asked_for(run_python, reference, limit):
    """What nobody has the number of is run by the others."""
    env = {"NUMBA_NUM_THREADS": "5", "OMP_THREAD_LIMIT": str(limit)}
    assert run_python(PRELUDE + "print(bits())", env=env).strip() == reference


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU OpenMP is used on Linux alone")
def test_calls_from_the_threads_of_a_team(run_python, reference):
    """The number that a caller has in somebody's team is not one among ours."""
    code = """
import ctypes
seen = []
def work(_):
    seen.append(bits())
    with kn.threads(2): seen.append(bits())
openmp = ctypes.CDLL("libgomp.so.1")
openmp.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work), None, 3, 0)
print(len(seen), *set(seen))
"""
    assert run_python(PRELUDE + code, env={"NUMBA_NUM_THREADS": "3"}).split() == ["6", reference]


@pytest.mark.parametrize("said", ["", "0", "-1", "many"])
def test_a_number_of_threads_that_is_none(run_python, reference, said):
    assert run_python(PRELUDE + "print(bits())", env={"NUMBA_NUM_THREADS": said}).strip() == reference


FIRST_CALL = """
import gc, signal, sys, numpy as np, keepnorm as kn
x = np.arange(12, dtype=np.float32).reshape(4, 3)
exact = (x - x.mean(0, dtype="f8")) / np.sqrt(x.var(0, dtype="f8") + 1e-5)
done, failed, inside = [], [], []

def check():
    if inside: return  # what it loads itself
    inside.append(1)
    try:
        m, z = kn.moments(x, 1), kn.moments(x, 1, where=x > -1)
        for seen in (m, z):
            assert seen.mean.tolist() == [4.5, 5.5, 6.5] and seen.var.tolist() == [11.25] * 3, (seen.mean, seen.var)
        for y in (kn.normalize(x, 1), kn.normalize_vjp(x, 1)[0]):
            assert np.abs(y - exact).max() <= 2.0**-22, y
        done.append(1)
    except Exception as error:
        failed.append(repr(error))
    finally:
        inside.pop()

class Finalized:
    def __init__(self): self.cycle = self
    def __del__(self): check()

class Interrupting:
    names = {"numba", "llvmlite", "llvmlite.binding", "numba.core.types", "numba.core.compiler", "numba.np.arrayobj"}
    def find_spec(self, name, *_):
        if name in self.names or name.startswith("keepnorm."):
            if "finalizer" in sys.argv: Finalized(); gc.collect()
            else: signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, lambda *_: check())
sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.parametrize("how", ["signal handler", "finalizer"])
@pytest.mark.parametrize("first", ["kn.normalize(x, 1)", "import numba"])
def test_calls_in_the_middle_of_loading_and_compiling_are_served(run_python, tmp_path, how, first):
    """Numba is half a module then, and so are ours; the same thread cannot wait for itself."""
    code = f"{FIRST_CALL}\n{first}\nassert done\nassert not failed, failed"
    run_python(code, how, env={"NUMBA_CACHE_DIR": str(tmp_path)}, timeout=500)


def test_a_first_call_at_the_end_of_the_interpreter(run_python, tmp_path):
    code = FIRST_CALL + "import atexit\natexit.register(lambda: (check(), print(failed)))\nsys.meta_path.pop(0)"
    assert run_python(code, env={"NUMBA_CACHE_DIR": str(tmp_path)}, timeout=500).strip() == "[]"


LIMITED = """
import resource
def limit(beyond):
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (beyond << 20),) * 2)
with kn.threads(1): bits()  # all that is to be loaded
from keepnorm.kernels.jit.threads import available, most
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("beyond", [24, 64, 4096])
def test_fewer_threads_where_there_is_no_memory_for_all(run_python, reference, beyond, layer):
    """GNU OpenMP ends the process when the system does not start a thread."""
    code = PRELUDE + LAYERS[layer] + LIMITED + f"limit({beyond})\nprint(bits(), most(), available())"
    bits, most, count = run_python(code, env={"NUMBA_NUM_THREADS": "24"}).split()
    assert bits == reference
    assert 1 <= int(most) <= 24
    assert most == count
    assert int(most) < 24 or beyond == 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_threads_with_large_stacks_are_fewer(run_python, reference):
    code = PRELUDE + LIMITED + "limit(1024)\nprint(bits(), most())"
    env = {"NUMBA_NUM_THREADS": "24", "OMP_STACKSIZE": "200M"}
    bits, most = run_python(code, env=env).split()
    assert bits == reference
    assert int(most) < 6


def test_every_task_is_run_once_where_no_thread_can_be_started(run_python):
    run_python(
        "import threading\n"
        "from keepnorm.kernels.jit import threads\n"
        "threads.most = lambda: 8\n"
        "start, done = threading.Thread.start, []\n"
        "def refuse(self): raise RuntimeError('no thread')\n"
        "threading.Thread.start = refuse\n"
        "threads.run_apart(5, done.append)\n"
        "assert sorted(done) == [0, 1, 2, 3, 4], done\n"
        "threading.Thread.start = start\n"
        "threads.run_apart(5, done.append)  # what the pool remembers of the first call runs nothing twice\n"
        "threads._pool().shutdown()\n"
        "assert sorted(done) == sorted([*range(5)] * 2), done\n"
    )


def test_an_error_of_a_task_comes_when_all_of_them_have_ended(run_python):
    run_python(
        "import time\n"
        "from keepnorm.kernels.jit import threads\n"
        "threads.most, done = lambda: 4, []\n"
        "def work(t):\n"
        "    if t == 0: raise MemoryError\n"
        "    time.sleep(0.1); done.append(t)\n"
        "try: threads.run_apart(4, work)\n"
        "except MemoryError: assert sorted(done) == [1, 2, 3], done\n"
        "else: raise SystemExit('no error')\n"
    )


def test_at_the_end_of_the_interpreter(run_python, reference):
    """No thread can be started any more when `atexit` functions run."""
    for layer in LAYERS.values():
        code = PRELUDE + layer + "import atexit\natexit.register(lambda: print(bits()))"
        assert run_python(code, env={"NUMBA_NUM_THREADS": "3"}).strip() == reference


def test_a_scene_can_fail(run_python):
    """The prelude notices other bits and a child that dies: the tests above are able to fail."""
    for code in ("same('nonsense')", "in_child(os.abort)", "in_threads(lambda: same('nonsense'))"):
        with pytest.raises(AssertionError, match="exit 1"):
            run_python(PRELUDE + code)


class TestThreads:
    def test_are_given_back(self, run_python):
        run_python(
            "import keepnorm as kn\n"
            "from keepnorm.kernels.jit.threads import available\n"
            "before = available()\n"
            "with kn.threads(1):\n"
            "    assert available() == 1\n"
            "    with kn.threads(2): assert available() == min(2, before)\n"
            "    assert available() == 1\n"
            "assert available() == before\n"
            "try:\n"
            "    with kn.threads(1): raise KeyError\n"
            "except KeyError: pass\n"
            "assert available() == before\n"
        )

    def test_belong_to_the_thread_that_asks(self, run_python):
        run_python(
            "import threading, keepnorm as kn\n"
            "from keepnorm.kernels.jit.threads import available\n"
            "seen = []\n"
            "with kn.threads(2):\n"
            "    other = threading.Thread(target=lambda: seen.append(available()))\n"
            "    other.start(); other.join()\n"
            "assert seen == [1], seen\n"
        )

    def test_are_one_after_a_fork(self, run_python):
        run_python(
            "import os, numpy as np, keepnorm as kn\n"
            "from keepnorm.kernels.jit.threads import available\n"
            "kn.normalize(np.ones((100, 1000), np.float32), 0)\n"
            "child = os.fork()\n"
            "if child == 0: os._exit(available() != 1)\n"
            "raise SystemExit(os.waitpid(child, 0)[1] != 0)\n"
        )
