"""Layer norm and group norm, whole: torch's kernels take a fraction of the time of their parts.

The gradients of scale and shift sum over samples and that of the input does not, so the
backward op reaches the proof split: the input's gradient as one node, the others spelled out.
The nodes are of ops of `fxdp.kernels.opaque`, which see to strides that torch's kernels need.

Letters: N samples, t positions folded into the batch axis, C channels in G groups.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxdp.forms.each import Each, given
from fxdp.kernels import opaque as whole
from fxdp.placement import Mixed, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, agreed, linear, refuse_samples
from fxdp.torch_internals import OpOverload, decomposition_table, statically_known_true

aten = torch.ops.aten
INPUT_ONLY = [True, False, False]


def outside(call: Call, at: Placement | None, own: int) -> Placement:
    """Where the samples are, if not on one of the first `own` axes' inside."""
    if at is None:
        return Replicate()
    if isinstance(at, Shard) and at.dim < own:
        return at
    raise Mixed("it normalizes over the batch axis")


def layer_normed(
    call: Call, x: Any, shape: Any, weight: Any, bias: Any, eps: Any
) -> tuple[Placement, ...]:
    """Result, means and deviations; all of them per position."""
    refuse_samples(weight, bias)
    at = outside(call, agreed(call, x), x.rank - len(shape))
    return at, at, at


def layer_normed_back(
    call: Call, grad: Any, x: Any, shape: Any, mean: Any, rstd: Any, weight: Any, bias: Any
) -> Placement:
    """The input's gradient."""
    return back(call, grad, x, mean, rstd, weight, bias, x.rank - len(shape))


def group_normed(
    call: Call, x: Any, weight: Any, bias: Any, groups: Any, eps: Any
) -> tuple[Placement, ...]:
    """Result, means and deviations; all of them per row of the batch."""
    refuse_samples(weight, bias)
    at = outside(call, agreed(call, x), 1)
    return at, at, at


def group_normed_back(
    call: Call, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any, groups: Any
) -> Placement:
    """The input's gradient."""
    return back(call, grad, x, mean, rstd, weight, None, 1)


def back(
    call: Call, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any, bias: Any, own: int
) -> Placement:
    """The gradient of an input whose first `own` axes are normalized one by one."""
    refuse_samples(weight, bias)
    if grad.shape != x.shape:
        raise Mixed("the gradient is not of the input's shape")
    total = linear(call, grad, x, mean, rstd)
    if total is not None:
        return total
    if mean.placement != x.placement or rstd.placement != x.placement:
        raise Mixed("the statistics are not those of the samples")
    return outside(call, agreed(call, grad, x), own)


RULES: Table = {
    aten.native_layer_norm.default: Rule(layer_normed),
    whole.layer_norm_backward.default: Rule(layer_normed_back),
    whole.group_norm.default: Rule(group_normed),
    whole.group_norm_backward.default: Rule(group_normed_back),
}


def is_narrow(x: Tensor) -> bool:
    """Is x of a dtype whose norms are computed in float32, and so in parts?"""
    return x.dtype in (torch.float16, torch.bfloat16)


def in_parts(op: OpOverload, *args: Any) -> Any:
    """What torch takes an op apart into."""
    return decomposition_table[op](*args)


def layer_norm(x: Tensor, *rest: Any) -> Any:
    return in_parts(aten.native_layer_norm.default, x, *rest) if is_narrow(x) else NotImplemented


def rows_are_samples(x: Tensor, rows: int) -> bool:
    """Are the rows those of the batch axis? torch computes pixels by dividing by their number."""
    return statically_known_true(x.shape[0] == rows)


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: int, channels: int, pixels: int,
    groups: int, eps: float,
) -> Any:  # fmt: skip
    """Statistics of each group of channels of each sample."""
    if not rows_are_samples(x, rows):
        rest = (rows, channels, pixels, groups, eps)
        return in_parts(aten.native_group_norm.default, x, weight, bias, *rest)
    if not is_narrow(x):
        return whole.group_norm(x, weight, bias, groups, eps)
    grouped = x.float().reshape(rows, groups, -1)
    var, mean = torch.var_mean(grouped, dim=2, correction=0)
    rstd = torch.rsqrt(var + eps)
    out = ((grouped - mean.unsqueeze(2)) * rstd.unsqueeze(2)).reshape(x.shape)
    shape = [channels, *[1] * (x.dim() - 2)]
    if weight is not None:
        out = out * weight.reshape(shape)
    if bias is not None:
        out = out + bias.reshape(shape)
    return out.to(x.dtype), mean, rstd


