"""The peers' side of each operation: who can do what, as data; one short file for each library.

A peer that is not installed raises ImportError when it is prepared.
"""

from collections.abc import Callable
from importlib import import_module

from asv_bench import yardsticks
from asv_bench.cases import TRIPS, Data
from asv_bench.contestant import Contestant

NORMS = ("batch_norm", "inference", "layer_norm", "rms_norm")
CELLS = ("group_norm", "instance_norm")

# name: (file, how it is written for a reader, operations)
PEERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "torch": ("torch_", "PyTorch eager", (*NORMS, *CELLS, "affine", "moments", "backward", "layer_backward", *TRIPS)),
    "compile": ("torch_", "torch.compile", (*NORMS, *CELLS, "moments")),
    "jax": ("jax_", "JAX jit", (*NORMS, *CELLS, "moments", "backward")),
    "onnxruntime": ("onnx_", "ONNX Runtime", ("inference", "layer_norm", "group_norm", "instance_norm")),
    "openvino": ("onnx_", "OpenVINO", ("inference", "layer_norm", "group_norm", "instance_norm")),
    "keras": ("keras_", "Keras on TensorFlow", (*NORMS, "moments")),
    "numpy": ("numpy_", "NumPy", (*NORMS, "affine", "moments")),
    "opencv": ("statistics_", "OpenCV meanStdDev", ("moments",)),
    "bottleneck": ("statistics_", "bottleneck", ("moments",)),
    "numbagg": ("statistics_", "numbagg", ("moments",)),
    "dask": ("statistics_", "dask", ("moments",)),
    "sklearn": ("statistics_", "scikit-learn partial_fit", ("moments",)),
}
YARDSTICKS = {"copy": "two-thread copy", "read": "two-thread float32 sum"}
TITLES = {name: title for name, (_, title, _) in PEERS.items()} | YARDSTICKS


def peers_of(operation: str) -> tuple[str, ...]:
    """The peers that can do an operation."""
    return tuple(name for name, (_, _, operations) in PEERS.items() if operation in operations)


def prepare(name: str, data: Data) -> Contestant:
    """A peer's call, ready to be measured.

    Raises
    ------
    ImportError
        If the peer, or something that it needs, is not installed.
    ValueError
        If the peer cannot do the operation, or not on this array.
    """
    operation = data.case.operation
    file, title, operations = PEERS[name]
    if operation not in operations:
        raise ValueError(f"{title} can do {', '.join(operations)} here; got {operation}")
    build: Callable[[str, Data], Contestant] = import_module(f"asv_bench.peers.{file}").prepare
    return build(name, data)


def yardstick(name: str, data: Data) -> Callable[[], object]:
    """The copy or the sum of the case's array."""
    call: Callable[[], object] = getattr(yardsticks, name)(data)
    return call
