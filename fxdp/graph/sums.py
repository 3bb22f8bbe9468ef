"""Sums over samples as nodes of a graph.

A node whose value is a `Partial` either made it, from operands that hold samples, or passed it
on, linearly. The first kind are the sums over samples, and each can be split into a form.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.diagnostics.diagnostic import ProofError
from fxdp.forms import Form, Reduce, Segmented, joined
from fxdp.forms.batch import Batch, all_wide
from fxdp.forms.each import Each
from fxdp.graph.emit import emit
from fxdp.graph.nodes import arguments, placement
from fxdp.graph.origin import diagnose
from fxdp.graph.records import Gradient
from fxdp.graph.study import RaggedAxes, Size, study
from fxdp.placement import Owner, Partial, Pointer, Replicate, Segment, Shard, Starts
from fxdp.rules import SumRule
from fxdp.torch_internals import pytree

MEETS = (Owner, Pointer, Starts, Shard)  # what rows meet samples by


@dataclass(frozen=True)
class Sum:
    """A sum over samples: how its form is made, and of which nodes.

    Attributes:
        node: the value of the sum in the graph.
        build: makes the form from the values of `inputs`.
        inputs: nodes and constants, at any depth.
    """

    node: Node
    build: Callable[..., Form]
    inputs: tuple[Any, ...]


def value(node: Node) -> Any:
    """The fake tensor or symbolic number that a node stands for."""
    return node.meta["val"]


def is_partial(node: Any) -> bool:
    """Is this a node whose value is a sum over samples?"""
    return isinstance(node, Node) and isinstance(placement(node), Partial)


def is_total(node: Any) -> bool:
    """Is it a 0-d one, which may be read sample by sample?"""
    return is_partial(node) and value(node).dim() == 0


def maker(node: Node) -> Node:
    """The op that made a value: the node itself, or the op with several results it is one of."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return node.args[0]
    return node


def holds_samples(node: Any) -> bool:
    """Is this a tensor with an axis of samples, or of rows of theirs?"""
    return isinstance(node, Node) and isinstance(placement(node), Shard | Segment)


def is_sum(node: Node) -> bool:
    """Did this node turn samples into their sum, rather than pass a sum on?"""
    return is_partial(node) and (
        "twin" in node.meta or any(holds_samples(i) for i in maker(node).all_input_nodes)
    )


def sum_at(gm: GraphModule, node: Node) -> Sum | None:
    """The form of the sum over samples at a node; None where no rule has one."""
    here = study(gm)
    if "twin" in node.meta:
        return Sum(node, Reduce, (node.meta["twin"],))
    op = maker(node)
    rule = here.table.get(op.target)  # type: ignore[arg-type]
    if not isinstance(rule, SumRule):
        return None
    flat, spec = pytree.tree_flatten((op.args, dict(op.kwargs)))
    places = [placement(a) if isinstance(a, Node) else None for a in flat]
    rows = {at.rows for at in places if isinstance(at, Segment)}
    if rows:
        return sum_of_rows(gm, node, rule, rows, places, flat, spec)

    def build(n: Any, *values: Any) -> Form:
        args, kwargs = pytree.tree_unflatten(batched(values, places, n), spec)
        return rule.form(*args, **kwargs)

    return Sum(node, build, (here.of(Size).node, *flat))


def sum_of_rows(
    gm: GraphModule, node: Node, rule: SumRule, rows: set[Any], places: list[Any],
    flat: list[Any], spec: Any,
) -> Sum | None:  # fmt: skip
    """The form of a sum over rows of samples: that of the rows, added up for each sample; or what
    the rule has where samples and rows meet."""
    here, meet = study(gm), any(isinstance(at, MEETS) for at in places)
    if len(rows) > 1 or (meet and rule.rows_form is None):
        return None
    owners, form = here.of(RaggedAxes).owners, rule.rows_form or rule.form

    def build(n: Any, owner: torch.Tensor, *values: Any) -> Form:
        if meet:
            args, kwargs = pytree.tree_unflatten(values, spec)
            return form(owner, n, *args, **kwargs)
        args, kwargs = pytree.tree_unflatten(batched(values, places, owner.shape[0]), spec)
        return Segmented(rule.form(*args, **kwargs), owner, n)

    return Sum(node, build, (here.of(Size).node, owners[rows.pop()], *flat))


def batched(values: Any, places: list[Any], n: Any) -> list[Any]:
    """Values with the knowledge of where their samples are, or rows that are taken for samples."""
    return [
        Batch(v, Shard(at.dim, at.inner), n)
        if isinstance(at, Shard | Segment) and isinstance(v, torch.Tensor)
        else v
        for v, at in zip(values, places, strict=True)
    ]


def introduces_public(node: Node) -> bool:
    """Does a term that holds no samples come in at this node?"""
    public = Partial(public=True)
    return placement(node) == public and public not in map(placement, node.all_input_nodes)


def fake_form(taken: Sum) -> Any:
    """The form of a sum on fake tensors: for its kind and its sizes."""
    with torch.no_grad():
        return taken.build(*(value(a) if isinstance(a, Node) else a for a in taken.inputs))


