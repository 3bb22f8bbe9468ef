"""Distances between all rows of two matrices, or of two stacks of matrices.

Letters: P rows [.., P, m] have distances [.., P, R] from R others [.., R, m]. Where the samples are
among the rows, the others must be shared: prototypes, codes of a codebook. The gradient of those is
a sum over samples.
"""

from typing import Any

import torch

from fxdp.forms.reduce import Reduce
from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, SumRule, Table, Value, is_shared

aten = torch.ops.aten


def stacked(*operands: Any) -> Placement:
    """The samples' axis among those of a stack of matrices, which the result has too."""
    places = {x.placement for x in operands if hasattr(x, "placement")}
    places -= {Replicate(), Replicate(zero=True)}
    if not places:
        return Replicate()
    at = places.pop()
    if places or not isinstance(at, Shard):
        raise Mixed("the operands hold their samples on different axes")
    if any(at.dim >= x.rank - 2 for x in operands if hasattr(x, "placement")):
        raise Mixed("it works along the batch axis")
    # Not every kernel checks that its operands fit: those of one size pair up, or one of 1.
    values = [x for x in operands if isinstance(x, Value)]
    held = {(x.rank, x.shape[at.dim]) for x in values if x.placement == at}
    rank = max(r for r, _ in held)
    others = [(x, at.dim + x.rank - rank) for x in values if x.placement != at]
    if len(held) > 1 or any(d >= 0 and x.shape[d] != 1 for x, d in others):
        raise Mixed("the operands hold their samples on different axes")
    return at


def rows(x: Any) -> bool:
    """Are the samples among the rows of a matrix, or of a stack of them?"""
    return isinstance(x.placement, Shard) and x.placement.dim == x.rank - 2


def distant(call: Call, x: Any, y: Any, *_: Any) -> Placement:
    """The distances of x's rows from y's."""
    for one, other, place in ((x, y, 2), (y, x, 1)):
        if rows(one) and is_shared(other):
            return Shard(call.rank - place, one.placement.inner)
    return stacked(x, y)


def distant_back(call: Call, grad: Any, x: Any, y: Any, p: Any, distances: Any) -> Placement:
    """The gradient of x, linear in that of the distances [.., P, R]."""
    at = grad.placement
    if isinstance(at, Partial) and is_shared(x, y, distances):
        return at
    if not (rows(x) and is_shared(y)) and not (rows(y) and is_shared(x)):
        return stacked(grad, x, y, distances)
    held, matrices = (x if rows(x) else y).placement, x.rank == y.rank == grad.rank == 2
    if matrices and at == distances.placement == Shard(0 if rows(x) else 1, held.inner):
        return at if rows(x) else Partial()
    raise Mixed("the operands hold their samples on different axes")


def distance_form(grad: Any, x: torch.Tensor, y: Any, p: float, distances: Any) -> Reduce:
    """Each sample's rows, at their distances from x."""
    grad, distances = (t.samples_first().transpose(1, 2) for t in (grad, distances))  # [N, P, t]
    y = y.samples_first()  # [N, t, m]
    x = x.expand(y.shape[0], *x.shape).contiguous()
    return Reduce(aten._cdist_backward(grad.contiguous(), x, y, p, distances.contiguous()))


RULES: Table = {
    aten._cdist_forward.default: Rule(distant),
    aten._cdist_backward.default: SumRule(distant_back, form=distance_form),
}
