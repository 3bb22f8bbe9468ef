"""One spelling of each op.

Rules see an op's arguments in their order, with defaults filled in and axes counted from the
left, so that no rule has to think of `dim=-1`. What only passes a tensor on is gone.
"""

from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxdp.graph_pass import study

# Names of schema arguments that are axes of the larger of operand and result.
AXES = {"dim", "dims", "dim0", "dim1", "dim2"}
# ... and of the operand, though the result has more axes.
OWN_AXES = {"dimension"}


def tidy(gm: GraphModule) -> GraphModule:
    """Drop dead code and identities; complete and normalise the arguments of every op."""
    table = study(gm).table
    gm.graph.eliminate_dead_code()
    for node in list(gm.graph.nodes):
        if not isinstance(node.target, OpOverload):
            continue
        rule = table.get(node.target)
        if rule is not None and rule.identity:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        else:
            spell(node)
    return gm


def spell(node: Node) -> None:
    """Write all positional arguments out, keep keyword-only ones, count axes from 0."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    own, largest = ranks(node)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for position, argument in enumerate(arguments):
        if position < len(node.args):
            value: Any = node.args[position]
        elif argument.name in node.kwargs:
            value = node.kwargs[argument.name]
        else:
            value = argument.default_value
        if argument.name in AXES | OWN_AXES:
            rank = own if argument.name in OWN_AXES else largest
            value = pytree.tree_map_only(int, lambda d, r=rank: d % max(r, 1), value)
        if not argument.kwarg_only:
            args.append(value)
        elif argument.name in node.kwargs:
            kwargs[argument.name] = value
    node.args, node.kwargs = tuple(args), kwargs


def ranks(node: Node) -> tuple[int, int]:
    """The rank of the first tensor operand, and the largest of that and the results'."""
    operands = [a.meta.get("val") for a in pytree.tree_leaves(node.args) if isinstance(a, Node)]
    tensors = [v for v in operands if isinstance(v, torch.Tensor)]
    own = tensors[0].dim() if tensors else 0
    results = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)]
    return own, max([own, *(r.dim() for r in results)])
