"""ONNX Runtime and OpenVINO on the CPU: one operator as a model, its input and output in memory that is bound once."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from asv_bench import machine
from asv_bench.cases import EPS, LAYERS, Data
from asv_bench.contestant import Contestant


def prepare(name: str, data: Data) -> Contestant:
    if data.case.operation not in LAYERS and data.axis != 1:
        raise ValueError(f"ONNX keeps axis 1; got {data.axis}")
    return {"onnxruntime": _onnxruntime, "openvino": _openvino}[name](data)


def _onnxruntime(data: Data) -> Contestant:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = machine.cores()
    session = onnxruntime.InferenceSession(_model(data), options, providers=["CPUExecutionProvider"])
    return Contestant(lambda: session.run(None, {"x": data.x})[0], lambda y: (y,), machine.cores())


def _openvino(data: Data) -> Contestant:
    import openvino

    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": machine.cores(), "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(_model(data)), "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(data.x, shared_memory=True))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return Contestant(call, lambda y: (np.array(y),), machine.cores())


def _model(data: Data) -> bytes:
    """A model of one operator, whose parameters are constants."""
    operation, kind = data.case.operation, helper.np_dtype_to_tensor_dtype(data.x.dtype)
    operator, attributes, names = {
        "inference": ("BatchNormalization", {}, ("weight", "bias", "mean", "var")),
        "layer_norm": ("LayerNormalization", {"axis": -1}, ("weight", "bias")),
        "group_norm": ("GroupNormalization", {"num_groups": data.case.groups}, ("weight", "bias")),
        "instance_norm": ("InstanceNormalization", {}, ("weight", "bias")),
    }[operation]
    node = helper.make_node(operator, ["x", *names], ["y"], epsilon=EPS, **attributes)
    constants = [helper.make_tensor(name, kind, getattr(data, name).shape, getattr(data, name)) for name in names]
    x, y = (helper.make_tensor_value_info(name, kind, data.x.shape) for name in "xy")
    graph = helper.make_graph([node], operation, [x], [y], constants)
    assert kind in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
    model: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    return model
