"""ONNX: one node in a model, evaluated by the onnx package's own reference evaluator."""

from functools import cache

import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ..cases import Case
from ..data import Array, Data
from ..oracle import Answer
from . import Limit, masked, rms_bias, views

VERSIONS = ("onnx", "numpy")
OPSET = 23  # the first with RMSNormalization; GroupNormalization has its parameters per channel since 21
LIMITS = (
    Limit("an inference format: no gradients", lambda c: c.mode == "backward"),
    Limit("no norm takes a mask", masked),
    Limit("RMSNormalization has no bias", rms_bias),
    Limit("the running variance is always the population variance", lambda c: c.mode == "update" and c.correction == 1),
)
OPERATORS = {
    "batch": "BatchNormalization",
    "layer": "LayerNormalization",
    "rms": "RMSNormalization",
    "instance": "InstanceNormalization",
    "group": "GroupNormalization",
}


def answer(case: Case, data: Data) -> Answer:
    """The reference evaluator's answer."""
    if case.operation == "batch":
        view = views.channels_first(case)
    else:
        view = views.reduced_last(case) if case.operation in ("layer", "rms") else views.channel_at(case, 1)
    x = view.there(data.x)
    parameters = case.affine_shape if case.operation in ("layer", "rms") else (-1,)
    # Weight and bias are not optional: ones and zeros stand for none.
    w = np.ones(case.affine_shape) if data.weight is None else data.weight
    b = np.zeros(case.affine_shape) if data.bias is None else data.bias
    feed = {"x": x, "w": w.astype(x.dtype).reshape(parameters)}
    if case.operation != "rms":
        feed["b"] = b.astype(x.dtype).reshape(parameters)
    attributes: dict[str, float | int] = {"epsilon": case.eps}
    outputs = ["y"]
    if case.operation == "batch":
        feed |= {"mean": data.mean.reshape(-1), "var": data.var.reshape(-1)}
        attributes["training_mode"] = int(case.mode != "inference")
        if case.mode != "inference":
            attributes["momentum"] = data.decay if case.mode == "update" else 0.0
            outputs += ["new_mean", "new_var"]
    elif case.operation in ("layer", "rms"):
        attributes["axis"] = len(case.keep)
    elif case.operation == "group":
        attributes["num_groups"] = case.groups
    with np.errstate(all="ignore"):
        y, *new = _evaluator(case.operation, x.ndim, tuple(feed), tuple(outputs), tuple(attributes.items())).run(None, feed)
    result = Answer(view.back(y))
    if not new:
        return result
    mean, var = (_cells(values, case) for values in new)
    return result._replace(mean=mean, var=var)


def _cells(values: Array, case: Case) -> Array:
    return values.reshape(case.kept_shape)


@cache
def _evaluator(
    operation: str, ndim: int, inputs: tuple[str, ...], outputs: tuple[str, ...], attributes: tuple[tuple[str, float], ...]
) -> ReferenceEvaluator:
    node = helper.make_node(OPERATORS[operation], list(inputs), list(outputs), **dict(attributes))
    sizes = [None] * ndim
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes if name == "x" else None) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph([node], operation, given, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    return ReferenceEvaluator(model)
