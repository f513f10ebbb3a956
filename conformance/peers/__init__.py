"""The peers: for each a short file that puts a case into its words and takes its answer out again.

A peer's module has ``VERSIONS`` (packages whose version the report names), ``LIMITS`` (what it cannot express, with the
reason) and ``answer(case, data) -> Answer``. Transposing and flattening to the peer's own layout is allowed; computing
for it is not.
"""

import os
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from ..cases import Case

# The name on the command line: its module, and what must be in the environment before it is imported.
PEERS: dict[str, tuple[str, dict[str, str]]] = {
    "torch": ("torch_", {}),
    "keras_tensorflow": ("keras_", {"KERAS_BACKEND": "tensorflow"}),
    "keras_jax": ("keras_", {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1"}),
    "keras_torch": ("keras_", {"KERAS_BACKEND": "torch"}),
    "flax": ("flax_", {"JAX_ENABLE_X64": "1"}),
    "flax_nnx": ("flax_nnx_", {"JAX_ENABLE_X64": "1"}),
    "onnx": ("onnx_", {}),
    "numpy": ("numpy_", {}),
    "tensorflow": ("tensorflow_", {}),
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Limit(NamedTuple):
    """Cases that a peer cannot express, and why."""

    reason: str
    holds: Callable[[Case], bool]


def load(name: str) -> ModuleType:
    """The peer's module; an ImportError if the peer is not installed.

    Raises
    ------
    ValueError
        If there is no such peer.
    """
    if name not in PEERS:
        raise ValueError(f"peer must be one of {', '.join(PEERS)}; got {name!r}")
    module, environment = PEERS[name]
    os.environ.update(environment)
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    return import_module(f".{module}", __name__)


def cannot(peer: ModuleType, case: Case) -> str | None:
    """Why the peer cannot express the case, or None if it can."""
    return next((limit.reason for limit in peer.LIMITS if limit.holds(case)), None)


def masked(case: Case) -> bool:
    """A mask is given."""
    return bool(case.mask)


def rms_bias(case: Case) -> bool:
    """An RMS norm with a bias."""
    return case.operation == "rms" and case.bias


def training_step(case: Case) -> bool:
    """Running moments are updated."""
    return case.mode == "update"
