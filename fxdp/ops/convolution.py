"""Convolutions of any dimension, transposed or not, and their gradients.

Letters: N samples, t positions folded into the batch axis (frames of a video), C channels in,
D channels out. The gradient reaches us split in two (see `decompositions`): one node for the
input's, one for the weight's, which is the sum over samples.
"""

from collections.abc import Sequence
from typing import Any

import torch

from fxdp.forms.conv import Conv, Spec
from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, SumRule, Table, refuse_samples

aten = torch.ops.aten


def convolved(call: Call, x: Any, weight: Any, bias: Any, *_: Any) -> Placement:
    """Every sample of the batch axis by itself; channels and pixels mix."""
    refuse_samples(weight, bias)
    match x.placement:
        case Shard(0):
            return x.placement
        case Replicate():
            return Replicate()
        case Partial() if bias is None:
            return x.placement
        case _:
            raise Mixed("it convolves along the batch axis")


def convolved_back(
    call: Call, grad: Any, x: Any, weight: Any, sizes: Any, stride: Any, padding: Any,
    dilation: Any, transposed: Any, output_padding: Any, groups: Any, mask: Any,
) -> tuple[Placement | None, ...]:  # fmt: skip
    """The gradients that `mask` asks for: input, weight, bias."""
    refuse_samples(weight)
    match grad.placement, x.placement:
        case Shard(0) as at, Shard() as other if at == other:
            found: tuple[Placement, Placement, Placement] = (at, Partial(), Partial())
        case Replicate(), Replicate():
            found = (Replicate(), Replicate(), Replicate())
        case Partial() as total, Replicate():
            found = (total, total, total)
        case _:
            raise Mixed("it convolves along the batch axis")
    return tuple(p if wanted else None for p, wanted in zip(found, mask, strict=True))


def weight_form(
    grad: Any, x: Any, weight: torch.Tensor, sizes: Any, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int, mask: Any,
) -> Conv:  # fmt: skip
    """The weight's gradient; a transposed convolution is one with its two sides exchanged."""
    kernel = weight.dim() - 2
    step, pad, gap = (each_axis(m, kernel) for m in (stride, padding, dilation))
    spec = Spec(tuple(weight.shape), step, pad, gap, groups)
    x, grad = x.samples_first(), grad.samples_first()
    return Conv(grad, x, spec) if transposed else Conv(x, grad, spec)


def each_axis(move: Sequence[int], kernel: int) -> tuple[int, ...]:
    """One number for each axis of the kernel, where one may be given for all."""
    return tuple(move) if len(move) == kernel else tuple(move) * kernel


RULES: Table = {
    aten.convolution.default: Rule(convolved),
    aten.convolution_backward.default: SumRule(convolved_back, form=weight_form),
}
