"""Clipped sums, and their release, as single ops for a CPU.

A clipped sum adds up factor[n] times sample n's share. A sample whose factor is 0 must add
exactly 0, even where it holds infinities. Spelled with pointwise ops that costs a copy of every
operand at every step, for the sake of samples that hardly ever come. An op can look at the N
factors first, and copy only then; and it weighs the smaller of two operands.
"""

import torch
from torch import Tensor

WEIGHT_ONLY = [False, True, False]
BLOCK = 1 << 16  # numbers that the processor's cache holds, with room for as many more


def without_muted(x: Tensor, factor: Tensor) -> Tensor:
    """x [N, ...], but 0 where the factor is 0; x itself where no factor is."""
    quiet = factor == 0
    if not bool(quiet.any()):
        return x
    return x.masked_fill(quiet.view(-1, *[1] * (x.dim() - 1)), 0)


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x[n, ...] * factor[n]"""
    return x * factor.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)


def weigh_one(x: Tensor, y: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """x and y, the smaller of them times the factors, neither holding what a factor of 0 mutes."""
    x, y = without_muted(x, factor), without_muted(y, factor)
    return (scaled(x, factor), y) if x.numel() < y.numel() else (x, scaled(y, factor))


@torch.library.custom_op("fxdp::weighed_outer", mutates_args=())
def weighed_outer(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """[i, o] from a [N, t, i], b [N, t, o] and factor [N]."""
    a, b = weigh_one(a, b, factor)
    return a.flatten(0, 1).T @ b.flatten(0, 1)


@weighed_outer.register_fake
def _(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    return a.new_empty(a.shape[-1], b.shape[-1])


@torch.library.custom_op("fxdp::weighed_sum", mutates_args=())
def weighed_sum(x: Tensor, factor: Tensor) -> Tensor:
    """[...] from x [N, ...] and factor [N]."""
    x = without_muted(x, factor)
    return torch.mv(x.unsqueeze(-1).flatten(1).T, factor.to(x.dtype)).view(x.shape[1:])


@weighed_sum.register_fake
def _(x: Tensor, factor: Tensor) -> Tensor:
    return x.new_empty(x.shape[1:])


@torch.library.custom_op("fxdp::weighed_conv", mutates_args=())
def weighed_conv(
    x: Tensor, g: Tensor, factor: Tensor, weight: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """[*weight], a convolution's weight gradient from x [N, C, ...], g [N, D, ...], factor [N]."""
    x, g = weigh_one(x, g, factor)
    shape = x.new_zeros(()).expand(weight)
    flat = [0] * len(stride)
    return torch.ops.aten.convolution_backward(
        g, x, shape, None, stride, padding, dilation, False, flat, groups, WEIGHT_ONLY
    )[1].contiguous()


@weighed_conv.register_fake
def _(
    x: Tensor, g: Tensor, factor: Tensor, weight: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(weight)


@torch.library.custom_op(
    "fxdp::released", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def released(
    total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, public: Tensor | None,
    draw: int,
) -> Tensor:  # fmt: skip
    """((total + scale xi) / expected + public) * tangent, with xi standard normal.

    Block by block, as a block stays in the cache between its draw and the sum.

    Args:
        total, public: of one shape and dtype, float32 or float64.
        scale, expected, tangent: 0-d.
        draw: no two of a graph are equal. Two calls that look alike are one to whoever looks
            for common subexpressions, and two parameters would get the same noise.
    """
    out = torch.empty(total.shape, dtype=total.dtype)
    flat, source = out.view(-1), total.reshape(-1)
    factor = float(tangent) / float(expected)
    for start in range(0, len(flat), BLOCK):
        part = flat[start : start + BLOCK]
        part.normal_(0, abs(float(scale) * factor)) if float(scale) != 0 else part.zero_()
        part.add_(source[start : start + BLOCK], alpha=factor)
    return out if public is None else out.add_(public, alpha=float(tangent))


@released.register_fake
def _(
    total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, public: Tensor | None,
    draw: int,
) -> Tensor:  # fmt: skip
    return torch.empty(total.shape, dtype=total.dtype, device=total.device)
