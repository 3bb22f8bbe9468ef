"""Clipped sums as single ops.

A clipped sum adds up factor[n] times sample n's share. A sample whose factor is 0 must add
exactly 0, even where it holds infinities. Spelled with pointwise ops that costs a copy of every
operand at every step, for the sake of samples that hardly ever come. An op can look at the N
factors first, and copy only then; and it weighs the smaller of two operands.
"""

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake, on_cuda, runs_tiled
from fxdp.kernels.precision import HALVES, wide, wide_dtype

WEIGHT_ONLY = [False, True, False]


def without_muted(x: Tensor, factor: Tensor) -> Tensor:
    """x [N, ...], but 0 where the factor is 0; x itself where no factor is."""
    return x if bool(factor.all()) else muted(x, factor)


def muted(x: Tensor, factor: Tensor) -> Tensor:
    """x [N, ...], but 0 where the factor is 0."""
    return x.masked_fill((factor == 0).view(-1, *[1] * (x.dim() - 1)), 0)


def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x[n, ...] * factor[n]"""
    return x * factor.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)


def weigh_one(x: Tensor, y: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """x and y, the smaller of them times the factors, neither holding what a factor of 0 mutes."""
    if not bool(factor.all()):
        x, y = muted(x, factor), muted(y, factor)
    return (scaled(x, factor), y) if x.numel() < y.numel() else (x, scaled(y, factor))


@define("weighed_outer")
def weighed_outer(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """[i, o] from a [N, t, i], b [N, t, o] and factor [N]; in float32 at least."""
    return of_weighed(wide(a), wide(b), factor)


@on_cuda("weighed_outer")
def _(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    # Of float32 numbers cuBLAS makes one product sooner, their weighing included.
    if a.dtype != b.dtype or a.dtype not in HALVES or not runs_tiled(a, b):
        return of_weighed(wide(a), wide(b), factor)
    from fxdp.kernels.triton.clipped_sum import clipped_sum  # triton is optional

    return clipped_sum(a, b, factor)


def of_weighed(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """[i, o] as one product, of operands of which one was multiplied by the factors."""
    a, b = weigh_one(a, b, factor)
    steps_first = a.shape[1] > 1 and max(a, b, key=Tensor.numel).transpose(0, 1).is_contiguous()
    if steps_first:  # no copy of the larger one
        a, b = a.transpose(0, 1), b.transpose(0, 1)
    return a.flatten(0, 1).T @ b.flatten(0, 1)


@fake("weighed_outer")
def _(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    return a.new_empty(a.shape[-1], b.shape[-1], dtype=wide_dtype(a))


@define("weighed_sum")
def weighed_sum(x: Tensor, factor: Tensor) -> Tensor:
    """[...] from x [N, ...] and factor [N]."""
    x = without_muted(x, factor)
    flat = x.flatten(1) if x.dim() > 1 else x.unsqueeze(-1)
    return torch.mv(flat.T, factor.to(x.dtype)).view(x.shape[1:])


@fake("weighed_sum")
def _(x: Tensor, factor: Tensor) -> Tensor:
    return x.new_empty(x.shape[1:])


@define("weighed_sums")
def weighed_sums(xs: list[Tensor], factor: Tensor) -> list[Tensor]:
    """[...] each, from each x [N, ...] and one factor [N]."""
    if not bool(factor.all()):
        xs = [muted(x, factor) for x in xs]
    by_dtype = {x.dtype: factor.to(x.dtype) for x in xs}
    return [torch.mv(x.unsqueeze(-1).flatten(1).T, by_dtype[x.dtype]).view(x.shape[1:]) for x in xs]


@fake("weighed_sums")
def _(xs: list[Tensor], factor: Tensor) -> list[Tensor]:
    return [x.new_empty(x.shape[1:]) for x in xs]


@define("squared_norms")
def squared_norms(xs: list[Tensor]) -> Tensor:
    """[k, N] squared norms from k tensors x [N, ...] of one dtype, row by row."""
    return torch.stack([squared(x) for x in xs])


def squared(x: Tensor) -> Tensor:
    """[N] squared norms of [N, ...]: of the norms of its rows, for in float32 a norm of 50 million
    numbers at once comes out 0.4 % too small."""
    if x.dim() > 2:
        x = torch.linalg.vector_norm(x, dim=list(range(2, x.dim())))
    x = x if x.dim() > 1 else x.unsqueeze(1)
    return torch.linalg.vector_norm(x, dim=1).square()


@fake("squared_norms")
def _(xs: list[Tensor]) -> Tensor:
    return xs[0].new_empty(len(xs), xs[0].shape[0])


@define("weighed_conv")
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


@fake("weighed_conv")
def _(
    x: Tensor, g: Tensor, factor: Tensor, weight: list[int], stride: list[int],
    padding: list[int], dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(weight)
