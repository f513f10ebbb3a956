"""Say which axes you keep. Everything else is reduced.

Mean and variance of any array over the axes that you do not keep, and the affine step that follows from them: batch,
layer, instance, group and RMS normalisation, and the statistics of data sets, in any array library.

>>> import numpy as np, keepnorm as kn
>>> x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
>>> kn.moments(x, keep=1).mean
array([3.5, 5.5, 7.5], dtype=float32)
>>> kn.normalize(x, keep=1).std(axis=(0, 2)).round(3)
array([1., 1., 1.], dtype=float32)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from keepnorm.accumulator import Accumulator

# Now, not at the first call: a signal handler in the middle of that would meet half a module.
from keepnorm.engines.host import engine as _host  # noqa: F401

# explain and stats not later: importing the modules of these names would put those in the place of the functions.
from keepnorm.explain.calls import explain_call
from keepnorm.explain.explanation import Explanation, explain
from keepnorm.functional import affine, moments, normalize, normalize_vjp
from keepnorm.gradients import Gradients
from keepnorm.inverse import denormalize
from keepnorm.keywords import show
from keepnorm.moments import Moments
from keepnorm.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from keepnorm.stats.dataset import stats

if TYPE_CHECKING:
    from keepnorm import dialects, porting, renorm, sync
    from keepnorm.batchnorm import BatchNorm
    from keepnorm.kernels.jit.threads import threads

__all__ = [
    "Accumulator",
    "BatchNorm",
    "Explanation",
    "Gradients",
    "Moments",
    "affine",
    "batch_norm",
    "denormalize",
    "dialects",
    "explain",
    "explain_call",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "moments",
    "normalize",
    "normalize_vjp",
    "porting",
    "renorm",
    "rms_norm",
    "stats",
    "sync",
    "threads",
]

# Loaded at their first use, so that an import costs what it needs and no more.
_LATER = {
    "BatchNorm": "keepnorm.batchnorm",
    "threads": "keepnorm.kernels.jit.threads",
}
_MODULES = ("dialects", "porting", "renorm", "sync")


show(*(globals()[name] for name in __all__ if name in globals()))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("keepnorm")
        except PackageNotFoundError:  # a checkout that is not installed
            return "0"
    if name in _MODULES:
        return import_module(f"keepnorm.{name}")
    if name in _LATER:
        value = globals()[name] = getattr(import_module(_LATER[name]), name)
        return value
    raise AttributeError(f"module 'keepnorm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__")), "__version__"})
