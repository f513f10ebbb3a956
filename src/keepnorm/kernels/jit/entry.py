"""The Python function around a kernel, in LLVM's language: it reads NumPy arrays where they lie and starts the threads.

``entry(parallel, number, size, threads, first, last, stage, *arguments)`` runs the tasks [first, last) of a stage. `parallel`,
`number` and `size` are the addresses of OpenMP's GOMP_parallel, omp_get_thread_num and omp_get_num_threads, or `parallel` is 0
for this thread alone. Where the kernel takes a flat array, the entry takes one of any rank whose values lie side by side in
order.

The tasks are cut into one contiguous range for each thread. A thread runs the range of its own number, in every stage and
every call, so that it finds in its core's cache what it left there: nobody runs the range of one that is late, as the first to
wake would after each pause, and the next call would have to bring all of it from the other core. OpenMP may start fewer
threads than it was asked for; then each runs every so many ranges.

A call takes 0.3 microseconds beside its tasks, Numba's own wrapper 1.2, and a parallel loop of Numba's 0.7 s more to compile.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import populate_array

_BYTE = ir.IntType(8)
_INT = ir.IntType(32)
_WORD = ir.IntType(64)
_POINTER = _BYTE.as_pointer()
_VOID = ir.VoidType()

# Fields of a PyArrayObject, in bytes after the head that all Python objects have: NumPy's ABI, stable since 1.0.
_DATA, _NDIM, _SHAPE, _STRIDES, _FLAGS = 0, 8, 16, 24, 48
_HEAD = object.__basicsize__
_PLAIN = 0x101  # C-contiguous and aligned

# Words of a job before its arguments.
_NUMBER, _TEAM, _THREADS, _FIRST, _LAST, _FAILED, _STAGE, _ARGUMENTS = range(8)
_FIXED = 7  # arguments of the entry before those of the kernel


def build(context: Any, module: Any, kernel: Any, kinds: tuple[Any, ...], symbol: str) -> Any:
    """Write the function into a module, and give the module back."""
    for name in ("NRT_incref", "NRT_decref"):
        _nothing(module, name)
    job = ir.ArrayType(_WORD, _ARGUMENTS + sum(_words(kind) for kind in kinds))
    _entry(context, module, _body(context, module, kernel, kinds, symbol), job, kinds, symbol)
    return module


def _words(kind: Any) -> int:
    return 1 + 2 * kind.ndim if isinstance(kind, types.Array) else 1


def _function(module: Any, name: str, result: Any, *arguments: Any) -> Any:
    """A function of the C library, of Python, or of this module."""
    return ir.Function(module, ir.FunctionType(result, arguments), name)


def _nothing(module: Any, name: str) -> None:
    """A function that does nothing: in the place of Numba's counting of references, since no array here has an owner."""
    function = _function(module, name, _VOID, _POINTER)
    function.attributes.add("alwaysinline")
    ir.IRBuilder(function.append_basic_block("start")).ret_void()


def _at(builder: Any, pointer: Any, place: int, kind: Any) -> Any:
    """What lies so many bytes after a pointer."""
    there = builder.gep(pointer, [ir.Constant(_WORD, place)])
    return builder.load(builder.bitcast(there, kind.as_pointer()))


def _fits(builder: Any, array: Any, ndim: int) -> Any:
    """Whether an array has the layout that the kernel was made for, as far as one can see at once."""
    flags = builder.and_(_at(builder, array, _HEAD + _FLAGS, _INT), ir.Constant(_INT, _PLAIN))
    plain = builder.icmp_signed("==", flags, ir.Constant(_INT, _PLAIN))
    if ndim == 1:
        return plain
    rank = _at(builder, array, _HEAD + _NDIM, _INT)
    return builder.and_(plain, builder.icmp_signed("==", rank, ir.Constant(_INT, ndim)))


