"""What the compiler makes of the kernels: wide loads, nothing in local memory, no division inside a loop over data.

Needs numba-cuda[cu13] for its compiler, but no GPU.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.cuda.assemble import KERNELS, describe

TARGETS = ["8.0", "9.0"]
NAMES = [f"{family}: {name}" for family in ("runs", "lanes") for name in KERNELS]


@cache
def compiled(target):
    """What every kernel holds; compiled once for each target, without the simulator."""
    script = Path(__file__).with_name("assemble.py")
    done = subprocess.run(
        [sys.executable, str(script), target],
        env=dict(os.environ) | {"NUMBA_ENABLE_CUDASIM": "0"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_streams(target, name):
    kernel = compiled(target)[name]
    reduction, step, types, wide = KERNELS[name.partition(": ")[2]]
    assert kernel["target"] == f"sm_{target.replace('.', '')}"
    assert kernel["local"] == 0, "an array of a thread is not in registers"
    assert kernel["calls"] == 0, "a device function was not inlined"
    assert kernel["slow in loops"] == []
    assert kernel["bounds"], "without launch bounds a thread takes more registers than two blocks leave it"
    if wide > 1 and types["x"] != "uint8":
        assert 16 in kernel["read"]
        assert kernel["at once"] >= 4, "too few loads on the way at once"
    if step and wide > 1:
        assert kernel["written"] == [16]
    # Where blocks of a cell merge: one counter, fences around it, sums read past this multiprocessor's cache.
    assert kernel["atomics"] == (1 if reduction else 0)
    assert kernel["fences"] >= (2 if reduction else 0)
    assert (kernel["fresh"] > 0) == bool(reduction)


def test_what_the_tests_look_for_is_found_where_it_is():
    bad = """
.target sm_90
.maxntid 256, 1, 1
	.local .align 8 .b8 	__local_depot0[64];
$L__BB0_2:
	ld.global.v2.f32 	{%f1, %f2}, [%rd1];
	div.rn.f64 	%fd1, %fd2, %fd3;
	@%p1 bra 	$L__BB0_2;
	call.uni (retval0), helper, (param0);
"""
    found = describe(bad)
    assert (found["local"], found["calls"], found["read"], found["slow in loops"]) == (1, 1, [8], ["div.rn.f64"])
    assert not found["bounds"]
