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
from fxdp.mechanism.clipping import Clipping
from fxdp.placement import Shard


def weigh(gm: GraphModule, clipping: Clipping) -> GraphModule:
    """Add nodes for norms [N] and factors [N], in float32 at least.

    Args:
        clipping: how norms become factors, and which parameters are clipped together.
    """
    here = study(gm)
    end = gm.graph.output_node()
    squares, release = here.take(Squares).nodes, here.of(Joint).mark
    bound, mask = release.bound, release.mask
    norms = emit(end, total_norm, list(squares.values()), mask, placement=Shard(0), name="norms")
    lost = {c.gradient.parameter: underflow(c, squares) for c in here.of(Choices).all}
    loss = None if release.reduction else release.loss.meta.get("twin", release.loss)
    finite = emit(end, finite_samples, norms, loss, placement=Shard(0), name="finite")
    factors: dict[str, Node] = {}
    for group in clipping.groups(list(squares)):
        own = emit(
            end, safe_norm, [squares[p] for p in group.parameters], mask,
            sum(lost[p] for p in group.parameters), placement=Shard(0),
        )  # fmt: skip
        function = partial(clip_factor, clipping, group.share)
        factor = emit(end, function, own, finite, bound, mask, placement=Shard(0))
        dtype = value(norms).dtype
        factor = emit(end, narrowed, factor, dtype, placement=Shard(0), name="factor")
        for name in group.parameters:
            factors[name] = factor
    here.put(Factors(factors, norms, finite))
    return gm


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
    found = torch.zeros_like(mask, dtype=torch.float64)
    for square in squares:
        found = found + square
    return found


def total_norm(squares: list[Tensor], mask: Tensor) -> Tensor:
    """[N] norms over all parameters; 0 where there are none."""
    return total(squares, mask).sqrt().to(widest(squares))


def safe_norm(squares: list[Tensor], mask: Tensor, lost: float) -> Tensor:
    """[N] norms over several parameters that are not too small, in float64.

    Args:
        lost: what the squared norms may lack (`underflow`).
    """
    return (total(squares, mask) + lost).sqrt()


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
    bound = bound.to(norms.dtype)
    bound = bound if share == 1 else bound * share
    factor = clipping.factor(norms, bound)
    if not clipping.factor_is_bounded:
        factor = torch.where(norms == 0, factor, torch.minimum(factor, bound / norms))
    return factor.masked_fill(~(mask & finite), 0)


def narrowed(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors in a dtype; 0 where that has no normal number for them, as it might be half as much
    again, and the largest number where they are larger."""
    limits = torch.finfo(dtype)
    return factor.clamp(max=limits.max).masked_fill(factor < limits.tiny, 0).to(dtype)
