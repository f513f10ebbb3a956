"""Batch norms with the names, arguments and buffers of torch.nn."""

from typing import Any

from torch import nn

from keepnorm.layers.torch.statistics import update, with_own, with_running

Tensor = Any


class _BatchNorm:
    """The forward pass of all batch norms; the rest is that of torch.nn."""

    training: bool
    track_running_stats: bool
    momentum: float | None
    num_batches_tracked: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def _check_input_dim(self, input: Tensor) -> None:
        super()._check_input_dim(input)  # type: ignore[misc]

    def forward(self, input: Tensor, *, where: Tensor | None = None) -> Tensor:
        """Normalise each channel: training, with its own mean and variance, which move the running ones; else with those.

        Parameters
        ----------
        input : Tensor
            Channels on axis 1.
        where : Tensor of bool, optional
            Which values count in the moments of a training batch; it broadcasts to the input. Every value is normalised.
            A channel without any keeps its running moments.

        Returns
        -------
        Tensor
            Of the shape, dtype and device of the input.

        Raises
        ------
        ValueError
            If the number of axes is not the layer's, if channels have one value each in training, or shapes do not fit.
        """
        self._check_input_dim(input)
        learns = self.training and self.track_running_stats and self.running_mean is not None
        if learns and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if not self.training and self.running_mean is not None:
            return with_running(input, self.running_mean, self.running_var, self.weight, self.bias, self.eps)
        if input.numel() == 0:
            return nn.functional.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        several(input, self.training)
        y, mean, var, *count = with_own(input, (1,), self.weight, self.bias, self.eps, where)
        if learns:
            update((self.running_mean, self.running_var), self._share(), mean, var, *(count or (None,)))
        return y

    def _share(self) -> Any:
        """What the batch gives to the running moments: momentum, or one part of all batches so far."""
        if self.momentum is not None:
            return self.momentum
        return 0.0 if self.num_batches_tracked is None else 1.0 / self.num_batches_tracked.double()


def several(input: Tensor, training: bool) -> None:
    """Refuse channels of one value each, as torch.nn does.

    Raises
    ------
    ValueError
        If the output would be the bias whatever the input is.
    """
    if training and input.numel() == input.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):  # type: ignore[misc]
    """``torch.nn.BatchNorm1d`` of (N, C) and (N, C, L), on keepnorm.

    Arguments, buffers and ``state_dict`` are those of torch.nn. ``layer(x, where=mask)`` takes the moments of a training batch
    from the values under the mask, such as the valid steps of padded sequences.

    Examples
    --------
    >>> import torch
    >>> from keepnorm.layers.torch import BatchNorm1d
    >>> layer = BatchNorm1d(1)
    >>> layer(torch.tensor([[1.0], [3.0], [99.0]]), where=torch.tensor([[True], [True], [False]])).tolist()[:2]
    [[-0.9999949932098389], [0.9999949932098389]]
    >>> layer.running_mean
    tensor([0.2000])
    """


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):  # type: ignore[misc]
    """``torch.nn.BatchNorm2d`` of (N, C, H, W), on keepnorm; see `BatchNorm1d`."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):  # type: ignore[misc]
    """``torch.nn.BatchNorm3d`` of (N, C, D, H, W), on keepnorm; see `BatchNorm1d`."""
