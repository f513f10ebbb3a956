"""Turn the kernels of a family into machine code, with Numba.

A kernel is a function `tasks` and all that it calls, inlined into one function that Python can call (entry.py). None of it
uses Numba's runtime, so that the code needs nothing but the C library and Python's own functions: it is kept on disk and
runs in later processes without Numba (link.py).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

import llvmlite.binding as llvm
from numba import config, from_dtype, njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, DefaultPassBuilder
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import overload

from keepnorm.kernels.jit.entry import build
from keepnorm.kernels.jit.signature import Layout

F = TypeVar("F", bound=Callable[..., Any])

# Enough to vectorise sums. Not "nnan" and "ninf": NaN and Inf exist.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


_UNUSED = {"inline_closure_likes", "generic_rewrites", "nopython_rewrites", "inline_inlinables", "literal_unroll"}


# Families whose kernels are faster for float32 with vectors of 256 bits.
_SHORT = {"columns", "columns_elementwise", "rows_elementwise"}


def _shorten_vectors(module: Any) -> None:
    """Tell LLVM to make vectors of 256 bits, also of those that it is given in 512.

    It takes the caller's word for both, but only where every function that it inlines gives the first: then none needs more.
    """
    for function in module.functions:
        for attribute in ('"min-legal-vector-width"="0"', '"prefer-vector-width"="256"'):
            set.add(function.attributes, attribute)  # llvmlite's own `add` knows no attributes with values


class _NoMachineCode:
    """Takes the place of the code generator for what is never run on its own."""

    @staticmethod
    def set_env(name: str, environment: Any) -> None:
        """There is no code that would look the environment up."""


class _Inlined(JITCodeLibrary):
    """A function that is inlined into all its callers: optimised and translated with them, and not alone before.

    Numba does both for every function at every level of calls, which was a quarter of the time of a first call.
    """

    codegen = _NoMachineCode

    def add_ir_module(self, ir_module: Any) -> None:
        _shorten_vectors(ir_module)
        super().add_ir_module(ir_module)

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _InlineCompiler(Compiler):
    """Numba's compiler, with `_Inlined` for the result."""

    def __init__(self, typing_context: Any, target_context: Any, _: None, *rest: Any) -> None:
        library = _Inlined(target_context.codegen(), "inlined")
        super().__init__(typing_context, target_context, library, *rest)

    def define_pipelines(self) -> list[Any]:
        """Numba's passes, without those for what no kernel has: closures, tuples' constant indices, expressions of arrays."""
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        manager.passes = [step for step in manager.passes if step[0].name() not in _UNUSED]
        manager.finalize()
        return [manager]


class _Object(JITCodeLibrary):
    """Optimised like everything of Numba's, and then object code instead of a part of this process."""

    code: bytes

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self.code = _machine(self._codegen).emit_object(self._final_module)
        self._finalized = True


def _machine(codegen: Any) -> Any:
    """The processor as LLVM sees it, without an extension whose conversion from float16 takes longer than the older one.

    Sums of float16 take 1.8 times as long with it, since LLVM then goes to float64 in one slow step; nothing else that it
    has is of use here.
    """
    options: dict[str, Any] = {"opt": config.OPT}
    codegen._customize_tm_options(options)
    if "+avx512fp16" not in options["features"]:
        return codegen._tm
    options["features"] += ",-avx512fp16"
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(**options)


# Inlined, since a call with eight arrays hands over sixty words; without wrappers, since Python never calls it; without
# Numba's runtime, since nothing inside owns an array.
_INSIDE = {
    "nogil": True,
    "error_model": "numpy",
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": _InlineCompiler,
}


def helper(function: F) -> F:
    """Decorate a part of a kernel. Its sums may be reordered, so that they become vectors."""
    inner: F = njit(fastmath=FASTMATH, **_INSIDE)(function)
    return inner


def exact(function: F) -> F:
    """Decorate a part of a kernel that must keep the order of its operations, and `tasks` itself."""
    # Said explicitly: Numba hands the fastmath of a caller down to callees that do not say theirs.
    inner: F = njit(fastmath=False, **_INSIDE)(function)
    return inner


def variant(function: Callable[..., Any], **options: Any) -> Callable[[F], F]:
    """Decorate what gives the code of `function` for the types of its arguments: a part of a kernel like any other."""
    decorate: Callable[[F], F] = overload(function, jit_options=_INSIDE, **options)
    return decorate


def object_code(family: str, layout: Layout, symbol: str) -> bytes:
    """Object code with a Python function of the name `symbol` that runs the tasks of a family for one layout of arguments."""
    with global_compiler_lock, _enabled():
        return _object_code(family, layout, symbol)


@contextmanager
def _enabled() -> Iterator[None]:
    """Numba compiles inside, also where NUMBA_DISABLE_JIT wants Python functions: our kernels are none."""
    config.reload_config()  # what the environment says now, which Numba would ask for in the middle
    disabled, config.DISABLE_JIT = config.DISABLE_JIT, 0
    try:
        yield
    finally:
        config.DISABLE_JIT = disabled


def _object_code(family: str, layout: Layout, symbol: str) -> bytes:
    kernel: Any = import_module(f"keepnorm.kernels.cpu.{family}").tasks
    kinds = tuple(_type_of(item) for item in layout)
    kernel.compile((types.int64, types.int64, types.int64, *kinds))
    (compiled,) = (c for c in kernel.overloads.values() if c.signature.args[3:] == kinds)
    context = compiled.target_context
    library = _Object(context.codegen(), symbol)
    module = build(context, library.create_ir_module(symbol), compiled.fndesc, kinds, symbol)
    if _has_short_vectors(family, kinds):
        _shorten_vectors(module)
    library.add_ir_module(module)
    library.add_linking_library(compiled.library)
    library.finalize()
    return library.code


def _has_short_vectors(family: str, kinds: tuple[Any, ...]) -> bool:
    """Whether the vectors of a kernel are shorter than the longest ones of the processor.

    Those of 512 bits take a clock that an Intel core reaches half a millisecond after it wakes, and convert float32 to
    float64 on one port where those of 256 have two. With the short ones, calls by themselves take: layer norm of (4096,768)
    0.60 ms and not 0.73, batch norm of (256,1024) 80 us and not 85. Halves take a seventh
    longer with them, small integers a third, runs of 196 values a tenth. On AMD's processors they have not been measured.
    """
    is_single = kinds[0].dtype is types.float32
    return is_single and family in _SHORT and not llvm.get_host_cpu_name().startswith("znver")


def _type_of(item: Any) -> Any:
    """Numba's type of one argument."""
    if isinstance(item, tuple):
        dtype, ndim = item
        return types.Array(from_dtype(dtype), ndim, "C")
    return {int: types.int64, float: types.float64, bool: types.boolean}[item]
