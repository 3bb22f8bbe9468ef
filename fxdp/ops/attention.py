"""Fused attention kernels, forward and backward.

All of them attend within one entry of their batch and head axes, which are the first two.
"""

from typing import Any

import torch

from fxdp.placement import Mixed, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, Value

aten = torch.ops.aten


def attended(call: Call, *operands: Any, **keywords: Any) -> tuple[Placement | None, ...]:
    """Results and operands all carry their samples on the same batch or head axis."""
    found: set[Shard] = set()
    for x in (*operands, *keywords.values()):
        if not isinstance(x, Value) or isinstance(x.placement, Replicate):
            continue
        if not isinstance(x.placement, Shard) or x.placement.dim > 1 or x.rank == 2:
            raise Mixed("it attends along the batch axis")
        found.add(x.placement)
    if len(found) > 1:
        raise Mixed("the operands hold their samples on different axes")
    at = found.pop() if found else Replicate()
    # Heads, and batches, of queries and keys may differ in number: then they do not pair up.
    main = [x for x in operands if isinstance(x, Value) and x.rank == 4]
    if isinstance(at, Shard) and len({(x.placement, x.shape[at.dim]) for x in main}) > 1:
        raise Mixed("the operands hold their samples on different axes")
    # Seeds and offsets of the random generator hold no samples; everything else has them.
    return tuple(at if any(s.has(call.n) for s in shape) else Replicate() for shape in call.out)


RULES: Table = {
    op: Rule(attended)
    for op in (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        aten._scaled_dot_product_flash_attention_backward.default,
        aten._scaled_dot_product_efficient_attention_backward.default,
        aten._scaled_dot_product_cudnn_attention_backward.default,
    )
} | {
    op: Rule(attended, generator_at=2)
    for op in (
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    )
}
