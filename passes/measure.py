"""Emit the squared norm of every per-sample gradient, and the clip factors.

Squared norms add up over parameters, but not over the uses of one parameter: those are joined
before they are measured. The factor of a sample is min(1, C / norm), without an epsilon, so a
clipped sample has norm C and a sample of norm 0 keeps factor 1. Padding, and a sample whose
gradient is not finite, get factor 0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxdp.diagnostic import ProofError, diagnose
from fxdp.forms import Outer, Scatter
from fxdp.forms.batch import Strategy, sq_sum
from fxdp.graph_pass import Choice, study
from fxdp.ops.each import Each
from fxdp.placement import Shard
from fxdp.sums import Sum, image, sum_at
from fxdp.trace import emit


def measure(gm: GraphModule) -> GraphModule:
    """Add nodes for norms [N] and factors [N], in float32 at least."""
    here = study(gm)
    assert here.mark is not None
    end = gm.graph.output_node()
    squares = [square(gm, choice, end) for choice in here.choices]
    bound, mask = here.mark.bound, here.mark.mask
    here.norms = emit(end, total_norm, squares, mask, placement=Shard(0), name="norms")
    here.factor = emit(end, clip_factor, here.norms, bound, mask, placement=Shard(0), name="factor")
    return gm


def total_norm(squares: list[Tensor], mask: Tensor) -> Tensor:
    """[N] norms over all parameters; 0 where there are none."""
    dtype = max((s.dtype for s in squares), key=lambda d: d.itemsize, default=torch.float32)
    total = torch.zeros_like(mask, dtype=dtype)
    for square in squares:
        total = total + square
    return total.sqrt()


def clip_factor(norms: Tensor, bound: Tensor, mask: Tensor) -> Tensor:
    """[N] factors; Abadi et al., arXiv:1607.00133, algorithm 1.

    ========================  ======
    case                      factor
    ========================  ======
    norm <= C, also norm 0    1
    norm > C                  C / norm
    C infinite                1
    norm infinite or NaN      0
    padding                   0
    ========================  ======
    """
    factor = (bound.to(norms.dtype) / norms).clamp(max=1)
    return factor.masked_fill(~(mask & torch.isfinite(norms)), 0)


def square(gm: GraphModule, choice: Choice, end: Node) -> Node:
    """The node with the squared norms of one parameter's per-sample gradients."""
    sums = [sum_at(gm, node) for node in choice.gradient.sums]
    taken = [s for s in sums if s is not None]
    inputs = [s.inputs for s in taken]
    whole = choice.strategy != "multi"  # torch.vmap is traced only as what it dispatches to
    if choice.kind == "general":
        parts = {
            s.node: emit(end, one_each(s, choice.strategy), *s.inputs, composite=whole)
            for s in taken
        }
        each = each_image(gm, choice, parts, end)
    elif choice.strategy != "ghost":

        def gather(*groups: Any) -> Tensor:
            return joined(taken, groups).per_sample(choice.strategy)

        each = emit(end, gather, *inputs, composite=whole)
    elif choice.kind == "tied":
        return emit(end, lambda *groups: tied_square(forms(taken, groups)), *inputs)
    else:
        return emit(end, lambda *groups: joined(taken, groups).sq_norm("ghost"), *inputs)
    study(gm).each[choice.gradient.parameter] = each
    return emit(end, sq_sum, each)


def forms(taken: list[Sum], groups: tuple[Any, ...]) -> list[Any]:
    """The forms of some sums, from the values of their inputs."""
    return [s.build(*group) for s, group in zip(taken, groups, strict=True)]


def joined(taken: list[Sum], groups: tuple[Any, ...]) -> Any:
    """One form for all sums of a parameter, which are of one kind."""
    found = forms(taken, groups)
    if len(found) == 1:
        return found[0]
    return Outer.joined(found) if isinstance(found[0], Outer) else Scatter.joined(found)


def tied_square(found: list[Any]) -> Tensor:
    """|E + H|^2 = |E|^2 + |H|^2 + 2 <E, H> for an embedding E and a linear head H."""
    table = Scatter.joined([f for f in found if isinstance(f, Scatter)])
    head = Outer.joined([f for f in found if isinstance(f, Outer)])
    square = table.sq_norm("ghost") + head.sq_norm("ghost") + 2 * table.cross(head)
    return square.clamp(min=0)


def one_each(taken: Sum, strategy: Strategy) -> Any:
    """The function that gives the per-sample gradients of one sum."""

    def per_sample(*values: Any) -> Tensor:
        form = taken.build(*values)
        return form.per_sample(strategy if strategy in form.strategies else "instantiate")

    return per_sample


def each_image(gm: GraphModule, choice: Choice, parts: dict[Node, Node], end: Node) -> Node:
    """Per-sample gradients of a parameter from those of its sums: the linear nodes on each."""
    shared = list(
        dict.fromkeys(
            i
            for node in choice.gradient.linear
            for i in node.all_input_nodes
            if i not in choice.gradient.linear and i not in parts
        )
    )

    def mapped(each: list[Tensor], values: list[Any]) -> Tensor:
        known = dict(zip(shared, values, strict=True))
        given = {part: Each(e) for part, e in zip(parts, each, strict=True)}
        return image(gm, choice.gradient, given, lambda n, a, k: apply(gm, known, n, a, k)).value

    return emit(end, mapped, list(parts.values()), shared, composite=False)


def apply(gm: GraphModule, known: dict[Node, Any], node: Node, args: Any, kwargs: Any) -> Any:
    """One linear node on the values of all samples.

    Raises:
        ProofError: its op is not known to work on all samples at once.
    """
    rule = study(gm).table[node.target]  # type: ignore[index]
    if rule.each is None:
        why = "the gradients of single samples cannot be taken through this op"
        raise ProofError(diagnose(node, why, "unexplained-gradient"))
    args, kwargs = pytree.tree_map_only(Node, lambda a: known[a], (args, kwargs))
    return rule.each(*args, **kwargs)
