"""Layer norm and group norm, whole: torch's kernels take a fraction of the time of their parts.

The gradients of scale and shift sum over samples and that of the input does not, so the
backward op reaches the proof split: the input's gradient as one node, the others spelled out.

Letters: N samples, t positions folded into the batch axis, C channels in G groups.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._ops import OpOverload

from fxdp.forms.each import Each, given
from fxdp.placement import Mixed, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, agreed, linear, refuse_samples

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
    call: Call, grad: Any, x: Any, shape: Any, mean: Any, rstd: Any, weight: Any, bias: Any,
    mask: Any,
) -> tuple[Placement | None, ...]:  # fmt: skip
    """The input's gradient."""
    return back(call, grad, x, mean, rstd, weight, bias, x.rank - len(shape), mask)


def group_normed(
    call: Call, x: Any, weight: Any, bias: Any, rows: Any, channels: Any, pixels: Any, groups: Any,
    eps: Any,
) -> tuple[Placement, ...]:  # fmt: skip
    """Result, means and deviations; all of them per row of the batch."""
    refuse_samples(weight, bias)
    refuse_folded(x, rows)
    at = outside(call, agreed(call, x), 1)
    return at, at, at


def group_normed_back(
    call: Call, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any, rows: Any, channels: Any,
    pixels: Any, groups: Any, mask: Any,
) -> tuple[Placement | None, ...]:  # fmt: skip
    """The input's gradient."""
    refuse_folded(x, rows)
    return back(call, grad, x, mean, rstd, weight, None, 1, mask)


def refuse_folded(x: Any, rows: Any) -> None:
    """Refuse a number of rows that is not that of the batch axis.

    Pixels then are what is left of x; torch works them out by dividing by the number of rows.
    """
    if x.shape[0] != rows:
        raise Mixed("its rows are not those of the batch axis")


def back(
    call: Call, grad: Any, x: Any, mean: Any, rstd: Any, weight: Any, bias: Any, own: int,
    mask: Any,
) -> tuple[Placement | None, ...]:  # fmt: skip
    """The gradient of an input whose first `own` axes are normalized one by one."""
    if list(mask) != INPUT_ONLY:
        raise Mixed("it adds up the samples' gradients of scale and shift")
    refuse_samples(weight, bias)
    total = linear(call, grad, x, mean, rstd)
    if total is not None:
        return total, None, None
    if mean.placement != x.placement or rstd.placement != x.placement:
        raise Mixed("the statistics are not those of the samples")
    return outside(call, agreed(call, grad, x), own), None, None


RULES: Table = {
    aten.native_layer_norm.default: Rule(layer_normed),
    aten.native_layer_norm_backward.default: Rule(layer_normed_back),
    aten.native_group_norm.default: Rule(group_normed),
    aten.native_group_norm_backward.default: Rule(group_normed_back),
}


def is_narrow(x: Tensor) -> bool:
    """Is x of a dtype whose norms are worked out in float32, and so in parts?"""
    return x.dtype in (torch.float16, torch.bfloat16)


def in_parts(op: OpOverload, *args: Any) -> Any:
    """What torch takes an op apart into."""
    return decomposition_table[op](*args)


def layer_norm(x: Tensor, *rest: Any) -> Any:
    return in_parts(aten.native_layer_norm.default, x, *rest) if is_narrow(x) else NotImplemented


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: int, channels: int, pixels: int,
    groups: int, eps: float,
) -> Any:  # fmt: skip
    """Statistics of each group of channels of each sample."""
    if not is_narrow(x):
        return NotImplemented
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
    if not any(mask[1:]):
        return NotImplemented
    found: list[Tensor | None] = [None, None, None]
    if mask[0]:
        found[0] = aten.native_layer_norm_backward(*rest, INPUT_ONLY)[0]
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
    rest = (rows, channels, pixels, groups)
    if is_narrow(x):
        op = aten.native_group_norm_backward.default
        return in_parts(op, grad, x, mean, rstd, weight, *rest, mask)
    if not any(mask[1:]):
        return NotImplemented
    found: list[Tensor | None] = [None, None, None]
    if mask[0]:
        found[0] = aten.native_group_norm_backward(grad, x, mean, rstd, weight, *rest, INPUT_ONLY)[
            0
        ]
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


def opaque_layer_norm_backward(
    grad: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, mask: list[bool],
) -> Any:  # fmt: skip
    """torch's own kernel, whatever the strides of what it is given."""
    only = torch.ops.fxdp.layer_norm_backward(grad, x, shape, mean, rstd, weight, bias)
    return only, None, None


def opaque_group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: int, channels: int, pixels: int,
    groups: int, eps: float,
) -> Any:  # fmt: skip
    return torch.ops.fxdp.group_norm(x, weight, bias, groups, eps)


def opaque_group_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, rows: int,
    channels: int, pixels: int, groups: int, mask: list[bool],
) -> Any:  # fmt: skip
    only = torch.ops.fxdp.group_norm_backward(grad, x, mean, rstd, weight, groups)
    return only, None, None


def on_cpu(op: OpOverload, opaque: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel on a CPU; elsewhere what torch takes the op apart into."""

    def choose(x: Tensor, *rest: Any) -> Any:
        return opaque(x, *rest) if x.device.type == "cpu" else in_parts(op, x, *rest)

    return choose


DECOMPOSITIONS: dict[OpOverload, Callable[..., Any]] = {
    aten.native_layer_norm.default: layer_norm,
    aten.native_layer_norm_backward.default: layer_norm_backward,
    aten.native_group_norm.default: group_norm,
    aten.native_group_norm_backward.default: group_norm_backward,
}

FOR_EAGER: dict[OpOverload, Callable[..., Any]] = {
    aten.native_layer_norm_backward.default: opaque_layer_norm_backward,
    aten.native_group_norm.default: opaque_group_norm,
    aten.native_group_norm_backward.default: opaque_group_norm_backward,
}

FOR_INDUCTOR: dict[OpOverload, Callable[..., Any]] = {
    op: on_cpu(op, FOR_EAGER[op])
    for op in (aten.native_group_norm.default, aten.native_group_norm_backward.default)
}


def each_layer_normed_back(
    grad: Each, x: Tensor, shape: Any, mean: Tensor, rstd: Tensor, weight: Any, bias: Any, _: Any
) -> tuple[Any, ...]:
    """The norm of something that all samples share, with a gradient of each sample's own."""
    x, mean, rstd = (given(t, grad.value.shape[0]) for t in (x, mean, rstd))
    out = torch.ops.fxdp.layer_norm_backward(grad.value, x, shape, mean, rstd, weight, bias)
    return Each(out), None, None


def each_group_normed_back(
    grad: Each, x: Tensor, mean: Tensor, rstd: Tensor, weight: Any, rows: int, channels: int,
    pixels: int, groups: int, _: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """The same for groups of channels; N batches are one larger batch."""
    n = grad.value.shape[0]
    all_of_them = (given(t, n) for t in (grad, x, mean, rstd))
    folded = (t.reshape(n * rows, *t.shape[2:]) for t in all_of_them)
    out = torch.ops.fxdp.group_norm_backward(*folded, weight, groups)
    return Each(out.reshape(grad.value.shape)), None, None


EACH: dict[OpOverload, Callable[..., Any]] = {
    aten.native_layer_norm_backward.default: each_layer_normed_back,
    aten.native_group_norm_backward.default: each_group_normed_back,
}
