"""Values that are the same all along the axis of the samples: those may lie there in any order.

What is repeated along an axis of N samples and T positions (a constant, a class weight, a share of
a total) says nothing of which place is whose. Its layout is open until an operand decides; and
another operand may decide otherwise, of a copy of it.
"""

from dataclasses import replace

import sympy
from torch.fx import Node

from fxdp.placement import Iota, Shard
from fxdp.rules import Rule
from fxdp.shapes import is_whole, quotient, shape_of

OPEN = "fxdp_open"  # in a node's meta: the nodes whose layout is chosen with this one's, or nothing
Moved = dict[Node, Shard]


def note(node: Node, rule: Rule | None, placed: object) -> None:
    """Note of a node that was placed whether its layout is open.

    It is that of a constant, of what is repeated along the axis of the samples, and of what is made
    of such values place by place: element by element, or by moving whole places about.
    """
    node.meta[OPEN] = False
    if rule is None or not isinstance(placed, Shard):
        return
    if any(isinstance(i.meta.get("placement"), Iota) for i in node.all_input_nodes):
        return  # a number for each place: not the same all along
    held = [i for i in node.all_input_nodes if isinstance(i.meta.get("placement"), Shard)]
    if rule.constant or rule.repeats and not held:
        node.meta[OPEN] = True
    elif held and (rule.pointwise or rule.isometry or rule.repeats):
        axis = shape_of(node.meta["val"].shape)[placed.dim]
        node.meta[OPEN] = all(is_open(i) and along(i) == (axis, placed.inner) for i in held)


def is_open(node: Node) -> bool:
    """May the samples of a value lie in any order along their axis?"""
    return node.meta.get(OPEN, False)


def along(node: Node) -> tuple[sympy.Expr, sympy.Expr]:
    """How long the axis of the samples is, and how many places in a row are one sample's."""
    at = node.meta["placement"]
    return shape_of(node.meta["val"].shape)[at.dim], at.inner


def others(node: Node, n: sympy.Symbol) -> list[Moved]:
    """Other layouts of the open values among a node's operands, and of all that those are made of.

    As the other operands have it comes first; then each sample's places in a row.
    """
    held = [i for i in node.all_input_nodes if isinstance(i.meta.get("placement"), Shard)]
    free = [i for i in held if is_open(i)]
    inners = [along(i)[1] for i in sorted(held, key=is_open)]
    inners += [q for i in free if (q := quotient(along(i)[0], n)) is not None]
    found: list[Moved] = []
    for inner in dict.fromkeys(inners):
        moved = {i: replace(i.meta["placement"], inner=inner) for i in chains(free)}
        changes = any(at != i.meta["placement"] for i, at in moved.items())
        fits = all(is_whole(shape_of(i.meta["val"].shape), at, n) for i, at in moved.items())
        if changes and fits:
            found.append(moved)
    return found


def chains(nodes: list[Node]) -> list[Node]:
    """Open values and those that they are made of, in the order of the graph."""
    found: set[Node] = set()
    open_ends = list(nodes)
    while open_ends:
        node = open_ends.pop()
        if node not in found:
            found.add(node)
            open_ends += [i for i in node.all_input_nodes if is_open(i)]
    return sorted(found)


def settle(node: Node, moved: Moved) -> None:
    """Give a node copies of its open operands, in the layout that its rule took them in."""
    copies: dict[Node, Node] = {}
    for old in chains([i for i in node.all_input_nodes if i in moved]):
        with node.graph.inserting_before(node):
            copy = node.graph.node_copy(old, lambda a: copies.get(a, a))
        copy.meta = dict(old.meta) | {"placement": moved[old]}
        copies[old] = copy
    for old, copy in copies.items():
        node.replace_input_with(old, copy)
