"""Layer, RMS and group norm with the names, arguments and parameters of torch.nn."""

from typing import Any

import torch
from torch import nn

from keepnorm.functional import normalize

Tensor = Any


def _lead(input: Tensor, shape: tuple[int, ...]) -> int:
    """How many axes of the input lie before those of a normalised shape.

    Raises
    ------
    RuntimeError
        If the input does not end in that shape; torch.nn raises the same.
    """
    lead = int(input.ndim) - len(shape)
    if not shape or lead < 0 or tuple(input.shape[lead:]) != shape:
        raise RuntimeError(f"normalized_shape={list(shape)} needs an input of shape [*, {shape}]; got {list(input.shape)}")
    return lead


class LayerNorm(nn.LayerNorm):  # type: ignore[misc]
    """``torch.nn.LayerNorm`` on keepnorm: the same arguments, parameters and ``state_dict``.

    ``layer(x, where=mask)`` takes the moments from the values under the mask.

    Examples
    --------
    >>> import torch
    >>> from keepnorm.layers.torch import LayerNorm
    >>> LayerNorm(2, eps=0.0, bias=False)(torch.tensor([[1.0, 3.0], [10.0, 30.0]])).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """

    def forward(self, input: Tensor, *, where: Tensor | None = None) -> Tensor:
        """Normalise the last axes: one mean and one variance for each place of the others.

        Parameters
        ----------
        input : Tensor
            Whose last axes have the sizes `normalized_shape`.
        where : Tensor of bool, optional
            Which values count in the moments; it broadcasts to the input. Every value is normalised.

        Returns
        -------
        Tensor
            Of the shape, dtype and device of the input.

        Raises
        ------
        RuntimeError
            If the input does not end in `normalized_shape`.
        """
        lead = _lead(input, self.normalized_shape)
        keep, affine = tuple(range(lead)), tuple(range(lead, input.ndim))
        return normalize(input, keep, self.weight, self.bias, affine=affine, eps=self.eps, where=where)


class RMSNorm(nn.RMSNorm):  # type: ignore[misc]
    """``torch.nn.RMSNorm`` on keepnorm: the same arguments, parameter and ``state_dict``; ``eps=None`` is that of the dtype.

    Examples
    --------
    >>> import torch
    >>> from keepnorm.layers.torch import RMSNorm
    >>> RMSNorm(2)(torch.tensor([[3.0, -3.0]]))
    tensor([[ 1., -1.]], grad_fn=<NormalizeBackward>)
    """

    def forward(self, x: Tensor, *, where: Tensor | None = None) -> Tensor:
        """Divide the last axes by their root mean square.

        Parameters
        ----------
        x : Tensor
            Whose last axes have the sizes `normalized_shape`.
        where : Tensor of bool, optional
            Which values count in the mean square; it broadcasts to x. Every value is divided.

        Returns
        -------
        Tensor
            Of the shape, dtype and device of x.

        Raises
        ------
        RuntimeError
            If x does not end in `normalized_shape`.
        """
        lead = _lead(x, self.normalized_shape)
        keep, affine = tuple(range(lead)), tuple(range(lead, x.ndim))
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return normalize(x, keep, self.weight, affine=affine, eps=eps, center=False, where=where)


class GroupNorm(nn.GroupNorm):  # type: ignore[misc]
    """``torch.nn.GroupNorm`` on keepnorm: the same arguments, parameters and ``state_dict``.

    ``layer(x, where=mask)`` takes the moments from the values under the mask.

    Examples
    --------
    >>> import torch
    >>> from keepnorm.layers.torch import GroupNorm
    >>> GroupNorm(2, 4, eps=0.0, affine=False)(torch.tensor([[1.0, 3.0, 10.0, 30.0]]))
    tensor([[-1.,  1., -1.,  1.]])
    """

    def forward(self, input: Tensor, *, where: Tensor | None = None) -> Tensor:
        """Normalise each group of channels of each example.

        Parameters
        ----------
        input : Tensor
            Of shape (N, C, *).
        where : Tensor of bool, optional
            Which values count in the moments; it broadcasts to the input. Every value is normalised.

        Returns
        -------
        Tensor
            Of the shape, dtype and device of the input.

        Raises
        ------
        RuntimeError
            If the input has fewer than two axes, or not the number of channels that the layer has.
        ValueError
            If each group of an example is one value.
        """
        if input.ndim < 2 or input.shape[1] % self.num_groups or (self.affine and input.shape[1] != self.num_channels):
            raise RuntimeError(f"GroupNorm needs an input of shape (N, {self.num_channels}, *); got {list(input.shape)}")
        if input.numel() == input.shape[0] * self.num_groups == self.num_groups:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
        dims = " ".join(f"d{a}" for a in range(2, input.ndim))
        pattern = f"n (g c) {dims} -> n g"
        given = {"affine": "g c", "eps": self.eps, "where": where, "g": self.num_groups}
        return normalize(input, pattern, self.weight, self.bias, **given)
