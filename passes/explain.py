"""Every path to a parameter's gradient ends in sums over samples that can be taken apart.

Going back from a gradient through what is linear, one must arrive at sums over samples, each
with a form, or at terms that hold no samples at all. Anything else is a use of the parameter
that the clipped sum could miss.
"""

from torch.fx import GraphModule, Node

from fxdp.diagnostic import ProofError, diagnose
from fxdp.graph_pass import Gradient, gradients, placement, study
from fxdp.placement import Replicate
from fxdp.sums import is_partial, is_sum, maker, sum_at, value


def explain(gm: GraphModule) -> GraphModule:
    """Find the sums over samples that each parameter's gradient is made of.

    Raises:
        ProofError: a gradient comes from a sum over samples that no form describes.
    """
    found: list[Gradient] = []
    for name, node in gradients(gm).items():
        if not value(node).is_floating_point():
            # torch draws complex noise with half the variance for each part.
            why = f"{name} is complex: keep its real and imaginary parts as a real parameter"
            raise ProofError(diagnose(node, why, "unexplained-gradient", path_to(node, name)))
        sums, linear = trace_back(node)
        several = next((n for n in linear if maker(n) is not n), None)
        if several is not None or not (sums or isinstance(placement(node), Replicate)):
            why = f"the gradient of {name} passes an op with several results, which is not followed"
            at = several or node
            raise ProofError(diagnose(at, why, "unexplained-gradient", path_to(at, name)))
        for source in sums:
            if sum_at(gm, source) is None:
                why = f"no form describes this sum over samples in the gradient of {name}"
                raise ProofError(
                    diagnose(source, why, "unexplained-gradient", path_to(source, name))
                )
        found.append(Gradient(name, node, sums, linear))
    study(gm).gradients = tuple(found)
    return gm


def path_to(node: Node, name: str) -> tuple[str, ...]:
    """The end of the way from a node to a parameter's gradient."""
    return node.name, f"gradient of {name}"


def trace_back(gradient: Node) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The sums that a gradient is made of, and the linear nodes from them to it."""
    sums: set[Node] = set()
    linear: set[Node] = set()
    open_ends = [gradient]
    while open_ends:
        node = open_ends.pop()
        if node in sums or node in linear or isinstance(placement(node), Replicate):
            continue
        if is_sum(node):
            sums.add(node)
            continue
        linear.add(node)
        open_ends += [i for i in node.all_input_nodes if is_partial(i)]
    order = {n: i for i, n in enumerate(gradient.graph.nodes)}
    return tuple(sorted(sums, key=order.__getitem__)), tuple(sorted(linear, key=order.__getitem__))
