"""Products of matrices.

Letters: an operand's axis that is multiplied and summed away is contracted. Samples on a free
axis stay there; samples on the contracted axis of both operands are summed, which is how the
gradient of every linear layer comes about.
"""

from typing import Any

import torch

from fxdp.forms.outer import Outer
from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, SumRule, Table, linear

aten = torch.ops.aten


def contracted(call: Call, a: Any, b: Any) -> Placement:
    """a[..., m, k] times b[..., k, n], with equal axes before those."""
    for one, other in ((a, b), (b, a)):
        if (placement := linear(call, one, other)) is not None:
            return placement
    row, inner_a, inner_b, column = a.rank - 2, a.rank - 1, b.rank - 2, b.rank - 1
    match a.placement, b.placement:
        case Replicate(), Replicate():
            return Replicate()
        case Shard(dim, inner), Replicate() if dim == row:
            return Shard(dim, inner)
        case Replicate(), Shard(dim, inner) if dim == column:
            return Shard(dim, inner)
        case Shard(dim) as at, Shard() as other if at == other and dim < row:
            return at
        case Shard(i, inner), Shard(j, other) if (i, j) == (inner_a, inner_b) and inner == other:
            return Partial()
        case _:
            raise Mixed("the batch axis of one operand meets another axis of the other")


def outer(a: Any, b: Any) -> Outer:
    """The sum over samples of a matrix product: the form of a linear layer's gradient."""
    return Outer(a.positions(), b.positions())


RULES: Table = {
    aten.mm.default: SumRule(contracted, form=outer),
    aten.bmm.default: SumRule(contracted, form=outer),
}
