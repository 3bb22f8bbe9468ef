"""Activation checkpointing: activations are recomputed in the backward half instead of kept.

Marks the joint graph itself with what `torch.utils.checkpoint` around a whole model tells torch's
partitioner, so the model's code is left alone. The partitioner makes random draws of the forward
half again, with the same values, from the generator's state at that time.
"""

from torch.fx import GraphModule, Node
from torch.utils.checkpoint import CheckpointPolicy

from fxdp.graph.nodes import outputs
from fxdp.torch_internals import OpOverload


def recompute_forward(joint: GraphModule, num_fwd_outputs: int) -> None:
    """Mark what the forward half computes, but not its inputs, nor writes to a buffer."""
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
