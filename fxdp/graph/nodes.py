"""Reading a graph: the arguments and placements of nodes, its outputs, its mark, a copy of it."""

from typing import Any

from torch.fx import Graph, GraphModule, Node

from fxdp.graph import marks
from fxdp.graph.records import Mark
from fxdp.placement import Placement
from fxdp.torch_internals import make_graph_module

NO_SOURCE = object()


def arguments(node: Node) -> tuple[Any, ...]:
    """A node's arguments; fx's own type for them allows next to nothing."""
    return node.args


def mark(gm: GraphModule) -> Mark:
    """The one place where the loss leaves the model.

    Raises:
        AssertionError: a graph without such a place, or with several.
    """
    found = gm.graph.find_nodes(op="call_function", target=marks.release.default)
    if len(found) != 1:
        raise AssertionError(f"one release is expected in a graph, and there are {len(found)}")
    return Mark(found[0], *arguments(found[0]))


def outputs(gm: GraphModule) -> list[Any]:
    """What a graph returns: forward results, then gradients and what else there is."""
    return list(arguments(gm.graph.output_node())[0])


def copied(gm: GraphModule) -> GraphModule:
    """A graph of its own over the same tensors, for one that others may change or go on using."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.output(graph.graph_copy(gm.graph, copies))
    for node, copy in copies.items():
        # Where Dynamo found an input, which it does not keep in the node's meta.
        if (source := getattr(node, "_dynamo_source", NO_SOURCE)) is not NO_SOURCE:
            setattr(copy, "_dynamo_source", source)  # noqa: B010
    graph.output_node().meta = dict(gm.graph.output_node().meta)
    new = make_graph_module(gm, graph)
    new.meta = dict(gm.meta)
    return new


def placement(node: Node) -> Placement | None:
    """The placement of a node's value; None for what is not a tensor."""
    return node.meta.get("placement")
