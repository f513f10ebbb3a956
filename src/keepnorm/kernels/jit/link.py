"""Make object code a part of this process, by LLVM's linker alone: 30 ms in a process that has not loaded Numba."""

import ctypes
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any

import llvmlite.binding as llvm

_FASTCALL = 0x80  # METH_FASTCALL: the function takes an array of objects and their count

# What must live as long as the functions do, which is for ever.
_loaded: list[Any] = []

# A library keeps its name even if it could not be linked.
_numbers = count()


class _Method(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p))


def load(code: bytes, symbol: str) -> Callable[..., None]:
    """The Python function `symbol` of some object code.

    Raises
    ------
    RuntimeError
        If the code is not for this system, or needs what this process does not have.
    """
    linker = _linker()
    library = llvm.JITLibraryBuilder().add_object_img(code).add_current_process().export_symbol(symbol)
    tracker = library.link(linker, f"{symbol} {next(_numbers)}")
    method = _Method(symbol.encode(), tracker[symbol], _FASTCALL, None)
    _loaded.append((tracker, method))
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, (ctypes.POINTER(_Method), ctypes.c_void_p, ctypes.c_void_p)
    function: Callable[..., None] = make(ctypes.byref(method), None, None)
    return function


@cache
def _linker() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(codemodel="jitdefault", jit=True)
    return llvm.create_lljit_compiler(machine)


def processor() -> str:
    """The processor that code is made for: its name and its features, which LLVM does not know of every system."""
    try:
        features = llvm.get_host_cpu_features().flatten()
    except RuntimeError:
        features = ""
    return f"{llvm.get_host_cpu_name()} {features}"
