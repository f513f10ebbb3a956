"""Kernels give the right numbers however they are compiled: with loops as vectors or without, for any processor or for one."""

import ast
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from keepnorm import kernels

ROOT = Path(__file__).parents[1]

# Conversions of float16 are instructions of their own, and what LLVM calls without them no library here has.
F16 = {"NUMBA_CPU_FEATURES": "+avx,+f16c"} if platform.machine().lower() in ("x86_64", "amd64") else {}

COMPILATIONS = {
    "as shipped": {},
    "without loops as vectors": {"NUMBA_LOOP_VECTORIZE": "0"},
    "for any processor": {"NUMBA_CPU_NAME": "generic"} | F16,
}

# simd*.py build instructions in Python; they are not compiled themselves.
CPU = Path(kernels.__file__).parent / "cpu"
KERNELS = [path for path in sorted(CPU.glob("*.py")) if not path.name.startswith("simd")]

INSTRUCTIONS = {"least", "most"}  # intrinsics: their results are no memory


@pytest.fixture(scope="module")
def answers():
    """What tests/compilations.py says under each compilation, in processes side by side: exit status, output, errors."""
    command = [sys.executable, "-m", "tests.compilations"]
    started = {
        name: subprocess.Popen(
            command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name, settings in COMPILATIONS.items()
    }
    said = {name: process.communicate() for name, process in started.items()}
    return {name: (process.returncode, *said[name]) for name, process in started.items()}


@pytest.mark.parametrize("name", COMPILATIONS)
def test_numbers_are_right_in_every_compilation(answers, name):
    status, _, errors = answers[name]
    assert status == 0, errors[-2000:]


def test_narrow_results_have_the_same_bits_with_vectors_and_without(answers):
    bits = {name: json.loads(answers[name][1]) for name in ("as shipped", "without loops as vectors")}
    assert bits["as shipped"]
    assert bits["as shipped"] == bits["without loops as vectors"]


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_no_kernel_chooses_between_the_result_of_a_call_and_an_element_of_an_array(path):
    """LLVM makes one load of both, through a pointer that may go to either, and its loops of vectors get that wrong."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.IfExp) and {type(node.body), type(node.orelse)} == {ast.Call, ast.Subscript}:
            (call,) = (arm for arm in (node.body, node.orelse) if isinstance(arm, ast.Call))
            assert ast.unparse(call.func) in INSTRUCTIONS, f"{path.name}:{node.lineno}: {ast.unparse(node)}"
