"""Emit the clip factors, from the squared norms of all parameters.

What factor a norm asks for, `fxdp.clipping` says. Padding, and a sample whose gradient is not
finite, get factor 0.

A norm that was computed may lack what underflowed: no more, of its square, than a few times the
smallest normal number for each element. Factors are made of norms to which that is added.
"""

from functools import partial

from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.graph.emit import emit
from fxdp.graph.study import Choices, Factors, Joint, Squares, Streamed, study
from fxdp.graph.sums import value
from fxdp.kernels.precision import cast
from fxdp.mechanism.clipping_rule import Clipping
from fxdp.mechanism.factors import (
    clip_factor,
    finite_samples,
    narrowed,
    safe_norm,
    total,
    underflow,
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
    if (streamed := here.found(Streamed)) is not None:
        return found_before(gm, streamed, clipping)
    groups = clipping.groups(list(squares))
    losts = {
        c.gradient.parameter: underflow(
            value(c.gradient.node).numel(), value(squares[c.gradient.parameter]).dtype
        )
        for c in here.of(Choices).all
    }
    lost = [sum(losts[p] for p in group.parameters) for group in groups]
    functions = [partial(clip_factor, clipping, group.share) for group in groups]

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
    norms, finite, found = emit(end, weighed, parts, mark.losses, mark.bound, mark.mask)
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


def found_before(gm: GraphModule, streamed: Streamed, clipping: Clipping) -> GraphModule:
    """Put down the norms and factors that `stream` has emitted."""
    here, end = study(gm), gm.graph.output_node()
    mark = here.of(Joint).mark
    dtype = value(streamed.factors[0]).dtype

    def weighed(squares: list[Tensor], loss: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        norms = cast(total(squares, mask).sqrt(), dtype)
        return norms, finite_samples(norms, loss)

    norms, finite = emit(end, weighed, list(streamed.squares), mark.losses, mark.mask)
    groups = clipping.groups([c.gradient.parameter for c in here.of(Choices).all])
    factors: dict[str, Node] = {}
    for group, factor in zip(groups, streamed.factors, strict=True):
        factors |= dict.fromkeys(group.parameters, named(factor, "factor"))
    here.put(Factors(factors, named(norms, "norms"), named(finite, "finite")))
    return gm
