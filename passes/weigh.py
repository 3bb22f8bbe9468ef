"""Emit the clip factors, from the squared norms of all parameters.

What factor a norm asks for, `fxdp.clipping` says. Padding, and a sample whose gradient is not
finite, get factor 0.

A norm that was computed may lack what underflowed: no more, of its square, than a few times the
smallest normal number for each element. Factors are made of norms to which that is added.
"""

from functools import partial

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.graph.emit import emit
from fxdp.graph.records import Choice
from fxdp.graph.study import Choices, Factors, Joint, Squares, study
from fxdp.graph.sums import value
from fxdp.kernels.precision import cast
from fxdp.mechanism.clipping_rule import Clipping
from fxdp.mechanism.factors import (
    clip_factor,
    finite_samples,
    narrowed,
    safe_norm,
    total,
    widest,
)
from fxdp.placement import Shard


def weigh(gm: GraphModule, clipping: Clipping) -> GraphModule:
    """Add nodes for norms [N] and factors [N], in float32 at least.

    Args:
        clipping: how norms become factors, and which parameters are clipped together.
    """
    here = study(gm)
    end = gm.graph.output_node()
    squares, mark = here.take(Squares).nodes, here.of(Joint).mark
    groups = clipping.groups(list(squares))
    losts = {c.gradient.parameter: underflow(c, squares) for c in here.of(Choices).all}
    lost = [sum(losts[p] for p in group.parameters) for group in groups]
    functions = [partial(clip_factor, clipping, group.share) for group in groups]
    loss = None if mark.reduction else mark.loss.meta.get("twin", mark.loss)

    def weighed(
        parts: list[list[Tensor]], loss: Tensor | None, bound: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        totals = [total(part, mask) for part in parts]
        dtype = widest([square for part in parts for square in part])
        norms = cast(total(totals, mask).sqrt(), dtype)
        finite = finite_samples(norms, loss)
        own = [safe_norm(t, least) for t, least in zip(totals, lost, strict=True)]
        factors = [f(n, finite, bound, mask) for f, n in zip(functions, own, strict=True)]
        return norms, finite, [narrowed(factor, dtype) for factor in factors]

    parts = [[squares[p] for p in group.parameters] for group in groups]
    norms, finite, found = emit(end, weighed, parts, loss, mark.bound, mark.mask)
    factors: dict[str, Node] = {}
    for group, factor in zip(groups, found, strict=True):
        factors |= dict.fromkeys(group.parameters, named(factor, "factor"))
    here.put(Factors(factors, named(norms, "norms"), named(finite, "finite")))
    return gm


def named(node: Node, name: str) -> Node:
    """A node that holds one number for each sample, under a name."""
    node.meta["placement"] = Shard(0)
    node._rename(name)
    return node


def underflow(choice: Choice, squares: dict[str, Node]) -> float:
    """What the squared norms of one parameter's gradients may lack because numbers underflow:
    squares of elements, of the lengths of rows of them, and of the length of all rows."""
    gradient = choice.gradient
    tiny = torch.finfo(value(squares[gradient.parameter]).dtype).tiny
    return 4 * value(gradient.node).numel() * tiny
