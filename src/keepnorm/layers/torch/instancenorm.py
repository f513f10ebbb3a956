"""Instance norms with the names, arguments and buffers of torch.nn."""

import warnings
from typing import Any

import torch
from torch import nn

from keepnorm.layers.torch.statistics import update, with_own, with_running

Tensor = Any


class _InstanceNorm:
    """The forward pass of all instance norms; the rest is that of torch.nn."""

    training: bool
    affine: bool
    num_features: int
    track_running_stats: bool
    momentum: float | None
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def _check_input_dim(self, input: Tensor) -> None:
        super()._check_input_dim(input)  # type: ignore[misc]

    def _get_no_batch_dim(self) -> int:
        return super()._get_no_batch_dim()  # type: ignore[misc,no-any-return]

    def forward(self, input: Tensor, *, where: Tensor | None = None) -> Tensor:
        """Normalise each channel of each example, or where running moments are tracked and not training, each channel.

        Parameters
        ----------
        input : Tensor
            With or without a batch axis before the channels.
        where : Tensor of bool, optional
            Which values count in the moments; it broadcasts to the input. Every value is normalised.

        Returns
        -------
        Tensor
            Of the shape, dtype and device of the input.

        Raises
        ------
        ValueError
            If the number of axes is not the layer's, if a channel of an example has one value, or shapes do not fit.
        """
        self._check_input_dim(input)
        axes = self._get_no_batch_dim()
        channels = input.shape[input.ndim - axes]
        if channels != self.num_features:
            if self.affine:
                raise ValueError(f"expected num_features={self.num_features} channels; got {channels} of {input.shape}")
            warnings.warn(
                f"the input has {channels} channels, but the layer num_features={self.num_features}, which has no effect "
                "with affine=False",
                stacklevel=2,
            )
        if input.ndim == axes:
            return self._normalize(input.unsqueeze(0), where).squeeze(0)
        return self._normalize(input, where)

    def _normalize(self, x: Tensor, where: Tensor | None) -> Tensor:
        tracks = self.track_running_stats and self.running_mean is not None
        if tracks and not self.training:
            return with_running(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)
        if x[0, 0].numel() == 1:
            raise ValueError(f"Expected more than 1 spatial element when training, got input size {x.size()}")
        y, mean, var, *count = with_own(x, (0, 1), self.weight, self.bias, self.eps, where)
        if tracks:
            # The average of the examples' moments; of those that a mask leaves without values there are none.
            share = 0.0 if self.momentum is None else self.momentum
            counted = None
            if count:
                seen = count[0] > 0
                counted = seen.sum(0)
                mean, var = (torch.where(seen, a, 0.0).sum(0) / counted.clamp(min=1) for a in (mean, var))
            else:
                mean, var = mean.mean(0), var.mean(0)
            update((self.running_mean, self.running_var), share, mean, var, counted)
        return y


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):  # type: ignore[misc]
    """``torch.nn.InstanceNorm1d`` of (N, C, L) and (C, L), on keepnorm.

    Arguments, buffers and ``state_dict`` are those of torch.nn; ``layer(x, where=mask)`` takes the moments from the values
    under the mask.

    Examples
    --------
    >>> import torch
    >>> from keepnorm.layers.torch import InstanceNorm1d
    >>> InstanceNorm1d(1, eps=0.0)(torch.tensor([[[1.0, 3.0]], [[10.0, 30.0]]]))
    tensor([[[-1.,  1.]],
    <BLANKLINE>
            [[-1.,  1.]]])
    """


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):  # type: ignore[misc]
    """``torch.nn.InstanceNorm2d`` of (N, C, H, W) and (C, H, W), on keepnorm; see `InstanceNorm1d`."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):  # type: ignore[misc]
    """``torch.nn.InstanceNorm3d`` of (N, C, D, H, W) and (C, D, H, W), on keepnorm; see `InstanceNorm1d`."""
