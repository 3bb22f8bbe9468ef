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

from fxdp.forms.batch import cast
from fxdp.graph.emit import emit
from fxdp.graph.records import Choice
from fxdp.graph.study import Choices, Factors, Joint, Squares, study
from fxdp.graph.sums import value
from fxdp.mechanism.clipping import Clipping
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


def widest(squares: list[Tensor]) -> torch.dtype:
    """The dtype of norms over several parameters."""
    return max((s.dtype for s in squares), key=lambda d: d.itemsize, default=torch.float32)


def total(squares: list[Tensor], mask: Tensor) -> Tensor:
    """[N] squared norms over several parameters, in float64; 0 where there are none."""
    if len(squares) == 1:
        return cast(squares[0], torch.float64)
    found = torch.zeros_like(mask, dtype=torch.float64)
    for square in squares:
        found = found + square
    return found


def safe_norm(squares: Tensor, lost: float) -> Tensor:
    """[N] norms of several parameters that are not too small, in float64.

    Args:
        lost: what the squared norms may lack (`underflow`).
    """
    return (squares + lost).sqrt()


def finite_samples(norms: Tensor, loss: Tensor | None) -> Tensor:
    """bool [N]: are a sample's gradient and, where it is known, its own loss [N] finite?

    A loss that is NaN, and has a finite gradient, is that of a sample without a valid target,
    0 / 0: its gradient is right, and counts.
    """
    found = torch.isfinite(norms)
    return found if loss is None else found & ~torch.isinf(loss)


def clip_factor(
    clipping: Clipping, share: float, norms: Tensor, finite: Tensor, bound: Tensor, mask: Tensor
) -> Tensor:
    """[N] factors of a group of parameters.

    Guarantees:
        No factor is more than the group's bound over the norm, whatever `clipping` asks for.

    ==================================================  ==========================
    case                                                factor
    ==================================================  ==========================
    a norm of whichever group infinite or NaN           0, in all groups
    a loss infinite                                     0, in all groups
    padding                                             0
    else                                                what `clipping` asks for
    ==================================================  ==========================

    Args:
        share: the group's part of the bound.
        norms: of the group.
        finite: of all parameters (`finite_samples`).
    """
    bound = cast(bound, norms.dtype)
    bound = bound if share == 1 else bound * share
    factor = clipping.factor(norms, bound)
    if not clipping.factor_is_bounded:
        factor = torch.where(norms == 0, factor, torch.minimum(factor, bound / norms))
    return factor.masked_fill(~(mask & finite), 0)


def narrowed(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors in a dtype; 0 where that has no normal number for them, as it might be half as much
    again, and the largest number where they are larger."""
    limits = torch.finfo(dtype)
    return cast(factor.clamp(max=limits.max).masked_fill(factor < limits.tiny, 0), dtype)
