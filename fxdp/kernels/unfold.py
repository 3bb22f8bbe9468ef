"""Convolutions of single samples as matrix products, for a CPU.

A convolution is a product of its kernel with the windows that it stops at. The windows take up
as much memory as the kernel has places times the input, so they are made for a few samples at a
time, as many as the processor's cache holds.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fxdp.kernels.ghost import at_once
from fxdp.kernels.library import define, fake

CACHED = 1 << 19  # numbers in the windows of the samples that are taken at once


def windows(
    x: Tensor, g: Tensor, weight: Sequence[int], stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int,
) -> Iterator[tuple[slice, Tensor, Tensor]]:  # fmt: skip
    """Slices of samples, with windows [n G, C/G k, t] and gradients [n G, D/G, t] of each."""
    stops = g.shape[2:].numel()
    size = max(1, groups * torch.Size(weight[1:]).numel() * stops)
    step = max(1, CACHED // size)
    plain = all(v == 1 for v in (*weight[2:], *stride)) and not any(padding)
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        if plain:
            cut = x[part].flatten(2)
        else:
            cut = torch.ops.aten.im2col(
                _flat(x[part]), _two(weight[2:], 1), _two(dilation, 1), _two(padding, 0),
                _two(stride, 1),
            )  # fmt: skip
        yield (
            part,
            cut.reshape(-1, cut.shape[1] // groups, stops),
            g[part].reshape(-1, g.shape[1] // groups, stops),
        )


def _flat(x: Tensor) -> Tensor:
    """A picture; of one axis, where the layer has one."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def _two(sizes: Sequence[int], added: int) -> list[int]:
    """Settings for two axes, of which one may have been added."""
    return [*[added] * (2 - len(sizes)), *sizes]


@define("unfolded_conv")
def unfolded_conv(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """[N, *weight] from x [N, C, ...] and g [N, D, ...], a layer of one or two axes."""
    return unfold(x.new_empty(len(x), *weight), x, g, weight, stride, padding, dilation, groups)


def unfold(
    out: Tensor, x: Tensor, g: Tensor, weight: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """What `unfolded_conv` gives, in memory that is there."""
    for part, cut, own in windows(x, g, weight, stride, padding, dilation, groups):
        torch.bmm(own, cut.transpose(1, 2), out=out[part].view(len(cut), own.shape[1], -1))
    return out


@fake("unfolded_conv")
def _(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], *weight)


@define("ghost_conv")
def ghost_conv(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    """[N] squared norms of `unfolded_conv`, by products of all pairs of stops."""
    out = x.new_empty(len(x))
    spec = (weight, stride, padding, dilation, groups)
    for part, cut, own in windows(x, g, *spec):
        found = at_once(cut.transpose(1, 2), own.transpose(1, 2))
        out[part] = found.view(-1, groups).sum(1)
    return out


@fake("ghost_conv")
def _(
    x: Tensor, g: Tensor, weight: list[int], stride: list[int], padding: list[int],
    dilation: list[int], groups: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0])
