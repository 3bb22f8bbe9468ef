"""Writing ordinary torch functions into a graph.

A pass that needs new nodes writes down what they compute as a function of tensors; the
function is traced on the fake tensors of the nodes that it is given, and what it did is copied
into the graph. Composite ops stay whole (an einsum is one node), so the graph stays readable
until `lower` takes them apart.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from fxdp.placement import Placement
from fxdp.torch_internals import make_fx, pytree

CARRIED = ("stack_trace", "partitioner_tag", "original_aten", "nn_module_stack", "seq_nr")


def value(node: Any) -> Any:
    """The fake tensor or symbolic number that a node stands for; other things as they are."""
    return node.meta["val"] if isinstance(node, Node) else node


def emit(
    before: Node,
    function: Callable[..., Any],
    *args: Any,
    like: Node | None = None,
    placement: Placement | None = None,
    name: str = "",
    composite: bool = True,
) -> Any:
    """Write `function(*args)` into the graph, in front of the node `before`.

    Args:
        before: the node in front of which the new ones stand.
        function: a function of tensors and numbers.
        args: its arguments; nodes, at any depth, stand for their values.
        like: the node whose origin (line, forward or backward) the new ones share; `before`
            if not given.
        placement: of the result, if it is one tensor.
        name: for the node of the result.
        composite: keep composite ops whole.

    Returns:
        What the function returned, with nodes in place of tensors.
    """
    flat, spec = pytree.tree_flatten(args)
    nodes = list(dict.fromkeys(a for a in flat if isinstance(a, Node)))

    def closed(*values: Any) -> Any:
        known = dict(zip(nodes, values, strict=True))
        return function(
            *pytree.tree_unflatten([known[a] if isinstance(a, Node) else a for a in flat], spec)
        )

    with torch.no_grad():
        traced = make_fx(closed, pre_dispatch=composite, _allow_non_fake_inputs=True)(
            *(value(n) for n in nodes)
        )
    return _copy(traced.graph, before, nodes, like or before, placement, name)


def emit_all(
    before: Node, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], **how: Any
) -> list[Any]:
    """`emit` for several functions, each with its arguments. It takes one trace for all."""
    functions = [function for function, _ in calls]

    def each(*groups: Any) -> list[Any]:
        return [function(*args) for function, args in zip(functions, groups, strict=True)]

    return emit(before, each, *(args for _, args in calls), **how) if calls else []


def _copy(
    traced: Graph,
    before: Node,
    nodes: list[Node],
    like: Node,
    placement: Placement | None,
    name: str,
) -> Any:
    """Copy a traced graph in front of a node, with `nodes` for its placeholders."""
    graph = before.graph
    inputs = iter(nodes)
    copies: dict[Node, Node] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            copies[node] = next(inputs)
        elif node.op == "output":
            result = pytree.tree_map(
                lambda a: copies.get(a, a) if isinstance(a, Node) else a, node.args[0]
            )
            if isinstance(result, Node) and placement is not None and result not in nodes:
                result.meta["placement"] = placement
            if isinstance(result, Node) and name and result not in nodes:
                result._rename(name)
            return result
        elif node.op == "get_attr":
            raise AssertionError(f"a constant was traced into the graph: {traced}")
        else:
            with graph.inserting_before(before):
                copy = graph.node_copy(node, lambda a: copies[a])
            copy.meta = {"val": node.meta.get("val")}
            copy.meta |= {k: like.meta[k] for k in CARRIED if k in like.meta}
            copies[node] = copy
    raise AssertionError("a graph without an output was traced")