def _size(builder: Any, array: Any) -> Any:
    """How many values an array of any rank has."""
    rank = builder.zext(_at(builder, array, _HEAD + _NDIM, _INT), _WORD)
    sizes = builder.bitcast(_at(builder, array, _HEAD + _SHAPE, _POINTER), _WORD.as_pointer())
    total = cgutils.alloca_once_value(builder, ir.Constant(_WORD, 1))
    with cgutils.for_range(builder, rank, intp=_WORD) as loop:
        size = builder.load(builder.gep(sizes, [loop.index]))
        builder.store(builder.mul(builder.load(total), size), total)
    return builder.load(total)


def _body(context: Any, module: Any, kernel: Any, kinds: tuple[Any, ...], symbol: str) -> Any:
    """``void body(job)``: run the range of this thread, and those behind it that no thread of the team has the number of."""
    body = _function(module, f"{symbol}_ranges", _VOID, _POINTER)
    body.linkage = "internal"
    body.attributes.add("noinline")
    builder = ir.IRBuilder(body.append_basic_block("start"))
    words = builder.bitcast(body.args[0], _WORD.as_pointer())

    def place(number: int) -> Any:
        return builder.gep(words, [ir.Constant(_WORD, number)])

    number, team, threads, first, last, stage = (
        builder.load(place(n)) for n in (_NUMBER, _TEAM, _THREADS, _FIRST, _LAST, _STAGE)
    )
    values, at = [], _ARGUMENTS
    for kind in kinds:
        given = [builder.load(place(at + n)) for n in range(_words(kind))]
        values.append(_value(context, builder, kind, given))
        at += len(given)
    one, count = ir.Constant(_WORD, 1), builder.sub(last, first)
    mine, every = (cgutils.alloca_once_value(builder, ir.Constant(_WORD, n)) for n in (0, 1))
    with builder.if_then(builder.icmp_signed("!=", number, ir.Constant(_WORD, 0))):
        for function, answer in ((number, mine), (team, every)):
            ask = builder.inttoptr(function, ir.FunctionType(_INT, ()).as_pointer())
            builder.store(builder.zext(builder.call(ask, []), _WORD), answer)
    again, run, end = (body.append_basic_block(name) for name in ("again", "run", "end"))
    before, start = builder.block, builder.load(mine)
    builder.branch(again)
    builder.position_at_end(again)
    turn = builder.phi(_WORD)
    turn.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("<", turn, threads), run, end)
    builder.position_at_end(run)
    bounds = [builder.add(first, builder.sdiv(builder.mul(t, count), threads)) for t in (turn, builder.add(turn, one))]
    integers = (types.int64,) * 3
    function = context.declare_function(module, kernel)
    status, result = context.call_conv.call_function(
        builder, function, types.int64, (*integers, *kinds), (stage, *bounds, *values)
    )
    failed = builder.or_(builder.zext(status.is_error, _WORD), result)
    with builder.if_then(builder.icmp_signed("!=", failed, ir.Constant(_WORD, 0)), likely=False):
        builder.store(ir.Constant(_WORD, 1), place(_FAILED))
    following = builder.add(turn, builder.load(every))
    turn.add_incoming(following, builder.block)
    builder.branch(again)
    builder.position_at_end(end)
    builder.ret_void()
    return body


def _value(context: Any, builder: Any, kind: Any, given: list[Any]) -> Any:
    """An argument of the kernel from its words."""
    if kind is types.float64:
        return builder.bitcast(given[0], ir.DoubleType())
    if kind is types.boolean:
        return builder.trunc(given[0], ir.IntType(1))
    if not isinstance(kind, types.Array):
        return given[0]
    array = context.make_array(kind)(context, builder)
    itemsize = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    populate_array(
        array,
        data=builder.inttoptr(given[0], context.get_data_type(kind.dtype).as_pointer()),
        shape=given[1 : 1 + kind.ndim],
        strides=given[1 + kind.ndim :],
        itemsize=ir.Constant(_WORD, itemsize),
        meminfo=None,
    )
    return array._getvalue()


