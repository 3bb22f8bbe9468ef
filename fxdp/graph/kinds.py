"""What the sums of one gradient are together, which decides how its norms can be found.

One sum moved about by isometries has that sum's norm; several of one kind are one sum over more
positions; an embedding tied to a head has an exact cross term; anything else is materialised for
each sample and mapped.
"""

from typing import Any

import torch
from torch.fx import GraphModule, Node

from fxdp.forms import Tied, joined
from fxdp.graph.records import Gradient, Kind
from fxdp.graph.study import study
from fxdp.graph.sums import is_partial, value
from fxdp.torch_internals import OpOverload, pytree


def together(gm: GraphModule, gradient: Gradient, forms: list[Any]) -> tuple[Kind, list[Any]]:
    """What the sums of a gradient are together, and the forms to be measured."""
    if not (all(is_isometry(gm, n) for n in gradient.linear) and by_one_way(gradient)):
        return "general", forms
    if len(forms) == 1:
        return "one", forms
    if not same_layout(gradient):
        return "general", forms
    whole = joined(forms)
    if whole is None:
        return "general", forms
    return "tied" if isinstance(whole, Tied) else "joined", [whole]


def by_one_way(gradient: Gradient) -> bool:
    """Does each sum reach the gradient once?

    One that is added to itself, turned or as it is, has another norm than the gradient: w + w.T.
    """
    for source in gradient.sums:
        ways = {source: 1}
        for node in gradient.linear:
            operands = pytree.tree_leaves((node.args, dict(node.kwargs)))
            ways[node] = sum(ways.get(a, 0) for a in operands if isinstance(a, Node))
        if ways[gradient.node] != 1:
            return False
    return True


def is_isometry(gm: GraphModule, node: Node) -> bool:
    """Does a linear node only move elements, or add sums that stand alike?"""
    rule = study(gm).table.get(node.target)  # type: ignore[arg-type]
    if rule is None:
        return False
    partial = [i for i in node.all_input_nodes if is_partial(i)]
    alike = all(value(i).shape == value(node).shape for i in partial)
    if rule.adds and alike and node.kwargs.get("alpha", 1) == 1:
        return True
    return rule.isometry and len(partial) == 1


def same_layout(gradient: Gradient) -> bool:
    """Do all sums reach the gradient the same way, element by element?

    The views between are tried out on tensors without data, whose strides tell where an
    element went. An op that copies or flips signs forgets that: then the answer is no.
    """
    layouts = {layout(gradient, s) for s in gradient.sums}
    return len(layouts) == 1 and None not in layouts


def layout(gradient: Gradient, source: Node) -> tuple[Any, ...] | None:
    """Shape and strides of a sum's elements as they stand in the gradient."""
    shape = [int(s) if not isinstance(s, torch.SymInt) else None for s in value(source).shape]
    if None in shape:
        return None
    at: dict[Node, torch.Tensor | None] = {source: torch.empty(shape, device="meta")}  # type: ignore[arg-type]
    for node in gradient.linear:
        reached = [at[i] for i in node.all_input_nodes if i in at]
        if not reached:
            continue
        if any(r is None for r in reached) or len(reached) > 1:
            return None
        target: Any = node.target
        if isinstance(target, OpOverload) and target.is_view:
            args = [at[a] if isinstance(a, Node) else a for a in node.args]
            at[node] = target(*args)
        elif len([i for i in node.all_input_nodes if is_partial(i)]) > 1:
            at[node] = reached[0]
        else:
            return None
    end = at.get(gradient.node)
    return None if end is None else (tuple(end.shape), end.stride())
