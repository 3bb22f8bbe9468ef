"""Re-weight every sum over samples by the clip factors.

The clipped sum takes the place of the plain one in front of the same linear nodes, so that what
was measured is what is released, and no plain gradient of a parameter is left in the graph.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.forms.batch import HALVES, all_wide, summed, wide
from fxdp.graph.emit import emit, emit_all
from fxdp.graph.records import Choice, Clipped, Gradient
from fxdp.graph.study import (
    Choices,
    ClippedSums,
    Factors,
    GradientSums,
    PerSample,
    Streamed,
    study,
)
from fxdp.graph.sums import image, sum_at, value, whole
from fxdp.kernels.clipped_sum import weighed_sums
from fxdp.torch_internals import pytree


def clip(gm: GraphModule) -> GraphModule:
    """Compute each parameter's clipped sum, and apart from it what holds no samples."""
    here, end = study(gm), gm.graph.output_node()
    gradients = here.of(GradientSums).all
    choices = {c.gradient: c for c in here.of(Choices).all}
    given = {g: dict[Node, Node]() for g in gradients}
    summed_at_once(gm, choices, given)
    totals = {g: clipped_sums(gm, c) for g, c in choices.items() if not given[g]}
    flat = [(g, node, call) for g, found in totals.items() for node, call in found.items()]
    written = emit_all(end, [call for _, _, call in flat])
    for (g, node, _), total in zip(flat, written, strict=True):
        given[g][node] = total

    def linear(g: Gradient, given: dict[Node, Node], public: bool) -> Node | None:
        return image(gm, g, given, lambda n, a, k: again(end, n, a, k), public=public)

    clipped = tuple(
        Clipped(
            g,
            # A gradient that was measured as a whole is clipped as a whole.
            (given[g].get(g.node) or linear(g, given[g], False)) if g in choices else None,
            linear(g, {}, True),
        )
        for g in gradients
    )
    here.put(ClippedSums(clipped))
    return gm


def summed_at_once(
    gm: GraphModule, choices: dict[Gradient, Choice], given: dict[Gradient, dict[Node, Node]]
) -> None:
    """Put down the clipped sums of per-sample gradients that were measured at once: by one op for
    all that have one factor."""
    here, end = study(gm), gm.graph.output_node()
    each, factors = here.of(PerSample), here.of(Factors).nodes
    alike: dict[Node, list[Gradient]] = {}
    for gradient in choices:
        if gradient.parameter in each.at_once:
            alike.setdefault(factors[gradient.parameter], []).append(gradient)
    for factor, own in alike.items():
        kept = [each.nodes[g.parameter] for g in own]
        for g, total in zip(own, emit(end, weighed_sums, kept, factor), strict=True):
            given[g][g.sums[0]] = total


# A function that computes a clipped sum, and its arguments.
Total = tuple[Callable[..., Tensor], tuple[Any, ...]]


def clipped_sums(gm: GraphModule, choice: Choice) -> dict[Node, Total]:
    """The clipped sums that a parameter's gradient is made of, by the node they replace."""
    gradient = choice.gradient
    factor = study(gm).of(Factors).nodes[gradient.parameter]
    each = study(gm).of(PerSample).nodes.get(gradient.parameter)
    if choice.kind == "general":
        return {gradient.node: (each_total, (each, factor))}
    taken = [s for s in (sum_at(gm, n) for n in gradient.sums) if s is not None]
    if each is not None:
        return {taken[0].node: (each_total, (each, factor))}
    done = study(gm).found(Streamed)
    if done is not None and gradient.parameter in done.sums:
        return {taken[0].node: (lambda total: total, (done.sums[gradient.parameter],))}

    def total(factor: Tensor, *groups: Any) -> Tensor:
        return whole(taken, groups).total(factor)

    return {taken[0].node: (total, (factor, *(s.inputs for s in taken)))}


def each_total(each: Tensor, factor: Tensor) -> Tensor:
    """The clipped sum from per-sample gradients that exist: a matrix-vector product."""
    return summed(each, factor)


def again(end: Node, node: Node, args: Any, kwargs: Any) -> Node:
    """A linear node once more, on other arguments, at the end of the graph; in float32 at least."""
    narrow = [a for a in pytree.tree_leaves((args, kwargs)) if is_narrow(a)]
    widened = dict(zip(narrow, emit_all(end, [(wide, (a,)) for a in narrow]), strict=True))
    given = pytree.tree_map_only(Node, lambda a: widened.get(a, a), (args, kwargs))
    with node.graph.inserting_before(end):
        copy = node.graph.call_function(node.target, *all_wide(given))  # type: ignore[arg-type]
    copy.meta = node.meta | {"val": all_wide(value(node))}
    return copy


def is_narrow(a: Any) -> bool:
    """Is this a node with a tensor in half precision?"""
    return isinstance(a, Node) and getattr(value(a), "dtype", None) in HALVES
