"""What a vector-Jacobian product gives back."""

from typing import Any, NamedTuple


class Gradients(NamedTuple):
    """Gradients with respect to x, weight and bias; None for a weight or a bias that was not given."""

    x: Any
    weight: Any
    bias: Any
