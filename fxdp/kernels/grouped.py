"""Convolutions whose groups hold the batch, opaque to Inductor, which would make the batch size a
constant."""

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake


@define("convolution")
def convolution(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Tensor:  # fmt: skip
    """A convolution whose number of groups is symbolic: Inductor's own would fix it."""
    flat = [0] * len(stride)
    return torch.ops.aten.convolution(
        x, weight, None, stride, padding, dilation, False, flat, groups
    ).contiguous()


@fake("convolution")
def _(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Tensor:  # fmt: skip
    sizes = [
        (h + 2 * p - d * (k - 1) - 1) // s + 1
        for h, p, d, k, s in zip(
            x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    return x.new_empty(x.shape[0], weight.shape[0], *sizes)


@define("convolution_weight")
def convolution_weight(
    g: Tensor, x: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The weight gradient of a convolution whose number of groups is symbolic."""
    shape = x.new_zeros(()).expand(weight)
    flat = [0] * len(stride)
    return torch.ops.aten.convolution_backward(
        g, x, shape, None, stride, padding, dilation, False, flat, groups, [False, True, False]
    )[1].contiguous()


@fake("convolution_weight")
def _(
    g: Tensor, x: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(weight)
