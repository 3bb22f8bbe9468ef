"""Gradients of one sample after the other, behind the strategies "naive" and "multi"."""

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake
from fxdp.kernels.precision import wide, wide_dtype


@define("loop_outer")
def loop_outer(a: Tensor, b: Tensor) -> Tensor:
    """[N, i, o] from a [N, t, i] and b [N, t, o], one sample after the other; in float32 at
    least."""
    a, b = wide(a), wide(b)
    if not len(a):
        return a.new_zeros(0, a.shape[-1], b.shape[-1])
    return torch.stack([x.T @ y for x, y in zip(a, b, strict=True)])


@fake("loop_outer")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[-1], b.shape[-1], dtype=wide_dtype(a))


def _weight_of_one(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """[*weight], the gradient of one sample x [t, C, ...] with g [t, D, ...]."""
    shape = x.new_zeros(()).expand(weight)
    rest = (stride, padding, dilation, False, [0] * len(stride), groups, [False, True, False])
    return torch.ops.aten.convolution_backward(g, x, shape, None, *rest)[1]


@define("loop_conv")
def loop_conv(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """[N, *weight] from x [N, t, C, ...] and g [N, t, D, ...], one sample after the other."""
    spec = (weight, stride, padding, dilation, groups)
    each = [_weight_of_one(xi, gi, *spec) for xi, gi in zip(x, g, strict=True)]
    return torch.stack(each) if each else x.new_zeros(0, *weight)


@define("replicas_conv")
def replicas_conv(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The same by `torch.vmap`, whose rule for convolutions would make N a constant if traced."""
    spec = (weight, stride, padding, dilation, groups)
    return torch.vmap(lambda xi, gi: _weight_of_one(xi, gi, *spec))(x, g).contiguous()


@fake("loop_conv")
@fake("replicas_conv")
def _(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], *weight)
