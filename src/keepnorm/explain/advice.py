"""What a careful colleague would say of a choice of kept axes, from the sizes alone."""

from math import prod

from keepnorm.axes import Axes

COLOURS = (1, 3, 4)  # sizes of an axis that look like grey, RGB and RGBA
PICTURE = 8  # an axis from this size on may be a height or a width


def warnings(axes: Axes) -> list[str]:
    """Each thing that is probably not meant, as a sentence or two; none if the choice is a usual one.

    Parameters
    ----------
    axes : Axes
        The role of every axis.
    """
    if not prod(axes.shape):
        return ["x has no values: every mean is NaN."]
    if axes.shape != axes.source:  # a pattern that groups says what it means
        found = [_one_value(axes)]
    else:
        found = [_one_value(axes), _every_place(axes), _batch(axes), _mixed_up(axes), _size_one(axes)]
    return [said for said in found if said]


def _one_value(axes: Axes) -> str:
    if axes.count > 1:
        return ""
    return (
        "Each cell has one value: its mean is that value, its variance is 0, and y is the bias everywhere. "
        "PyTorch refuses to train on it. Reduce an axis that is larger than 1."
    )


def _every_place(axes: Axes) -> str:
    """Everything but the batch is kept."""
    if axes.reduce != (0,) or len(axes.shape) < 3 or axes.count == 1:
        return ""
    return (
        f"Only axis 0 is reduced: each of {prod(axes.kept_shape):,} places (every pixel or time step) has statistics of its "
        f"own, over {axes.count:,} values. Batch norm keeps the channel alone: keep=1 for channels first, keep=-1 for "
        f"channels last. To normalise each example over these axes is layer norm: keep=0, affine={axes.keep}."
    )


def _batch(axes: Axes) -> str:
    """Weight and bias that belong to an example."""
    shape = axes.shape
    if len(shape) < 2 or shape[0] == 1 or 0 not in axes.affine or not axes.reduce or _picture_channels_first(axes):
        return ""
    others = tuple(a for a in axes.affine if a != 0)
    instead = f"affine={others or axes.reduce}"
    return (
        f"Weight and bias live on axis 0. If that is the batch, each example has its own, and a batch of another size does "
        f"not fit. Batch norm reduces the batch; {'instance' if others else 'layer'} norm keeps it, with {instead}."
    )


def _picture_channels_first(axes: Axes) -> bool:
    """One picture without a batch axis, such as (3, 224, 224)."""
    shape = axes.shape
    return len(shape) == 3 and shape[0] in COLOURS and min(shape[1:]) >= PICTURE


def _mixed_up(axes: Axes) -> str:
    """A kept axis where the sizes say that the channel is the other one of 1 and the last."""
    last = len(axes.shape) - 1
    if last < 3:
        return ""
    kept = [a for a in axes.keep if a != 0]
    if kept == [1] and _channels_at(axes.shape, last, 1):
        other, name, this = last, "last", "first"
    elif kept == [last] and _channels_at(axes.shape, 1, last):
        other, name, this = 1, "first", "last"
    else:
        return ""
    return (
        f"The sizes {axes.shape} look like channels {name}: {axes.shape[other]} channels on axis {other}. "
        f"keep={axes.keep[-1]} is for channels {this}; it keeps a height or a width here. Did you mean "
        f"keep={other if len(axes.keep) == 1 else (0, other)}?"
    )


def _channels_at(shape: tuple[int, ...], channel: int, other: int) -> bool:
    """Whether the sizes say that `channel` holds the channels and `other` is a height, a width or a depth."""
    space = [n for a, n in enumerate(shape) if a not in (0, channel)]
    if min(space) < PICTURE:
        return False
    square = len(set(space)) == 1 and shape[channel] != shape[other]
    return square or (shape[channel] in COLOURS and shape[other] not in COLOURS)


def _size_one(axes: Axes) -> str:
    single = [a for a in axes.keep if axes.shape[a] == 1]
    if not single or not axes.reduce:
        return ""
    which = "Kept axis " + str(single[0]) if len(single) == 1 else "Kept axes " + ", ".join(map(str, single))
    has = "has size 1" if len(single) == 1 else "have size 1"
    if prod(axes.kept_shape) == 1:
        return f"{which} {has}: one mean and one variance for the whole array, as with keep=()."
    return f"{which} {has}: keeping or reducing it gives the same numbers here, and others once it is longer."
