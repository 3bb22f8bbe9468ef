"""Add Gaussian noise to each clipped sum, once, and put the result in the gradient's place.

Released for each parameter: (clipped sum + sigma C xi) / L, xi standard normal, L the public
expected batch size; times the gradient that arrives at the loss, which is the user's constant.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.graph_pass import Clipped, Mark, arguments, gradient_places, outputs, study
from fxdp.sums import value
from fxdp.trace import emit

SEED = torch.ops.fxdp.seed.default


def noise(gm: GraphModule, inspect_each: bool = False) -> GraphModule:
    """Make the outputs private.

    The norms become one more output, for checks and reports, with a name for a descriptor;
    with `inspect_each` so do the per-sample gradients.
    """
    here, end = study(gm), gm.graph.output_node()
    assert here.mark is not None
    found = outputs(gm)
    tangents = [arguments(n)[0] for n in gm.graph.find_nodes(op="call_function", target=SEED)]
    places = dict(gradient_places(gm))
    for clipped in here.clipped:
        place = places.pop(clipped.gradient.parameter)
        found[place] = release(clipped, tangents[0], here.mark, end)
    if places:
        raise AssertionError(f"the gradients of {sorted(places)} would be released as they are")
    extras = {"norms": here.norms} | (here.each if inspect_each else {})
    end.args = ([*found, *extras.values()],)
    end.meta["desc"] = [*end.meta["desc"], *extras]
    gm.graph.eliminate_dead_code()
    return gm


def release(clipped: Clipped, tangent: Node, mark: Mark, end: Node) -> Node:
    """The private gradient of one parameter, in its dtype."""
    dtype = value(clipped.gradient.node).dtype
    name = f"private_{clipped.gradient.node.name}"
    if clipped.total is None:
        return emit(end, lambda p, t: p * t.to(p.dtype), clipped.public, tangent, name=name)

    def private(total: Tensor, tangent: Tensor, bound: Tensor, sigma: Tensor, expected: Tensor,
                public: Tensor | None) -> Tensor:  # fmt: skip
        # An infinite bound without noise is plain training: 0 times infinity is 0 here.
        scale = (sigma * bound).masked_fill(sigma == 0, 0).to(total.dtype)
        out = (total + scale * torch.randn_like(total)) / expected.to(total.dtype)
        out = out if public is None else out + public
        return (out * tangent.to(total.dtype)).to(dtype)

    first = end.prev
    scales = (mark.bound, mark.sigma, mark.expected)
    result = emit(end, private, clipped.total, tangent, *scales, clipped.public, name=name)
    while first is not result:
        first = first.next
        first.meta["fxdp_noise"] = True
    return result
