"""A transform of torchvision's kind: images normalised with given means and deviations, in any array library."""

from collections.abc import Sequence
from typing import Any

from keepnorm.functional import normalize
from keepnorm.inverse import denormalize
from keepnorm.keywords import described
from keepnorm.moments import Moments

Array = Any


class Normalize:
    """Normalise images: ``(x - mean) / std`` for each channel, as torchvision.transforms.Normalize does.

    Unlike that, it takes arrays of every library, integers too (which give float32), either layout, one image or many, and
    moments in the place of the two lists. A deviation of 0 leaves the differences as they are.

    Parameters
    ----------
    mean : sequence of float, or Moments
        One mean for each channel; or the moments of images, such as ``keepnorm.moments`` or ``Moments.load`` gives.
    std : sequence of float, optional
        One standard deviation for each channel; left out where `mean` are moments.
    channel : int, default -3
        The axis of the channels: -3 is channels first, ``(..., C, H, W)``; -1 is channels last.
    scale : float, default 1
        What the data are divided by before: 255 where mean and std are of pixels between 0 and 1, and the data are bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from keepnorm.layers.transforms import Normalize
    >>> photo = np.full((2, 2, 3), 128, np.uint8)
    >>> imagenet = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], channel=-1, scale=255)
    >>> imagenet(photo)[0, 0].round(3)
    array([0.074, 0.205, 0.426], dtype=float32)
    """

    def __init__(
        self, mean: Sequence[float] | Moments, std: Sequence[float] | None = None, *, channel: int = -3, scale: float = 1.0
    ) -> None:
        if isinstance(channel, bool) or not isinstance(channel, int):
            raise TypeError(f"channel must be an int; got {described(channel)}")
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise ValueError(f"scale must be a positive number; got {described(scale)}")
        if isinstance(mean, Moments):
            if std is not None:
                raise TypeError("std is that of the moments: leave it out; got both")
            if len(mean.shape) != 1:
                raise ValueError(f"moments must be of one kept axis, the channels; got the kept shape {mean.shape}")
            given = mean.replaced(labels=None)
        elif std is None:
            raise TypeError("std is missing: Normalize takes the means and the deviations, or moments; got means alone")
        else:
            given = Moments.from_mean_std(mean, std, keep=0, ndim=1)
        self.moments = given.scaled(scale)
        self.channel = channel
        self.scale = scale

    def __call__(self, image: Array) -> Array:
        """The image, or the images, normalised."""
        return normalize(image, self.channel, eps=0.0, moments=self._placed(image), constant="center")

    def inverse(self, image: Array) -> Array:
        """The image of which a call made this one, in the units of the data."""
        given = self._placed(image).without_count()
        zero = given.m2 == 0
        return denormalize(image, self.channel, eps=0.0, moments=given.replaced(m2=given.m2 + zero))

    def _placed(self, image: Array) -> Moments:
        shape = getattr(image, "shape", None)
        if shape is None:
            raise TypeError(f"image must be an array; got {described(image)}")
        return self.moments.moved(self.channel, len(shape))

    def __repr__(self) -> str:
        m = self.moments.scaled(1 / self.scale)
        return f"Normalize(mean={m.mean.tolist()}, std={m.std.tolist()}, channel={self.channel}, scale={self.scale})"
