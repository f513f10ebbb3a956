"""The norms of torch.nn on keepnorm: the same names, arguments, defaults, buffers and ``state_dict``.

Each layer is a subclass of that of torch.nn, so that whatever asks for one finds it, and takes ``where=``, which tells what
values count. `replace` turns those of a model into these, and `restore` turns them back.
"""

from keepnorm.layers.missing import missing

try:
    import torch  # noqa: F401
except ImportError as error:
    raise missing(__name__, "PyTorch", "torch") from error

from keepnorm.layers.torch.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from keepnorm.layers.torch.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from keepnorm.layers.torch.rownorms import GroupNorm, LayerNorm, RMSNorm
from keepnorm.layers.torch.swap import replace, restore

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "RMSNorm",
    "replace",
    "restore",
]
