"""Where a framework's state holds what: nested mappings flattened, leaves recognised by name, and put back as they were."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[Any, ...]


def leaves(state: Mapping[Any, Any], at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf of nested mappings with the keys that lead to it."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


def recognise(state: Mapping[Any, Any], names: Mapping[str, tuple[str, ...]], dialect: str) -> dict[str, tuple[Path, Any]]:
    """The role of every leaf, by the end of its path: prefixes such as a layer's name may stand before and between.

    Raises
    ------
    TypeError
        If the state is no mapping.
    ValueError
        If a leaf has no role, or two leaves have the same.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state must map {dialect}'s own names to arrays, such as {_expected(names)}; got {type(state).__name__}"
        )
    found: dict[str, tuple[Path, Any]] = {}
    for path, value in leaves(state):
        words = [word for key in path for word in re.split(r"[./]", str(key).removesuffix(":0"))]
        role = next((role for role, name in names.items() if _ends(words, name)), None)
        if role is None:
            raise ValueError(
                f"state of {dialect} holds {_join(path)}, which is none of {_expected(names)}; pass one batch norm's part"
            )
        if role in found:
            raise ValueError(
                f"state of {dialect} must be of one batch norm; got both {_join(found[role][0])} and {_join(path)}"
            )
        found[role] = path, value
    return found


def build(values: Mapping[Path, Any]) -> dict[Any, Any]:
    """Nested dictionaries from leaves and their paths."""
    state: dict[Any, Any] = {}
    for path, value in values.items():
        inner = state
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return state


def _ends(words: list[str], name: tuple[str, ...]) -> bool:
    """Whether the words of `name` occur in this order, the last one at the end."""
    if words[-1] != name[-1]:
        return False
    rest = iter(words[:-1])
    return all(word in rest for word in name[:-1])


def _join(path: Path) -> str:
    return "/".join(map(str, path))


def _expected(names: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(_join(name) for name in names.values())
