"""Softmax and its relatives, which normalise along one axis, and scans along one axis."""

from typing import Any

import torch

from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, agreed, is_shared

aten = torch.ops.aten


def along(call: Call, dim: int, *operands: Any) -> Placement:
    """An op that may mix everything along `dim`, and nothing else."""
    at = agreed(call, *operands)
    if at is None:
        return Replicate()
    if at.dim == dim:
        raise Mixed("it works along the batch axis")
    return at


def normalised(call: Call, x: Any, dim: int, *_: Any, **__: Any) -> Placement:
    """softmax, log_softmax, cumprod: x and the axis come first."""
    return along(call, dim, x)


def normalised_back(call: Call, grad: Any, output: Any, dim: int, *_: Any) -> Placement:
    """The gradient of a softmax, linear in the incoming one."""
    if isinstance(grad.placement, Partial) and is_shared(output):
        return grad.placement
    return along(call, dim, grad, output)


def ordered(call: Call, x: Any, dim: int = -1, *_: Any, **__: Any) -> tuple[Placement, Placement]:
    """sort: values and their indices along an axis."""
    at = along(call, dim % max(x.rank, 1), x)
    return at, at


def ordered_stably(
    call: Call, x: Any, *, stable: Any = None, dim: int = -1, descending: Any = None
):
    """sort with its keywords."""
    return ordered(call, x, dim)


def argsorted(call: Call, x: Any, dim: int = -1, *_: Any, **__: Any) -> Placement:
    """The indices alone."""
    return along(call, dim % max(x.rank, 1), x)


def topped(call: Call, x: Any, k: Any, dim: int = -1, *_: Any) -> tuple[Placement, Placement]:
    """topk."""
    at = along(call, dim % max(x.rank, 1), x)
    return at, at


def kth(call: Call, x: Any, k: Any, dim: int, keepdim: bool = False) -> tuple[Placement, Placement]:
    """kthvalue, which drops the axis."""
    at = x.placement
    if isinstance(at, Shard) and at.dim != dim:
        at = Shard(at.dim - (dim < at.dim and not keepdim), at.inner)
    elif not isinstance(at, Replicate):
        raise Mixed("it works along the batch axis")
    at = at if isinstance(at, Shard) else Replicate()
    return at, at


def scanned(call: Call, x: Any, dim: int) -> tuple[Placement, Placement]:
    """cummax and cummin: values and indices."""
    at = along(call, dim, x)
    return at, at


RULES: Table = {
    aten._softmax.default: Rule(normalised),
    aten._log_softmax.default: Rule(normalised),
    aten._safe_softmax.default: Rule(normalised),
    aten._softmax_backward_data.default: Rule(normalised_back),
    aten._log_softmax_backward_data.default: Rule(normalised_back),
    aten.cumprod.default: Rule(normalised),
    aten.logcumsumexp.default: Rule(normalised),
    aten.glu.default: Rule(normalised),
    aten.glu_backward.default: Rule(normalised_back),
    aten.sort.default: Rule(ordered),
    aten.sort.stable: Rule(ordered_stably),
    aten.argsort.default: Rule(argsorted),
    aten.topk.default: Rule(topped),
    aten.kthvalue.default: Rule(kth),
    aten.cummax.default: Rule(scanned),
    aten.cummin.default: Rule(scanned),
}