def whole(taken: list[Sum], groups: tuple[Any, ...]) -> Any:
    """The one form of all sums of a parameter, from the values of their inputs."""
    form = joined([s.build(*group) for s, group in zip(taken, groups, strict=True)])
    assert form is not None
    return form


def trace_back(gradient: Node) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The sums that a value is made of, and the linear nodes from them to it."""
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
        linear |= {node, maker(node)}
        open_ends += [i for i in maker(node).all_input_nodes if is_partial(i)]
    order = {n: i for i, n in enumerate(gradient.graph.nodes)}
    return tuple(sorted(sums, key=order.__getitem__)), tuple(sorted(linear, key=order.__getitem__))


def unfollowed(gm: GraphModule, linear: tuple[Node, ...]) -> Node | None:
    """The first linear node that is not known to work on the values of all samples at once."""
    table = study(gm).table
    for node in linear:
        rule = table.get(node.target)  # type: ignore[arg-type]
        if maker(node) is node and (rule is None or rule.each is None):
            return node
    return None


def each_image(
    gm: GraphModule, gradient: Gradient, parts: dict[Node, Node], end: Node, **how: Any
) -> Node:
    """What each sample gave to a value, from what it gave to its sums: the linear nodes on each.

    Args:
        parts: for each sum, a node with the values [N, ...] of the samples.
        end: where the new nodes go.
        how: options of `emit`.
    """
    shared = list(
        dict.fromkeys(
            i
            for node in gradient.linear
            if maker(node) is node
            for i in node.all_input_nodes
            if i not in gradient.linear and i not in parts
        )
    )

    def mapped(each: list[Tensor], values: list[Any]) -> Tensor:
        known = dict(zip(shared, values, strict=True))
        given = {part: Each(e) for part, e in zip(parts, each, strict=True)}
        return image(gm, gradient, given, lambda n, a, k: on_each(gm, known, n, a, k)).value

    return emit(end, mapped, list(parts.values()), shared, composite=False, **how)


def on_each(gm: GraphModule, known: dict[Node, Any], node: Node, args: Any, kwargs: Any) -> Any:
    """One linear node on the values of all samples.

    Raises:
        ProofError: its op is not known to work on all samples at once.
    """
    if maker(node) is not node:
        return args[0][args[1]]
    rule = study(gm).table[node.target]  # type: ignore[index]
    if rule.each is None:
        why = "the gradients of single samples cannot be taken through this op"
        raise ProofError(diagnose(node, why, "unexplained-gradient"))
    args, kwargs = all_wide(pytree.tree_map_only(Node, lambda a: known[a], (args, kwargs)))
    return rule.each(*args, **kwargs)


def stays(node: Node, alive: list[Node]) -> bool:
    """Is an addition what one of its two terms is, where the other is zero?

    Not where it has the term several times over, or another shape.
    """
    scaled = node.kwargs.get("alpha", 1) != 1 and alive[0] is not node.args[0]
    return len(alive) == 1 and not scaled and value(alive[0]).shape == value(node).shape


def image(
    gm: GraphModule,
    gradient: Gradient,
    given: dict[Node, Any],
    apply: Callable[[Node, Any, Any], Any],
    public: bool = False,
) -> Any:
    """The gradient, computed anew from given values of its sums.

    Args:
        given: values for sums; a sum that is left out counts as zero.
        apply: computes one linear node from its arguments, and adds values.
        public: whether the terms without samples count, or are zero.

    Returns:
        What `apply` returned last; None for zero.
    """
    table = study(gm).table
    known: dict[Node, Any] = dict.fromkeys(gradient.sums) | given
    if gradient.node not in known and not gradient.linear:
        return gradient.node if public else None
    for node in gradient.linear:
        if maker(node) is not node:
            several, index = known[maker(node)], arguments(node)[1]
            known[node] = None if several is None else apply(node, (several, index), {})
            continue
        rule = table[node.target]  # type: ignore[index]
        shared = {i: i if public else None for i in node.all_input_nodes if not is_partial(i)}
        terms = {i: known[i] for i in node.all_input_nodes if is_partial(i)}
        if rule.adds:
            terms |= shared
        if introduces_public(node) and (not rule.adds or node.kwargs.get("alpha", 1) != 1):
            why = "a term without samples is combined with a sum over samples, and not by adding"
            raise ProofError(diagnose(node, why, "unexplained-gradient"))
        alive = [i for i, v in terms.items() if v is not None]
        if not alive:
            known[node] = None
        elif rule.adds and len(alive) < len(terms) and stays(node, alive):
            known[node] = terms[alive[0]]
        elif len(alive) == len(terms):
            swap = {i: known.get(i, i) for i in node.all_input_nodes}
            args, kwargs = pytree.tree_map_only(
                Node, lambda a, swap=swap: swap[a], (node.args, dict(node.kwargs))
            )
            known[node] = apply(node, args, kwargs)
        else:
            why = "sums over samples and terms without samples are combined by this op"
            raise ProofError(diagnose(node, why, "unexplained-gradient"))
    return known[gradient.node]
