"""What torch.compile takes of keepnorm: whole functions as single nodes of its graph, and moments as what they hold.

The arguments of a node are tensors, numbers, strings and containers of them. None and functions go as strings.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch.utils import _pytree

from keepnorm.engines.dispatch import outside_graph
from keepnorm.moments import Moments
from keepnorm.states.reshaping import PARTS

R = TypeVar("R")

_KNOWN = ("keep", "ndim", "dtype")
_NOTHING = "keepnorm: None"
_FUNCTION = "keepnorm: function "


def _parts(state: Moments) -> tuple[list[Any], Any]:
    there = tuple(name for name in PARTS if getattr(state, name) is not None)
    return [getattr(state, name) for name in there], (there, tuple(getattr(state, name) for name in _KNOWN))


def _moments(parts: Any, context: Any) -> Moments:
    there, known = context
    given: dict[str, Any] = {"count": None}
    given.update(zip(there, parts, strict=True))
    given.update(zip(_KNOWN, known, strict=True))
    return Moments(**given)


_pytree.register_pytree_node(Moments, _parts, _moments, serialized_type_name="keepnorm.Moments")


def _packed(leaf: Any) -> Any:
    if leaf is None:
        return _NOTHING
    return f"{_FUNCTION}{leaf.__module__}:{leaf.__name__}" if callable(leaf) else leaf


def _unpacked(leaf: Any) -> Any:
    if isinstance(leaf, torch.SymFloat | torch.SymInt):  # an eps, an axis or a number of groups is as it is said
        return float(leaf) if isinstance(leaf, torch.SymFloat) else int(leaf)
    if not isinstance(leaf, str) or not leaf.startswith("keepnorm: "):
        return leaf
    if leaf == _NOTHING:
        return None
    module, name = leaf.removeprefix(_FUNCTION).split(":")
    return getattr(import_module(module), name)


def _run(called: tuple[Any, ...]) -> Any:
    function, arguments, options = _pytree.tree_map(_unpacked, called, is_leaf=lambda leaf: isinstance(leaf, Moments))
    return function(*arguments, **options)


# PyTorch has no public word for it; where a version lacks the private one, calls stay between two graphs.
_node: Any = getattr(torch._dynamo, "nonstrict_trace", lambda _: None)(_run)


def as_node(function: Callable[..., R], *arguments: Any, **options: Any) -> R:
    """One node of the graph, or a call between two graphs where the compiler has given up."""
    if torch.compiler.is_dynamo_compiling() and _node is not None:
        found: R = _node(_pytree.tree_map(_packed, (function, arguments, options)))
        return found
    return outside_graph(function)(*arguments, **options)
