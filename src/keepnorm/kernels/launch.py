"""Run the tasks of a stage on one thread or on several."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from numba import prange, typeof, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy import ndarray

from keepnorm.kernels.cache import entry

_addresses: dict[Any, int] = {}
_tasks: dict[str, Callable[..., None]] = {}


def run(family, threads, count, stage, *arguments):
    """Run all tasks of a stage, each thread a contiguous range of them.

    Parameters
    ----------
    family : str
        A module of kernels with a function ``tasks(stage, first, last, x, y, ...)``, loaded when it is first needed.
    threads : int
        On how many threads.
    count : int
        How many tasks there are.
    stage : int
        Which stage of the family.
    *arguments
        What `tasks` takes after its range.
    """
    tasks = _tasks.get(family)
    if tasks is None:
        tasks = _tasks[family] = import_module(f"keepnorm.kernels.{family}").tasks
    if threads == 1:
        tasks(stage, 0, count, *arguments)
        return
    key = (family, *(a.dtype for a in arguments if type(a) is ndarray))
    address = _addresses.get(key)
    if address is None:
        address = _addresses[key] = _address(tasks, (stage, 0, count, *arguments))
    _parallel(address, threads, count, stage, *arguments)


def _address(kernel, arguments):
    """Where the machine code of a kernel lies, compiled for these arguments."""
    signature = tuple(typeof(a) for a in arguments)
    kernel.compile(signature)
    compiled_kernel = kernel.overloads[signature]
    return compiled_kernel.library.get_pointer_to_function(compiled_kernel.fndesc.llvm_func_name)


@intrinsic
def _call(typing, address, arguments):
    """Call a compiled kernel by its address: linked by name, it would be compiled again with its caller, for seconds."""

    def generate(context, builder, signature, values):
        kinds = signature.args[1].types
        function = context.call_conv.get_function_type(signature.return_type, kinds)
        pointer = builder.inttoptr(values[0], function.as_pointer())
        items = cgutils.unpack_tuple(builder, values[1], len(kinds))
        status, result = context.call_conv.call_function(builder, pointer, signature.return_type, kinds, items)
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return result

    return types.none(address, arguments), generate


@entry(parallel=True)
def _parallel(address, threads, count, stage, *arguments):
    for t in prange(threads):
        _call(address, (stage, t * count // threads, (t + 1) * count // threads, *arguments))
