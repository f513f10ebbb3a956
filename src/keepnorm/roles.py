"""What each named norm keeps and where its parameters live: pure integers, the whole difference between the norms."""

from collections.abc import Mapping
from typing import Any

from keepnorm.axes import BOOLS, Axes, as_ints, complement, normal, resolve
from keepnorm.keywords import described

Shape = tuple[int, ...]


def general(shape: Shape, keep: Any, affine: Any, sizes: Mapping[str, int]) -> Axes:
    """`keep` survives; the parameters live on `affine`, which is `keep` if None."""
    return resolve(shape, keep, affine, sizes)


def batch(shape: Shape, channel: Any) -> Axes:
    """Batch norm: one mean for each channel."""
    _axes(channel, "channel", shape)
    return resolve(shape, as_ints(channel, "channel"))


def instance(shape: Shape, channel: Any, batch: Any) -> Axes:
    """Instance norm: one mean for each channel of each example."""
    channels, examples = _apart(shape, channel, batch)
    return resolve(shape, (*examples, *channels), as_ints(channel, "channel"))


def layer(shape: Shape, axes: Any) -> Axes:
    """Layer and RMS norm: `axes` are reduced, and the parameters live on them."""
    return resolve(shape, complement(axes, len(shape), shape), as_ints(axes, "axes"))


def group(shape: Shape, groups: Any, channel: Any, batch: Any) -> Axes:
    """Group norm: the channels are split in `groups` blocks, and each block of each example has one mean."""
    channels, examples = _apart(shape, channel, batch)
    if len(channels) != 1:
        raise ValueError(f"channel must be one axis, which is split into groups; got {channel}")
    if isinstance(groups, BOOLS) or not hasattr(groups, "__index__"):
        raise TypeError(f"groups must be an int; got {described(groups)}")
    if groups < 1 or shape[channels[0]] % groups:
        raise ValueError(
            f"groups={groups} does not divide the {shape[channels[0]]} channels on axis {channels[0]} of x with shape {shape}"
        )
    axis, parts = channels[0], int(groups)
    split = (*shape[:axis], parts, shape[axis] // parts, *shape[axis + 1 :])
    origin = tuple(a - (a > axis) for a in range(len(split)))
    kept = tuple(sorted((*(a + (a > axis) for a in examples), axis)))
    return Axes(shape, split, kept, (axis, axis + 1), origin)


def _axes(axes: Any, name: str, shape: Shape) -> Shape:
    return normal(as_ints(axes, name), len(shape), name, shape)


def _apart(shape: Shape, channel: Any, batch: Any) -> tuple[Shape, Shape]:
    channels, examples = _axes(channel, "channel", shape), _axes(batch, "batch", shape)
    if set(channels) & set(examples):
        raise ValueError(f"channel and batch must be different axes of x with shape {shape}; got {channel} and {batch}")
    return channels, examples
