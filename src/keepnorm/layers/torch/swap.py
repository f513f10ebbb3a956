"""The norms of a model, from torch.nn's to ours and back."""

from typing import Any

from torch import nn

from keepnorm.layers.torch.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from keepnorm.layers.torch.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from keepnorm.layers.torch.rownorms import GroupNorm, LayerNorm, RMSNorm

Model = Any

OURS = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.GroupNorm: GroupNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    nn.LayerNorm: LayerNorm,
    nn.RMSNorm: RMSNorm,
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def replace(model: Model) -> Model:
    """Turn every norm of torch.nn in a model into the layer of the same name here, in place.

    The modules stay the same objects, with their parameters, buffers, hooks, mode and device: an optimizer made before goes
    on. Subclasses of torch.nn's norms have a forward of their own and stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
        It may be a norm itself.

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    TypeError
        If it is no module.
    ValueError
        If a lazy norm has not seen a batch, and so is no norm yet.

    Notes
    -----
    In inference, `torch.nn.TransformerEncoderLayer` and `torch.nn.MultiheadAttention` may compute a whole layer, norms
    included, in one operation of their own; ``torch.backends.mha.set_fastpath_enabled(False)`` lets the modules do it.

    Examples
    --------
    >>> import torch
    >>> from keepnorm.layers.torch import replace
    >>> model = replace(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8)))
    >>> type(model[1]).__module__
    'keepnorm.layers.torch.rownorms'
    """
    _check(model, "replace")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and getattr(module, "cls_to_become", None) in OURS:
            raise ValueError(f"replace needs norms that have seen a batch: call the model once; got {module} at {name!r}")
    return _swapped(model, OURS)


def restore(model: Model) -> Model:
    """Turn what `replace` made of a model's norms back into those of torch.nn, in place.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    torch.nn.Module
        The same model.

    Raises
    ------
    TypeError
        If it is no module.

    Examples
    --------
    >>> import torch
    >>> from keepnorm.layers.torch import BatchNorm1d, restore
    >>> type(restore(BatchNorm1d(3))).__module__
    'torch.nn.modules.batchnorm'
    """
    _check(model, "restore")
    return _swapped(model, THEIRS)


def _check(model: Model, function: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function} needs a torch.nn.Module; got {type(model).__name__}")


def _swapped(model: Model, kinds: dict[Any, Any]) -> Model:
    for module in model.modules():
        kind = kinds.get(type(module))
        if kind is not None:
            module.__class__ = kind
    return model
