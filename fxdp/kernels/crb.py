"""The weight gradients of a convolution's samples, as one convolution.

A convolution of x with g as its kernel (Rochette et al., arXiv:1912.06015, alg. 1-2). The channels
of a group become an axis of their own, so a 1-d layer is a 2-d convolution and a 2-d layer a 3-d
one. In the layer, t carries the stride and k the dilation; here k is the output and t the kernel,
so the two change places. Where the layer's stride left inputs over, there is more output than
kernel: it is cut off.

Letters: n samples, t positions folded into the batch axis, C channels in, D channels out, G groups.
"""

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake


def chained(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """[N, *weight] from x [N, t, C, ...] and g [N, t, D, ...], a layer of one or two axes."""
    n, t = x.shape[:2]
    kernel, count = weight[2:], n * t * groups
    conv = torch.nn.functional.conv2d if len(kernel) == 1 else torch.nn.functional.conv3d
    out = conv(
        x.reshape(1, count, x.shape[2] // groups, *x.shape[3:]),
        g.reshape(n * t * g.shape[2], 1, 1, *g.shape[3:]),
        groups=count,
        stride=(1, *dilation),
        dilation=(1, *stride),
        padding=(0, *padding),
    )
    for axis, k in enumerate(kernel):
        out = out.narrow(3 + axis, 0, k)
    return out.reshape(n, t, *weight).sum(1)


@define("crb_conv")
def crb_conv(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """The same as one op: the copies around it are torch's, several times as fast on a CPU as what
    Inductor writes where images are channels last."""
    if not len(x):
        return x.new_zeros(0, *weight)
    return chained(x, g, weight, stride, padding, dilation, groups).contiguous()


@fake("crb_conv")
def _(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], *weight)
