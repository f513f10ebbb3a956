"""The reverse of `explain`: the call of a framework, read and never executed, becomes the axes that it keeps.

A call is text that :mod:`ast` parses. Its arguments are read as literals, so nothing in it runs and nothing is imported.
"""

import ast
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from keepnorm.explain.explanation import Explanation, explain, shape_of
from keepnorm.explain.readings import READERS, Call, CallError, library_of
from keepnorm.keywords import described

LONGEST = 2000  # characters
# What changes the axes between x and the call; x would then not have the shape that the call sees.
MOVES = (
    "movedim",
    "moveaxis",
    "permute",
    "transpose",
    "Transpose",
    "swapaxes",
    "rearrange",
    "reshape",
    "Reshape",
    "view",
    "flatten",
)
EXAMPLES = 'such as "torch.nn.BatchNorm2d(64)", "keras.layers.BatchNormalization(axis=-1)" or "x.mean(axis=0)"'


def explain_call(call: str, x_or_shape: Any, /) -> Explanation:
    """Say what a call of another framework keeps and reduces, and what people usually mean instead.

    The call is parsed, never executed, and its framework need not be installed. Read are the norms and the means of
    PyTorch (with ``torchvision.transforms.Normalize``), Keras, Flax, Haiku, JAX, ONNX, TensorFlow, NumPy, SciPy and
    scikit-learn, also by the short names that they are imported as, such as ``nn``, ``F``, ``hk`` and ``jnp``.

    Parameters
    ----------
    call : str
        The call as it stands in a program, such as ``"keras.layers.BatchNormalization(axis=-1)"``. Axes and sizes are
        literals; what has no bearing on the axes (``num_features=C``, eps, momentum) may be any expression.
    x_or_shape : array or tuple of int
        The array that the call gets, of which only the shape is read, or its shape.

    Returns
    -------
    Explanation
        As of :func:`explain`, with `notes`: what the argument of that framework names, and what is usually meant instead.

    Raises
    ------
    TypeError
        If `call` is no text, or there is no shape.
    ValueError
        If the text is no call, if nothing in it is known, if its axes are not literals, or if they do not fit the shape.

    Examples
    --------
    >>> import keepnorm as kn
    >>> e = kn.explain_call("torch.nn.BatchNorm2d(64)", (32, 64, 56, 56))
    >>> e.kept, e.reduced, e.parameters
    ((1,), (0, 2, 3), 128)
    >>> e = kn.explain_call("keras.layers.BatchNormalization(axis=[1, 2, 3])", (32, 56, 28, 3))
    >>> e.kept, e.reduced
    ((1, 2, 3), (0,))
    >>> print(e.notes[0])
    axis= of Keras's BatchNormalization names the axes that are kept: here 1, 2, 3. Everything else is reduced.
    >>> kn.explain_call("x.mean(axis=0)", (32, 10)).kept
    (1,)
    """
    if not isinstance(call, str):
        raise TypeError(f"call must be the text of a call, {EXAMPLES}; got {described(call)}")
    shape = shape_of(x_or_shape)
    tree = _parsed(call)
    moved = [name for node in ast.walk(tree) if (name := _last(node)) in MOVES]
    if moved:
        raise ValueError(
            f"call must be of an array as it is, since {moved[0]} changes the axes: give the call alone and the shape "
            f"that it sees; got {described(call)}"
        )
    for found in _calls(tree):
        try:
            reading = READERS[found.library, found.function](found, shape)
            explanation = explain(shape, reading.keep, affine=reading.affine, **reading.sizes)
        except CallError as error:
            raise ValueError(f"call {error}; got {described(call)}") from None
        return replace(explanation, notes=reading.notes)
    raise ValueError(
        f"call must be a norm, a mean or a variance of PyTorch, Keras, Flax, Haiku, JAX, ONNX, TensorFlow, NumPy, SciPy or "
        f"scikit-learn, {EXAMPLES}; got {described(call)}"
    )


def _parsed(call: str) -> ast.Module:
    if len(call) > LONGEST:
        raise ValueError(f"call must have at most {LONGEST:,} characters; got {len(call):,}")
    try:
        return ast.parse(call.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"call must be one call in Python, {EXAMPLES}; got {described(call)}") from None


def _calls(tree: ast.Module) -> Iterator[Call]:
    """The calls of the text that are known, the first one first, as `layer(...)` is in `layer(...)(x, training=True)`."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset)):
        path = _path(node.func)
        if not path:
            continue
        arguments = [arg for arg in node.args if not isinstance(arg, ast.Starred)]
        keywords = {each.arg: each.value for each in node.keywords if each.arg}
        if path[-1] == "make_node" and arguments and isinstance(arguments[0], ast.Constant):
            yield from _known(Call("onnx", str(arguments[0].value), tuple(arguments[1:]), keywords))
        else:
            library = library_of(path, arguments, keywords)
            yield from _known(Call(library, path[-1], tuple(arguments), keywords))


def _known(call: Call) -> Iterator[Call]:
    if (call.library, call.function) in READERS:
        yield call


def _path(node: ast.expr) -> tuple[str, ...]:
    """The names of `a.b.c`; a call or another expression at the root is the name "x", as of any array."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        return (node.id, *reversed(names))
    return ("x", *reversed(names)) if names else ()


def _last(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return (_path(node.func) or ("",))[-1]
