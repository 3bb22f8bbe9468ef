"""Re-weight every sum over samples by the clip factors.

The clipped sum takes the place of the plain one in front of the same linear nodes, so that what
was measured is what is released, and no plain gradient of a parameter is left in the graph.
"""

from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.forms.batch import weighed
from fxdp.graph_pass import Choice, Clipped, study
from fxdp.sums import Sum, fake_form, image, sum_at
from fxdp.trace import emit


def clip(gm: GraphModule) -> GraphModule:
    """Work out each parameter's clipped sum, and apart from it what holds no samples."""
    here, end = study(gm), gm.graph.output_node()
    choices = {c.gradient: c for c in here.choices}
    here.clipped = tuple(
        Clipped(
            g,
            clipped_sum(gm, choices[g], end) if g in choices else None,
            image(gm, g, {}, lambda n, a, k: again(end, n, a, k), public=True),
        )
        for g in here.gradients
    )
    return gm


def clipped_sum(gm: GraphModule, choice: Choice, end: Node) -> Node:
    """The sum of one parameter's clipped gradients, in the parameter's shape."""
    gradient, factor = choice.gradient, study(gm).factor
    each = study(gm).each.get(gradient.parameter)
    if choice.kind == "general":
        return emit(end, each_total, each, factor)
    taken = [s for s in (sum_at(gm, n) for n in gradient.sums) if s is not None]
    if each is not None:
        given = {taken[0].node: emit(end, each_total, each, factor)}
    else:
        given = form_totals(taken, factor, end)
    return image(gm, gradient, given, lambda n, a, k: again(end, n, a, k))


def each_total(each: Tensor, factor: Tensor) -> Tensor:
    """The clipped sum from per-sample gradients that exist: a matrix-vector product."""
    return weighed(each, factor).sum(0)


def form_totals(taken: list[Sum], factor: Any, end: Node) -> dict[Node, Node]:
    """The clipped sums of the forms, those of a kind joined into one, by the node they replace."""
    kinds: dict[type, list[Sum]] = {}
    for s in taken:
        kinds.setdefault(type(fake_form(s)), []).append(s)
    given: dict[Node, Node] = {}
    for kind, sums in kinds.items():

        def total(factor: Tensor, *groups: Any, kind: Any = kind, sums: Any = sums) -> Tensor:
            found = [s.build(*g) for s, g in zip(sums, groups, strict=True)]
            form = kind.joined(found) if len(found) > 1 else found[0]
            return form.total(factor)

        given[sums[0].node] = emit(end, total, factor, *(s.inputs for s in sums))
    return given


def again(end: Node, node: Node, args: Any, kwargs: Any) -> Node:
    """A linear node once more, on other arguments, at the end of the graph."""
    with node.graph.inserting_before(end):
        copy = node.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]
    copy.meta = dict(node.meta)
    return copy
