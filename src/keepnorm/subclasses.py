"""Arrays whose memory does not hold all that they mean: masked ones, matrices, nested tensors."""

from typing import Any

import numpy as np

Array = Any

_PLAIN = (np.ndarray, np.memmap)

# By the name of the type: what it is, what to pass instead of such an x, and instead of such a weight, mask or gradient.
_MEANING = {
    "MaskedArray": (
        "a masked array",
        "pass its values and its mask, x.data with where=~numpy.ma.getmaskarray(x)",
        "its mask would be lost, so pass what its filled(value) gives",
    ),
    "MaskedTensor": (
        "a masked tensor",
        "pass its values and its mask, x.get_data() with where=x.get_mask()",
        "its mask would be lost, so pass what its to_tensor(value) gives",
    ),
    "matrix": ("a numpy.matrix, which has two axes whatever is reduced", "pass numpy.asarray(x)", "pass numpy.asarray of it"),
    "nested": (
        "a nested tensor, whose parts differ in shape",
        "pass its parts, x.unbind(), one by one",
        "pass a plain tensor",
    ),
}
_OTHER = ("a subclass of numpy.ndarray whose meaning would be lost", "pass numpy.asarray(x)", "pass numpy.asarray of it")


def refuse(values: Array, name: str) -> None:
    """Refuse an array whose meaning would be lost.

    Raises
    ------
    TypeError
        If it is masked, nested, or another subclass of numpy.ndarray.
    """
    kind = type(values)
    if kind in _PLAIN:
        return
    found = _OTHER if isinstance(values, np.ndarray) else None
    if getattr(values, "is_nested", False) is True:
        found = _MEANING["nested"]
    for base in kind.__mro__:
        found = _MEANING.get(base.__name__, found)
    if found is not None:
        what, for_x, for_others = found
        raise TypeError(f"{name} is {what}: {for_x if name == 'x' else for_others}; got a {qualified(kind)}")


def shape_of(values: Array, name: str) -> tuple[int, ...]:
    """The shape, which a nested tensor does not have."""
    try:
        return tuple(values.shape)
    except RuntimeError:
        refuse(values, name)
        raise


def qualified(kind: type) -> str:
    """The name of a type with its module."""
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__
