"""Every path to a parameter's gradient ends in sums over samples that can be taken apart.

Going back from a gradient through what is linear, one must arrive at sums over samples, each
with a form, or at terms that hold no samples at all. Anything else is a use of the parameter
that the clipped sum could miss.
"""

from torch.fx import GraphModule, Node

from fxdp.diagnostics.diagnostic import ProofError
from fxdp.graph.ends import gradients
from fxdp.graph.nodes import placement
from fxdp.graph.origin import diagnose
from fxdp.graph.records import Gradient
from fxdp.graph.study import GradientSums, Joint, study
from fxdp.graph.sums import sum_at, trace_back, unfollowed, value
from fxdp.placement import Replicate


def explain(gm: GraphModule) -> GraphModule:
    """Find the sums over samples that each parameter's gradient is made of.

    Raises:
        ProofError: a gradient comes from a sum over samples that no form describes; or there is
            no gradient at all.
    """
    if not gradients(gm):
        # On some devices autograd does not follow all ops; a proof of nothing is none.
        mark = study(gm).of(Joint).mark
        raise ProofError(diagnose(mark.node, "no parameter gets a gradient", "no-loss"))
    found: list[Gradient] = []
    for name, node in gradients(gm).items():
        if not value(node).is_floating_point():
            # torch draws complex noise with half the variance for each part.
            why = f"{name} is complex: keep its real and imaginary parts as a real parameter"
            raise ProofError(diagnose(node, why, "unexplained-gradient", path_to(node, name)))
        sums, linear = trace_back(node)
        lost = unfollowed(gm, linear)
        if lost is not None or not (sums or isinstance(placement(node), Replicate)):
            why = f"the gradient of {name} passes an op through which single samples' are not known"
            at = lost or node
            raise ProofError(diagnose(at, why, "unexplained-gradient", path_to(at, name)))
        for source in sums:
            if sum_at(gm, source) is None:
                why = f"no form describes this sum over samples in the gradient of {name}"
                raise ProofError(
                    diagnose(source, why, "unexplained-gradient", path_to(source, name))
                )
        found.append(Gradient(name, node, sums, linear))
    study(gm).put(GradientSums(tuple(found)))
    return gm


def path_to(node: Node, name: str) -> tuple[str, ...]:
    """The end of the way from a node to a parameter's gradient."""
    return node.name, f"gradient of {name}"
