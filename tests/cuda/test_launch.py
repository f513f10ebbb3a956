"""How a launch hands its arguments to the driver, outside the simulator: no GPU is needed, since another function stands in.

A kernel itself is launched on a device by tests/gpu alone.
"""

import pytest

HEAD = """
import ctypes, struct, threading
from types import SimpleNamespace
from keepnorm.kernels.cuda import device
from keepnorm.kernels.cuda.common import Arguments

ERRORS = device.driver.CUresult
calls = []

def arguments_at(address):
    '''What a kernel would receive: every entry of the table points to 8 bytes.'''
    table = (ctypes.c_void_p * len(Arguments._fields)).from_address(address)
    raw = [ctypes.string_at(entry, 8) for entry in table]
    kinds = "q" * device.POINTERS + "d" * device.REALS + "q" * device.WHOLES
    return Arguments(*(struct.unpack("=" + kind, values)[0] for kind, values in zip(kinds, raw, strict=True)))

def stand_in(answer):
    def launch(handle, gx, gy, gz, tx, ty, tz, shared, stream, table, extra):
        calls.append((handle, (gx, gy, gz), (tx, ty, tz), shared, stream, arguments_at(table), extra))
        return (answer(),)
    device.driver = SimpleNamespace(cuLaunchKernel=launch, CUresult=ERRORS)

GIVEN = Arguments(plan=2**62, x=-8, counters=7, n=1.5, eps=1e-5, groups=3, mode=9)
kernel = device.Loaded("a handle", None)
"""

PROGRAMS = {
    "arguments arrive as they were given": """
stand_in(lambda: ERRORS.CUDA_SUCCESS)
device.launch_on(kernel, 2**31 - 1, 256, 0, 5, GIVEN)
assert calls == [("a handle", (2**31 - 1, 1, 1), (256, 1, 1), 0, 5, GIVEN, 0)], calls
device.launch_on(kernel, 1, 256, 0, 0, GIVEN._replace(x=16))
assert calls[1][5].x == 16
assert len(device._rooms) == 1
""",
    "a launch within a launch has room of its own": """
def again():
    if len(calls) == 1:
        before = calls[0][5]
        device.launch_on(kernel, 1, 256, 0, 5, GIVEN._replace(x=1, n=2.0))
        assert calls[0][5] == before == GIVEN
    return ERRORS.CUDA_SUCCESS
stand_in(again)
device.launch_on(kernel, 1, 256, 0, 5, GIVEN)
assert [call[5].x for call in calls] == [-8, 1]
assert len(device._rooms) == 2
""",
    "threads do not share their room": """
def wait():
    barrier.wait()
    return ERRORS.CUDA_SUCCESS
barrier = threading.Barrier(4)
stand_in(wait)
threads = [threading.Thread(target=device.launch_on, args=(kernel, 1, 256, 0, 5, GIVEN._replace(x=i))) for i in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
assert sorted(call[5].x for call in calls) == [0, 1, 2, 3]
""",
    "a thread that has not used the device yet gets its context": """
current = []
device.Device = lambda number: SimpleNamespace(set_current=lambda: current.append(number))
stand_in(lambda: ERRORS.CUDA_SUCCESS if current else ERRORS.CUDA_ERROR_INVALID_CONTEXT)
device.launch_on(kernel, 1, 256, 3, 5, GIVEN)
assert current == [3] and calls[0] == calls[1]
""",
    "what the driver refuses is an error with its name": """
from keepnorm.engines.cuda.session import explained
stand_in(lambda: ERRORS.CUDA_ERROR_NOT_INITIALIZED)
for context, words in ((threading.Lock(), "CUDA_ERROR_NOT_INITIALIZED"), (explained(), "after a fork")):
    try:
        with context:
            device.launch_on(kernel, 77, 256, 0, 5, GIVEN)
    except RuntimeError as error:
        assert "77 blocks" in str(error) and words in str(error), error
    else:
        raise AssertionError("no error")
assert len(device._rooms) == 1
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_launch(name, run_python):
    run_python(HEAD + PROGRAMS[name], env={"NUMBA_ENABLE_CUDASIM": "0"})