def _entry(context: Any, module: Any, body: Any, job_type: Any, kinds: tuple[Any, ...], symbol: str) -> None:
    """``PyObject *entry(self, arguments, count)``, as METH_FASTCALL wants it."""
    entry = _function(module, symbol, _POINTER, _POINTER, _POINTER.as_pointer(), _WORD)
    to_integer = _function(module, "PyLong_AsLongLong", _WORD, _POINTER)
    to_float = _function(module, "PyFloat_AsDouble", ir.DoubleType(), _POINTER)
    occurred = _function(module, "PyErr_Occurred", _POINTER)
    builder = ir.IRBuilder(entry.append_basic_block("start"))
    null = ir.Constant(_POINTER, None)

    def fail_if(condition: Any, function: str, result: Any) -> None:
        with builder.if_then(condition, likely=False):
            if function:
                builder.call(_function(module, function, result), [])
            builder.ret(null)

    expected = ir.Constant(_WORD, _FIXED + len(kinds))
    fail_if(builder.icmp_signed("!=", entry.args[2], expected), "PyErr_BadInternalCall", _VOID)
    given = [builder.load(builder.gep(entry.args[1], [ir.Constant(_WORD, n)])) for n in range(_FIXED + len(kinds))]
    parallel, number, team, threads, first, last, stage = (builder.call(to_integer, [g]) for g in given[:_FIXED])
    arguments = list(zip(kinds, given[_FIXED:], strict=True))
    fit: Any = ir.Constant(ir.IntType(1), 1)
    for kind, value in arguments:
        if isinstance(kind, types.Array):
            fit = builder.and_(fit, _fits(builder, value, kind.ndim))
    fail_if(builder.not_(fit), "PyErr_BadArgument", _INT)
    nobody = ir.Constant(_WORD, 0)  # who is alone asks nobody: the caller may be a thread of another team
    number = builder.select(builder.icmp_signed("==", parallel, nobody), nobody, number)
    words = [number, team, threads, first, last, ir.Constant(_WORD, 0), stage]
    for kind, value in arguments:
        if isinstance(kind, types.Array):
            words.append(_at(builder, value, _HEAD + _DATA, _WORD))
            if kind.ndim == 1:
                itemsize = context.get_abi_sizeof(context.get_data_type(kind.dtype))
                words.extend((_size(builder, value), ir.Constant(_WORD, itemsize)))
                continue
            for table in (_SHAPE, _STRIDES):
                steps = _at(builder, value, _HEAD + table, _POINTER)
                words.extend(_at(builder, steps, 8 * n, _WORD) for n in range(kind.ndim))
        elif kind is types.float64:
            words.append(builder.bitcast(builder.call(to_float, [value]), _WORD))
        else:
            words.append(builder.call(to_integer, [value]))
    fail_if(builder.icmp_unsigned("!=", builder.call(occurred, []), null), "", None)
    job = builder.alloca(job_type)
    for n, word in enumerate(words):
        builder.store(word, builder.gep(job, [ir.Constant(_WORD, 0), ir.Constant(_WORD, n)]))
    raw = builder.bitcast(job, _POINTER)
    thread_state = builder.call(_function(module, "PyEval_SaveThread", _POINTER), [])
    with builder.if_else(builder.icmp_signed("==", parallel, ir.Constant(_WORD, 0))) as (alone, together):
        with alone:
            builder.call(body, [raw])
        with together:
            kind = ir.FunctionType(_VOID, (body.type, _POINTER, _INT, _INT))
            start = builder.inttoptr(parallel, kind.as_pointer())
            builder.call(start, [body, raw, builder.trunc(threads, _INT), ir.Constant(_INT, 0)])
    builder.call(_function(module, "PyEval_RestoreThread", _VOID, _POINTER), [thread_state])
    failed = builder.load(builder.gep(job, [ir.Constant(_WORD, 0), ir.Constant(_WORD, _FAILED)]))
    with builder.if_then(builder.icmp_signed("!=", failed, ir.Constant(_WORD, 0)), likely=False):
        builder.ret(builder.call(_function(module, "PyErr_NoMemory", _POINTER), []))
    builder.ret(builder.call(_function(module, "PyLong_FromLong", _POINTER, _WORD), [ir.Constant(_WORD, 0)]))
