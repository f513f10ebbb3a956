"""What the two Flax adapters share: one compiled function for each shape and kind of case, gradients by jax.vjp."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np

from ..cases import EPS_DEFAULT, Case
from ..data import Array, Data
from ..oracle import Answer
from .views import View

# (case, x, weight, bias, mean, var, mask, eps, decay) -> (y, mean of the batch or running, var likewise)
Apply = Callable[..., tuple[Any, Any, Any]]


def answer(
    case: Case, data: Data, apply: Apply, view: View, parameters: tuple[int, ...], statistics: tuple[int, ...]
) -> Answer:
    """The answer of a module, called through `apply`; its parameters and statistics have the shapes given."""
    # What is compiled depends on none of these, and one function with gradients serves every training mode.
    mode = "inference" if case.mode == "inference" else "backward"
    still = replace(case, layout="C", values="", eps=EPS_DEFAULT, seed=0, correction=0, mode=mode)
    x, dy = view.there(data.x), view.there(data.dy)
    w, b = (None if p is None else p.reshape(parameters) for p in (data.weight, data.bias))
    mean, var = data.mean.reshape(statistics), data.var.reshape(statistics)
    mask = None if data.where is None else view.there(np.broadcast_to(data.where, case.shape))
    # Python floats are weakly typed: they do not widen float32 arrays.
    decay = data.decay if case.mode == "update" else 0.0
    y, new_mean, new_var, gradients = _compiled(still, apply)(x, w, b, mean, var, mask, dy, case.eps, decay)
    result = Answer(view.back(np.asarray(y)))
    if case.mode == "backward":
        dx, dw, db = gradients
        dw, db = (None if g is None else np.asarray(g).reshape(case.affine_shape) for g in (dw, db))
        return result._replace(dx=view.back(np.asarray(dx)), dweight=dw, dbias=db)
    if case.mode == "inference" or new_mean is None:
        return result
    return result._replace(mean=_cells(new_mean, case), var=_cells(new_var, case))


def _cells(values: Any, case: Case) -> Array:
    return np.asarray(values).reshape(case.kept_shape)


@cache
def _compiled(case: Case, apply: Apply) -> Callable[..., Any]:
    @jax.jit
    def run(x: Any, w: Any, b: Any, mean: Any, var: Any, mask: Any, dy: Any, eps: Any, decay: Any) -> Any:
        def forward(x: Any, w: Any, b: Any) -> Any:
            y, *moments = apply(case, x, w, b, mean, var, mask, eps, decay)
            return y, moments

        if case.mode == "inference":
            y, moments = forward(x, w, b)
            return y, *moments, None
        y, vjp, moments = jax.vjp(forward, x, w, b, has_aux=True)
        return y, *moments, vjp(dy.astype(y.dtype))

    return run
