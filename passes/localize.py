"""Totals over the batch that are used as values become each sample's own.

A mean divides by the number of samples; cross entropy with `ignore_index` divides by the valid
targets of the whole batch. In the local run, where a sample is alone, those are its own: 1, and
its own valid targets. So every 0-d `Partial` gets a *twin* [N] with the N local values, and
whoever used the total as a value, in the loss or in the backward pass, now reads the twin. N
itself, used as a value, becomes 1.
"""

from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from fxdp.diagnostics.diagnostic import BatchMixingError
from fxdp.graph.emit import emit
from fxdp.graph.nodes import placement
from fxdp.graph.origin import diagnose
from fxdp.graph.records import Gradient
from fxdp.graph.study import Joint, Samples, Size, study
from fxdp.graph.sums import (
    each_image,
    holds_samples,
    is_total,
    sum_at,
    trace_back,
    unfollowed,
    value,
)
from fxdp.placement import Partial, Shard
from fxdp.rules import SumRule
from fxdp.shapes import expr, local, quotient
from fxdp.torch_internals import pytree


def localize(gm: GraphModule) -> GraphModule:
    """Give 0-d totals their local values and hand those to whoever uses a total as a value.

    Raises:
        BatchMixingError: the local values of a total that is used as one cannot be computed.
    """
    here = study(gm)
    mask = here.of(Joint).mark.mask
    after = mask.next
    while after.op == "placeholder":
        after = after.next
    here.put(Size(emit(after, lambda mask: mask.shape[0], mask)))
    for node in list(gm.graph.nodes):
        if node.target not in here.table:
            continue
        if is_total(node):
            add_twin(gm, node)
        elif holds_samples(node):
            node.args, node.kwargs = pytree.tree_map_only(
                Node, lambda a, user=node: seen_by(gm, a, user), (node.args, dict(node.kwargs))
            )
    spread_loss(gm)
    return gm


def counts(gm: GraphModule, node: Any) -> bool:
    """Is this node a number computed from N?"""
    n = study(gm).of(Samples).n
    number = value(node) if isinstance(node, Node) else None
    is_number = isinstance(number, (torch.SymInt, torch.SymFloat))
    return is_number and expr(number).has(n)


def add_twin(gm: GraphModule, node: Node) -> None:
    """Compute the local values [N] of a 0-d total, if its op allows it."""
    here = study(gm)
    rule = here.table[node.target]  # type: ignore[index]
    inputs, after = node.all_input_nodes, node.next
    if any(is_total(a) and "twin" not in a.meta for a in inputs):
        why = "each sample's share of a total over the batch cannot be computed"
        raise BatchMixingError(diagnose(node, why, "uses-batch-total"))
    if any(holds_samples(a) for a in inputs):
        taken = sum_at(gm, node)
        if not isinstance(rule, SumRule) or taken is None:
            return
        twin = emit(after, lambda *a: taken.build(*a).per_sample(), *taken.inputs, like=node)
    elif len(inputs) == 1 and is_total(inputs[0]) and not rule.pointwise:
        twin = inputs[0].meta["twin"]
    elif rule.pointwise or not inputs or all(counts(gm, a) for a in inputs):
        args, kwargs = pytree.tree_map_only(
            Node, lambda a: alone(gm, a, after), (node.args, dict(node.kwargs))
        )
        target: Any = node.target
        twin = emit(
            after,
            lambda n, a, k: target(*a, **k).expand(n),
            here.of(Size).node,
            args,
            kwargs,
            like=node,
        )
    elif (twin := shares(gm, node, after)) is None:
        return
    twin.meta["placement"] = Shard(0)
    node.meta["twin"] = twin


