"""aten kernels kept opaque to Inductor on CPU, where its own code for them is several times slower.

Some of them read their operands as if these were contiguous, as they are where autograd calls them;
here the ops make them contiguous themselves.
"""

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake

INPUT_ONLY = [True, False, False]


@define("max_pool2d_backward")
def max_pool2d_backward(
    g: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], ceil: bool, indices: Tensor,
) -> Tensor:  # fmt: skip
    """[N, C, ...], the gradient of a max-pool, by torch's own kernel."""
    return torch.ops.aten.max_pool2d_with_indices_backward(
        g, x, kernel, stride, padding, dilation, ceil, indices
    ).contiguous()


@fake("max_pool2d_backward")
def _(
    g: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], ceil: bool, indices: Tensor,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


@define("group_norm")
def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """[N, C, ...], and means and deviations [N, groups]."""
    rows, channels = x.shape[:2]
    pixels = x.shape[2:].numel()
    return torch.ops.aten.native_group_norm(
        x.contiguous(), weight, bias, rows, channels, pixels, groups, eps
    )


@fake("group_norm")
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[0], groups)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


@define("group_norm_backward")
def group_norm_backward(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, groups: int
) -> Tensor:
    """[N, C, ...], the gradient of the input."""
    rows, channels = x.shape[:2]
    pixels = x.shape[2:].numel()
    g, x, mean, rstd = (t.contiguous() for t in (g, x, mean, rstd))
    return torch.ops.aten.native_group_norm_backward(
        g, x, mean, rstd, weight, rows, channels, pixels, groups, INPUT_ONLY
    )[0]


@fake("group_norm_backward")
def _(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, groups: int
) -> Tensor:
    return x.new_empty(x.shape)


@define("layer_norm_backward")
def layer_norm_backward(
    g: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:  # fmt: skip
    """[..., *shape], the gradient of the input."""
    g, x, mean, rstd = (t.contiguous() for t in (g, x, mean, rstd))
    return torch.ops.aten.native_layer_norm_backward(
        g, x, shape, mean, rstd, weight, bias, INPUT_ONLY
    )[0]


@fake("layer_norm_backward")
def _(
    g: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)