def layer_norm_backward(
    grad: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, mask: list[bool],
) -> Any:  # fmt: skip
    """The input's gradient by torch's kernel, the others spelled out."""
    rest = (grad, x, shape, mean, rstd, weight, bias)
    if is_narrow(x):
        return in_parts(aten.native_layer_norm_backward.default, *rest, mask)
    found: list[Tensor | None] = [None, None, None]
    if mask[0]:
        found[0] = whole.layer_norm_backward(*rest)
    rows = list(range(x.dim() - len(shape)))
    if mask[1] and weight is not None:
        scaled = grad * ((x - mean) * rstd)
        found[1] = (scaled.sum(rows) if rows else scaled).to(weight.dtype)
    if mask[2] and bias is not None:
        found[2] = (grad.sum(rows) if rows else grad).to(bias.dtype)
    return tuple(found)


def group_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, rows: int,
    channels: int, pixels: int, groups: int, mask: list[bool],
) -> Any:  # fmt: skip
    """The same for groups of channels."""
    if is_narrow(x) or not rows_are_samples(x, rows):
        rest = (rows, channels, pixels, groups, mask)
        op = aten.native_group_norm_backward.default
        return in_parts(op, grad, x, mean, rstd, weight, *rest)
    found: list[Tensor | None] = [None, None, None]
    if mask[0]:
        found[0] = whole.group_norm_backward(grad, x, mean, rstd, weight, groups)
    dtype = x.dtype if weight is None else weight.dtype
    sums = grad.reshape(rows, channels, -1).sum(2)
    if mask[1]:
        dots = (grad * x).reshape(rows, channels, -1).sum(2)
        dots, by_group = (t.reshape(rows, groups, -1) for t in (dots, sums))
        scaled = (dots - by_group * mean.unsqueeze(2)) * rstd.unsqueeze(2)
        found[1] = scaled.reshape(rows, channels).sum(0).to(dtype)
    if mask[2]:
        found[2] = sums.sum(0).to(dtype)
    return tuple(found)


DECOMPOSITIONS: dict[OpOverload, Callable[..., Any]] = {
    aten.native_layer_norm.default: layer_norm,
    aten.native_layer_norm_backward.default: layer_norm_backward,
    aten.native_group_norm.default: group_norm,
    aten.native_group_norm_backward.default: group_norm_backward,
}


def layer_norm_backward_in_parts(g: Tensor, *rest: Any) -> Tensor:
    return in_parts(aten.native_layer_norm_backward.default, g, *rest, INPUT_ONLY)[0]


def group_norm_in_parts(x: Tensor, weight: Any, bias: Any, groups: int, eps: float) -> Any:
    if x.device.type == "cpu":
        return NotImplemented
    sizes = (*x.shape[:2], x.shape[2:].numel())
    return in_parts(aten.native_group_norm.default, x, weight, bias, *sizes, groups, eps)


def group_norm_backward_in_parts(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Any, groups: int
) -> Any:
    if x.device.type == "cpu":
        return NotImplemented
    rest = (*x.shape[:2], x.shape[2:].numel(), groups, INPUT_ONLY)
    return in_parts(aten.native_group_norm_backward.default, g, x, mean, rstd, weight, *rest)[0]


# What Inductor fuses with what is around; on a CPU its group norms are slower than torch's kernel.
FOR_INDUCTOR: dict[OpOverload, Callable[..., Any]] = {
    whole.layer_norm_backward.default: layer_norm_backward_in_parts,
    whole.group_norm.default: group_norm_in_parts,
    whole.group_norm_backward.default: group_norm_backward_in_parts,
}


def each_layer_normed_back(
    grad: Each, x: Tensor, shape: Any, mean: Tensor, rstd: Tensor, weight: Any, bias: Any
) -> Each:
    """The norm of something that all samples share, with a gradient of each sample's own."""
    x, mean, rstd = (given(t, grad.value.shape[0]) for t in (x, mean, rstd))
    return Each(whole.layer_norm_backward(grad.value, x, shape, mean, rstd, weight, bias))


def each_group_normed_back(
    grad: Each, x: Tensor, mean: Tensor, rstd: Tensor, weight: Any, groups: int
) -> Each:
    """The same for groups of channels; N batches are one larger batch."""
    n = grad.value.shape[0]
    all_of_them = (given(t, n) for t in (grad, x, mean, rstd))
    folded = (t.flatten(0, 1) for t in all_of_them)
    return Each(whole.group_norm_backward(*folded, weight, groups).reshape(grad.value.shape))


EACH: dict[OpOverload, Callable[..., Any]] = {
    whole.layer_norm_backward.default: each_layer_normed_back,
    whole.group_norm_backward.default: each_group_normed_back,
}