def shares(gm: GraphModule, node: Node, after: Node) -> Node | None:
    """What each sample gave to a total that was added up after the samples were, if it is known.

    A term without samples in it would be whole in every local run; it is not taken apart.
    """
    at = placement(node)
    if isinstance(at, Partial) and at.public:
        return None
    sums, linear = trace_back(node)
    taken = [s for s in (sum_at(gm, source) for source in sums) if s is not None]
    if len(taken) < len(sums) or not sums or unfollowed(gm, linear) is not None:
        return None
    parts: dict[Node, Node] = {
        s.node: emit(after, lambda *a, s=s: s.build(*a).per_sample(), *s.inputs, like=node)
        for s in taken
    }
    return each_image(gm, Gradient(node.name, node, sums, linear), parts, after, like=node)


def alone(gm: GraphModule, a: Node, before: Node) -> Any:
    """An operand of a 0-d op as it is in the local runs: a twin [N], or a number without N."""
    if is_total(a):
        return a.meta["twin"]
    return own_number(gm, a, before) if counts(gm, a) else a


def own_number(gm: GraphModule, a: Node, before: Node) -> Any:
    """What a number in N is worth where N is 1."""
    n, size = study(gm).of(Samples).n, study(gm).of(Size).node
    worth = local(expr(value(a)), n)
    if worth.is_number:
        return int(worth) if worth.is_Integer else float(worth)
    if sympy.cancel(expr(value(a)) / n) == worth:
        return emit(before, lambda x, n: x // n, a, size)
    if sympy.cancel(expr(value(a)) * n) == worth:
        return emit(before, lambda x, n: x * n, a, size)
    why = "the batch size and another size make a number together"
    raise BatchMixingError(diagnose(before, why, "uses-batch-total"))


def seen_by(gm: GraphModule, a: Node, user: Node) -> Any:
    """An operand of a node that holds samples, as each sample sees it."""
    if counts(gm, a) and study(gm).table[user.target].pointwise:  # type: ignore[index]
        return own_number(gm, a, user)
    if not is_total(a):
        return a
    if "twin" not in a.meta:
        why = "each sample's share of a total over the batch cannot be computed"
        raise BatchMixingError(diagnose(a, why, "uses-batch-total"))
    at, n = placement(user), study(gm).of(Samples).n
    assert isinstance(at, Shard)
    result = value(user)
    times = quotient(expr(result.shape[at.dim]), n * at.inner)
    if times is None or not times.is_Integer or not at.inner.is_Integer:
        why = "a total over the batch is spread over an axis of more than one dynamic size"
        raise BatchMixingError(diagnose(user, why, "uses-batch-total"))
    layout = (int(times), int(at.inner), result.dim() - at.dim - 1)
    return emit(user, lambda t: laid_out(t, *layout), a.meta["twin"], placement=at)


def laid_out(twin: torch.Tensor, outer: int, inner: int, behind: int) -> torch.Tensor:
    """[N] repeated along a batch axis of size outer * N * inner, with `behind` axes of size 1."""
    if (outer, inner) != (1, 1):
        twin = twin.reshape(1, -1, 1).expand(outer, -1, inner).reshape(-1)
    return twin.reshape(-1, *[1] * behind)


def spread_loss(gm: GraphModule) -> None:
    """Replace the mark on the loss by the mean of the local losses of rows that are no padding."""
    mark = study(gm).of(Joint).mark
    if mark.reduction:
        mark.node.replace_all_uses_with(mark.loss)
        return
    if is_total(mark.loss) and "twin" not in mark.loss.meta:
        why = "the loss of each sample alone cannot be computed from this total"
        raise BatchMixingError(diagnose(mark.node, why, "loss-not-separable"))
    own = mark.loss.meta["twin"] if is_total(mark.loss) else mark.loss

    def mean(own: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # A sample without a valid target has no loss of its own, 0 / 0; a batch of those is NaN.
        known = mask & ~own.isnan()
        count = known.sum()
        loss = own.masked_fill(~known, 0).sum() / count.clamp(min=1)
        return loss.masked_fill(mask.any() & (count == 0), float("nan"))

    result = emit(mark.node, mean, own, mark.mask, name="loss")
    mark.node.replace_all_uses_with(result)
