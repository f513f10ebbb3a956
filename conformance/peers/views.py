"""A case in the layout that a peer wants: views wherever NumPy can make one, so that the memory order stays the case's own."""

from math import prod
from typing import NamedTuple

from ..cases import Case
from ..data import Array


class View(NamedTuple):
    """Axes in another order, then merged into another shape."""

    order: tuple[int, ...]
    between: tuple[int, ...]
    shape: tuple[int, ...]

    def there(self, x: Array) -> Array:
        """From the case's axes to the peer's."""
        return x.transpose(self.order).reshape(self.shape)

    def back(self, y: Array) -> Array:
        """From the peer's axes to the case's."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return y.reshape(self.between).transpose(inverse)


def _view(case: Case, order: tuple[int, ...], shape: tuple[int, ...] | None = None) -> View:
    between = tuple(case.shape[a] for a in order)
    return View(order, between, between if shape is None else shape)


def as_it_is(case: Case) -> View:
    """The peer takes the axes as arguments."""
    return _view(case, tuple(range(len(case.shape))))


def channels_first(case: Case) -> View:
    """Batch norm as (N, C, ...): all kept axes merged into dimension 1."""
    first, rest = case.reduce[:1], case.reduce[1:]
    sizes = [case.shape[a] for a in case.reduce] or [1]
    return _view(case, (*first, *case.keep, *rest), (sizes[0], prod(case.kept_shape), *sizes[1:]))


def channels_last(case: Case) -> View:
    """Batch norm as (..., C): all kept axes merged into the last one."""
    sizes = [case.shape[a] for a in case.reduce] or [1]
    return _view(case, (*case.reduce, *case.keep), (*sizes, prod(case.kept_shape)))


def reduced_last(case: Case) -> View:
    """Layer and RMS norm: the reduced axes trail."""
    return _view(case, (*case.keep, *case.reduce))


def rows(case: Case) -> View:
    """Layer and RMS norm as (N, M): one row for each kept cell."""
    return _view(case, (*case.keep, *case.reduce), (prod(case.kept_shape), case.count))


def channel_at(case: Case, position: int) -> View:
    """Instance and group norm: the batch first, the channel at 1 or at -1."""
    (channel,) = case.affine
    (batch,) = (a for a in case.keep if a != channel)
    rest = tuple(a for a in range(len(case.shape)) if a not in (batch, channel))
    return _view(case, (batch, channel, *rest) if position == 1 else (batch, *rest, channel))
