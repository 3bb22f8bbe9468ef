"""Convolutions of any dimension, transposed or not, and their gradients.

Letters: N samples, t positions folded into the batch axis (frames of a video), C channels in,
D channels out. The gradient reaches us split in two (see `decompositions`): one node for the
input's, one for the weight's, which is the sum over samples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from fxdp.forms.conv import Conv, Spec
from fxdp.forms.each import Each, given
from fxdp.placement import ONE, Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, SumRule, Table, is_shared, refuse_counts, refuse_samples
from fxdp.shapes import quotient
from fxdp.torch_internals import OpOverload

aten = torch.ops.aten


def own_kernels(call: Call, x: Any, weight: Any, groups: Any) -> bool:
    """Is this a grouped convolution with a kernel for each sample?

    x is [B, N * C, ...], with the samples among its channels; the kernels are [N * D, C / G, ...]
    and the groups N * G, so that the first G groups are the channels and kernels of sample 0.
    """
    if is_shared(weight) or not isinstance(groups, sympy.Expr):
        return False
    at, own = x.placement, weight.placement
    return (
        isinstance(at, Shard)
        and isinstance(own, Shard)
        and (at.dim, own.dim) == (1, 0)
        and quotient(x.shape[1], call.n * at.inner) == 1
        and quotient(weight.shape[0], call.n * own.inner) == 1
        and (each := quotient(groups, call.n)) is not None
        and not each.has(call.n)
    )


def own_bias(call: Call, bias: Any) -> bool:
    """Is there no bias, or one [N * D] with a sample's own numbers in a row?"""
    if bias is None:
        return True
    at = bias.placement
    return isinstance(at, Shard) and quotient(bias.shape[0], call.n * at.inner) == 1


def convolved(
    call: Call, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: Any, output_padding: Any, groups: Any,
) -> Placement:  # fmt: skip
    """Every sample of the batch axis by itself; channels and pixels mix."""
    if own_kernels(call, x, weight, groups) and own_bias(call, bias):
        return Shard(1, quotient(call.out[0][1], call.n) or ONE)
    refuse_counts(call, groups)
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
    if own_kernels(call, x, weight, groups) and not mask[2]:
        channels = quotient(grad.shape[1], call.n)
        if grad.placement != Shard(1, channels or ONE):
            raise Mixed("the operands hold their samples on different axes")
        return (x.placement if mask[0] else None), (weight.placement if mask[1] else None), None
    refuse_counts(call, groups)
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


def each_convolved_back(
    grad: Each, x: Tensor, weight: Tensor, sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, mask: Any,
) -> tuple[Each | None, ...]:  # fmt: skip
    """A convolution of values that all samples share, with a gradient of each sample's own."""
    rest = (sizes, stride, padding, dilation, transposed, output_padding, groups)
    n = grad.value.shape[0]
    x = given(x, n)
    own = weights = None
    if mask[0]:
        batch = (t.reshape(-1, *t.shape[2:]) for t in (grad.value, x))
        own = aten.convolution_backward(*batch, weight, *rest, [True, False, False])[0]
        own = Each(own.reshape(x.shape))
    if mask[1]:
        kernel = weight.dim() - 2
        step, pad, gap = (each_axis(m, kernel) for m in (stride, padding, dilation))
        sides = (grad.value, x) if transposed else (x, grad.value)
        spec = Spec(tuple(weight.shape), step, pad, gap, groups)
        weights = Each(Conv(*sides, spec).per_sample())
    return own, weights, None


def each_convolved(x: Each, weight: Tensor, *rest: Any) -> Each:
    n, b = x.value.shape[:2]
    out = aten.convolution(x.value.reshape(n * b, *x.value.shape[2:]), weight, *rest)
    return Each(out.reshape(n, b, *out.shape[1:]))


EACH: dict[OpOverload, Callable[..., Any]] = {
    aten.convolution.default: each_convolved,
    aten.convolution_backward.default: each_convolved_back,
}
