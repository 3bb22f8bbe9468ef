"""Compute one Gram matrix for all ghost norms that it is in.

Layers with one input, as a query, a key and a value have, and weights with one gradient behind
them, as those of a recurrent layer, have norms in which one Gram matrix is multiplied by others.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from fxdp.graph.emit import emit
from fxdp.graph.study import hinted
from fxdp.graph.sums import value
from fxdp.kernels.ghost import ghost_outer, ghost_outers
from fxdp.shapes import expr
from fxdp.torch_internals import OperatorBase, OpOverload, pytree, stable_topological_sort

NORM = ghost_outer.default


def share(gm: GraphModule) -> GraphModule:
    """Join the ghost norms that have an operand in common."""
    number = numbered(gm.graph)
    left = gm.graph.find_nodes(op="call_function", target=NORM)
    while found := best(gm, left, number):
        common, others = found
        wanted = emit(
            gm.graph.output_node(), norms, common, list(others.values()), like=next(iter(others))
        )
        for node, norm in zip(others, wanted, strict=True):
            node.replace_all_uses_with(norm)
            left.remove(node)
            gm.graph.erase_node(node)
    stable_topological_sort(gm.graph)
    return gm


def norms(common: Tensor, others: list[Tensor]) -> list[Tensor]:
    """[N] squared norms, for each of the others."""
    return list(ghost_outers(common, others).unbind(0))


def best(
    gm: GraphModule, left: list[Node], number: dict[Node, int]
) -> tuple[Node, dict[Node, Node]] | None:
    """The operand whose Gram matrix is worth most in some norms; and, for each of these norms, the
    other operand."""
    using: dict[int, dict[Node, Node]] = defaultdict(dict)
    operand: dict[int, Node] = {}
    for node in left:
        a, b = node.args[0], node.args[1]
        assert isinstance(a, Node)
        assert isinstance(b, Node)
        for mine, other in ((a, b), (b, a)):
            using[number[mine]][node] = other
            operand.setdefault(number[mine], mine)

    def saved(k: int) -> float:
        return (len(using[k]) - 1) * hinted(gm, expr(value(operand[k]).shape[-1]))

    most = max(using, key=saved, default=None)
    return (operand[most], using[most]) if most is not None and saved(most) > 0 else None


def numbered(graph: Graph) -> dict[Node, int]:
    """A number for each node, the same for those that call one function on the same values."""
    number: dict[Node, int] = {}
    known: dict[Any, int] = {}

    def named(a: Any) -> Any:
        return number[a] if isinstance(a, Node) else (type(a), repr(a))

    for node in graph.nodes:
        key: Any = node
        if node.op == "call_function" and repeats(node):
            leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
            key = (node.target, str(spec), *map(named, leaves))
        number[node] = known.setdefault(key, len(known))
    return number


def repeats(node: Node) -> bool:
    """Would a node give the same value once more? No, unless its op is known to."""
    target = node.target
    if not isinstance(target, OpOverload):
        return not isinstance(target, OperatorBase)  # getitem, or a sum of sizes
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
