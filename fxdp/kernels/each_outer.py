"""Per-sample gradients of linear layers in half precision, whose products a tensor core sums."""

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake, on_cuda, runs_tiled


@define("each_outer")
def each_outer(a: Tensor, b: Tensor) -> Tensor:
    """float32 [N, i, o], the sums of a[n, t] b[n, t]^T, from a [N, t, i] and b [N, t, o] in half
    precision or float32, which are not rounded again."""
    return torch.bmm(a.float().transpose(1, 2), b.float())


@on_cuda("each_outer")
def _(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype != b.dtype or not runs_tiled(a, b):
        return torch.bmm(a.float().transpose(1, 2), b.float())
    return torch.bmm(a.transpose(1, 2), b, out_dtype=torch.float32)


@fake("each_outer")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[-1], b.shape[-1], dtype=torch.float32)
