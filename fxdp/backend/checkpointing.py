"""Activations that are worked out a second time, in the backward half, so as not to be kept.

What `torch.utils.checkpoint` around a whole model says to torch's partitioner, said of the joint
graph itself: so it asks nothing of the model's code, and the partitioner sees to it that what was
drawn in the forward half is drawn alike in the backward half, from the generator's state of then.
"""

from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from fxdp.graph.nodes import outputs
from fxdp.torch_internals import OpOverload


def recompute_forward(joint: GraphModule, num_fwd_outputs: int) -> None:
    """Mark what the forward half works out; nothing that it is given, and no write to a buffer."""
    found: set[Node] = set()
    ahead = [n for n in outputs(joint)[:num_fwd_outputs] if isinstance(n, Node)]
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead += node.all_input_nodes
    for node in found:
        if node.op == "call_function" and not writes(node):
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
            node.meta["ac_graph_id"] = 0


def writes(node: Node) -> bool:
    """Does a node change one of its arguments?"""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
