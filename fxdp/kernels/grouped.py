"""Convolutions whose groups hold the batch, opaque to Inductor, which would make the batch size a
constant."""

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake


@define("convolution")
def convolution(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """A convolution whose number of groups is symbolic: Inductor's own would fix it."""
    return torch.ops.aten.convolution(
        x, weight, None, stride, padding, dilation, transposed, output_padding, groups
    ).contiguous()


@fake("convolution")
def _(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    axes = zip(
        x.shape[2:], padding, dilation, weight.shape[2:], stride, output_padding, strict=True
    )
    sizes = [
        (h - 1) * s - 2 * p + d * (k - 1) + o + 1
        if transposed
        else (h + 2 * p - d * (k - 1) - 1) // s + 1
        for h, p, d, k, s, o in axes
    ]
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    return x.new_empty(x.shape[0], channels, *sizes)


@define("convolution_input")
def convolution_input(
    g: Tensor, x: list[int], weight: Tensor, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The gradient of its input, of which the shape is enough."""
    shape, only = weight.new_zeros(()).expand(x), [True, False, False]
    return torch.ops.aten.convolution_backward(
        g, shape, weight, None, stride, padding, dilation, transposed, output_padding, groups, only
    )[0].contiguous()


@fake("convolution_input")
def _(
    g: Tensor, x: list[int], weight: Tensor, stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return g.new_empty(x)


@define("convolution_weight")
def convolution_weight(
    g: Tensor, x: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The gradient of its weight."""
    shape, only = x.new_zeros(()).expand(weight), [False, True, False]
    return torch.ops.aten.convolution_backward(
        g, x, shape, None, stride, padding, dilation, transposed, output_padding, groups, only
    )[1].contiguous()


@fake("convolution_weight")
def _(
    g: Tensor, x: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], transposed: bool, output_padding: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(weight)
