"""The proof: place every value of the graph, or say why it cannot be placed.

The placement of each node follows from those of its operands by the rule of its op. When a
parameter's gradient comes out as a `Partial`, the summands are the per-sample gradients, by
induction over the graph. What a rule refuses, and all that depends on it, has no placement; a
refusal matters if it reaches an output.
"""

import contextlib
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxdp.faults import (
    KEEPS,
    Faults,
    forward_outputs,
    is_backward,
    kept_outputs,
    report,
)
from fxdp.fingerprint import fingerprint
from fxdp.graph_pass import Seen, arguments, gradients, mark, mutations, study
from fxdp.guards import refuse_fixed_size, refuse_other_programs
from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, Value, refuse_counts
from fxdp.shapes import expr, is_whole, sample_axes, shape_of, show
from fxdp.sums import is_total

MARKS = torch.ops.fxdp
# Names of arguments in which N is nothing but a size, of which the shapes tell, and those that
# rules look at themselves. A pointwise op may take N as a value: see `localize`.
SIZES = {
    "size", "sizes", "shape", "stride", "repeats", "input_size", "input_sizes", "output_size",
    "split_size", "split_sizes", "length", "start", "end", "n", "m", "fill_value", "s", "groups",
}  # fmt: skip
CONSTANT = "fxdp_constant"  # in a node's meta: what its rule says of that
Placed = Placement | tuple[Placement | None, ...] | None


def prove(gm: GraphModule) -> GraphModule:
    """Set `meta["placement"]` on every node that holds a tensor.

    Raises:
        BatchMixingError: an output depends on a value in which samples mix.
        ProofError: an output depends on an op that no rule explains.
    """
    here = study(gm)
    here.mark, here.joint = mark(gm), gm
    mask = here.mark.mask.meta["val"]
    refuse_fixed_size(mask)
    here.n = batch_symbol(mask)
    faults: Faults = {}
    later: Faults = {}  # in what is computed from other faults
    spoilt: set[Node] = set()
    lost: set[Node] = set()  # whose faulty value nothing can be supposed of
    forward = needed_for(forward_outputs(gm))
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        if any(i in lost for i in node.all_input_nodes):
            lost.add(node)
            spoilt.add(node)
            continue
        tainted = any(i in spoilt for i in node.all_input_nodes) or (
            node.target is MARKS.seed.default and here.mark.node in spoilt
        )
        try:
            node.meta["placement"] = place(node, here.n, here.table, node not in forward)
        except Mixed as refusal:
            (later if tainted else faults)[node] = (refusal.why, refusal.name)
            tainted = True
            try:
                node.meta["placement"] = supposed(node, here.n)
            except Mixed:
                lost.add(node)
        if tainted:
            spoilt.add(node)
    _judge_outputs(gm, faults, spoilt)
    report(gm, faults, later, lost)
    shown = gm.graph.find_nodes(op="call_function", target=MARKS.shown.default)
    here.shown = tuple(n.meta["placement"] for n in shown)
    # What is left are assertions about the whole batch, and what a line allows to be kept.
    for node in reversed(gm.graph.nodes):
        if node in spoilt and not node.users:
            gm.graph.erase_node(node)
    refuse_other_programs(mask)
    here.seen = seen(gm)
    return gm


def seen(gm: GraphModule) -> Seen:
    """The placed graph in numbers."""
    places = [(n, p) for n in gm.graph.nodes for p in pytree.tree_leaves(n.meta.get("placement"))]
    totals = [n for n, p in places if isinstance(p, Partial) and is_total(n)]
    kinds = Counter(type(p).__name__ for _, p in places)
    ops = frozenset(n.target for n in gm.graph.nodes)
    return Seen(fingerprint(gm), dict(kinds), ops, len(totals), len(mutations(gm)))


def supposed(node: Node, n: sympy.Symbol) -> Any:
    """What a faulty value would be if it were none: the proof goes on with it to find faults
    that do not follow from this one. The graph is refused all the same."""

    def of(x: Any) -> Placement | None:
        if not isinstance(x, torch.Tensor):
            return None
        shape = shape_of(x.shape)
        axes = sample_axes(shape, n)
        if axes and not is_whole(shape, Shard(axes[0]), n):
            raise Mixed("nothing can be supposed")
        return Shard(axes[0]) if axes else Replicate()

    value = node.meta.get("val")
    return tuple(map(of, value)) if isinstance(value, tuple | list) else of(value)


def needed_for(ends: list[Node]) -> set[Node]:
    """The nodes that some nodes are computed from, and those."""
    found: set[Node] = set()
    open_ends = list(ends)
    while open_ends:
        node = open_ends.pop()
        if node not in found:
            found.add(node)
            open_ends += node.all_input_nodes
    return found


def batch_symbol(mask: torch.Tensor) -> sympy.Symbol:
    """The symbol of the number of samples, from the mask that every step is given."""
    n = expr(mask.shape[0])
    if not isinstance(n, sympy.Symbol):
        raise Mixed(
            f"the batch size was fixed to {n} while the model was captured", "fixed-batch-size"
        )
    return n


def place(node: Node, n: sympy.Symbol, table: Table, backward: bool) -> Placed:
    """The placement of a node's value, from those of its operands."""
    if node.op == "placeholder":
        return place_input(node, n)
    if node.target is operator.getitem:
        several, index = arguments(node)
        if isinstance(several.meta.get("placement"), tuple):
            return several.meta["placement"][index]
    if not any(isinstance(v, torch.Tensor) for v in pytree.tree_leaves(node.meta.get("val"))):
        return place_number(node)
    shapes = tuple(
        shape_of(v.shape)
        for v in pytree.tree_leaves(node.meta["val"])
        if isinstance(v, torch.Tensor)
    )
    if node.op == "get_attr":
        placed: Any = Replicate()
    elif (marked := MARK_RULES.get(node.target)) is not None:
        placed = marked(node, n)
    else:
        rule = table.get(node.target)  # pyright: ignore[reportArgumentType]
        if rule is None and not is_shared_alone(node, n):
            raise Mixed("fxdp has no rule for this op", "no-rule")
        call = Call(shapes, n, backward or scales_losses(node, table))
        node.meta[CONSTANT] = rule is not None and rule.constant
        placed = apply(rule, node, call) if rule is not None else shared_results(node)
    return checked(node, placed, n)


def scales_losses(node: Node, table: Table) -> bool:
    """Does only the loss come of a node, by ops that are linear: sums, scales, signs, views?

    Then it may be divided by the number of samples, as a mean divides a sum, and `localize`
    makes that 1 for every sample. Other totals stay refused: a loss that is divided by those of
    the other samples compares samples.
    """
    if any(isinstance(i.meta.get("placement"), Partial) for i in node.all_input_nodes):
        return False
    open_ends, seen = [node], {node}
    while open_ends:
        at = open_ends.pop()
        for user in at.users:
            if is_backward(user) or user in seen or user.target is MARKS.release.default:
                continue
            rule = table.get(user.target)  # pyright: ignore[reportArgumentType]
            if rule is None or rule.each is None:
                return False
            seen.add(user)
            open_ends.append(user)
    return len(seen) > 1 or any(user.target is MARKS.release.default for user in node.users)


def is_shared_alone(node: Node, n: sympy.Symbol) -> bool:
    """Is a node made of values without samples only? Then no rule is needed for its op."""
    operands = [operand(i) for i in node.all_input_nodes]
    functional = isinstance(node.target, OpOverload) and not node.target._schema.is_mutable
    return functional and all(
        isinstance(x.placement, Replicate) if isinstance(x, Value) else not x.has(n)
        for x in operands
    )


def shared_results(node: Node) -> Placement | tuple[Placement, ...]:
    """Every result of a node that is made of values without samples."""
    values = node.meta["val"]
    return tuple(Replicate() for _ in values) if isinstance(values, tuple | list) else Replicate()


def apply(rule: Rule, node: Node, call: Call) -> Any:
    """Call a rule on the operands of a node.

    Raises:
        Mixed: the rule refuses, however the samples are taken to lie in constants.
    """
    try:
        return apply_as(rule, node, call, operand)
    except Mixed:
        for at in layouts(node, call.n):
            with contextlib.suppress(Mixed):
                return apply_as(rule, node, call, lambda i, at=at: relaid(i, at))
        raise


def layouts(node: Node, n: sympy.Symbol) -> list[Shard]:
    """Other places for the samples of constants among the operands: those of the others.

    The zeros of N * T positions, into which a gather's gradient is written, are in any order.
    """
    constants = [i for i in node.all_input_nodes if is_constant(i)]
    found = [i.meta.get("placement") for i in node.all_input_nodes if i not in constants]
    places = dict.fromkeys(p for p in found if isinstance(p, Shard))
    return [
        p
        for p in places
        if any(relaid(i, p) != operand(i) for i in constants)
        and all(is_whole(shape_of(i.meta["val"].shape), p, n) for i in constants)
    ]


def is_constant(node: Node) -> bool:
    """Is a value the same number everywhere, so that its samples may lie in any order?"""
    return node.meta.get(CONSTANT, False) and isinstance(node.meta["placement"], Shard)


def relaid(node: Node, at: Shard) -> Value | sympy.Expr:
    """An operand as a rule sees it, with the samples of a constant where `at` says."""
    value = operand(node)
    if isinstance(value, Value) and is_constant(node) and value.placement != at:
        same_axis = isinstance(value.placement, Shard) and value.placement.dim == at.dim
        return replace(value, placement=at) if same_axis else value
    return value


def apply_as(rule: Rule, node: Node, call: Call, operand: Callable[[Node], Any]) -> Any:
    """Call a rule on the operands of a node, as a function of nodes sees them."""
    args, kwargs = pytree.tree_map_only(Node, operand, (node.args, dict(node.kwargs)))
    if not rule.pointwise and isinstance(node.target, OpOverload):
        named = dict(zip((a.name for a in node.target._schema.arguments), args, strict=False))
        refuse_counts(call, *(v for k, v in (named | kwargs).items() if k not in SIZES))
    return rule.place(call, *args, **kwargs)


def operand(node: Node) -> Value | sympy.Expr:
    """A node as a rule sees it."""
    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        return Value(node.meta["placement"], shape_of(value.shape), value.dtype)
    return expr(value)


def place_input(node: Node, n: sympy.Symbol) -> Placement | None:
    """Inputs are shared by all samples, unless a mark says which axis holds those."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    if not sample_axes(shape_of(value.shape), n):
        return Replicate()
    declared = (MARKS.samples.default, MARKS.release.default)
    if all(user.target in declared for user in node.users):
        return Shard(sample_axes(shape_of(value.shape), n)[0])
    raise Mixed(
        "an input has an axis of the batch's size, and nothing says what it holds",
        "undeclared-input",
    )


def place_number(node: Node) -> None:
    """Numbers are worked out from sizes; a number read from samples is a leak."""
    for source in node.all_input_nodes:
        at = source.meta.get("placement")
        is_size = isinstance(node.target, OpOverload) and "sym_" in node.target._schema.name
        if at is not None and not isinstance(at, Replicate) and not is_size and node.users:
            raise Mixed("a number is read from the samples", "no-rule")


def place_samples(node: Node, n: sympy.Symbol) -> Placement:
    """The mark on an input names the axis; its size must be N."""
    x, dim = arguments(node)
    at, shape = Shard(dim), shape_of(x.meta["val"].shape)
    if shape[at.dim] != n or not is_whole(shape, at, n):
        raise Mixed(
            f"an input of shape {show(shape, n)} does not hold the samples on axis {at.dim} alone",
            "undeclared-input",
        )
    return at


def place_release(node: Node, n: sympy.Symbol) -> Placement:
    """The loss must be a loss for each sample, or a total of those."""
    loss = arguments(node)[0]
    at, shape = loss.meta["placement"], shape_of(loss.meta["val"].shape)
    if at == Shard(0) and shape == (n,) or isinstance(at, Partial) and not shape:
        return Replicate()
    if isinstance(at, Replicate):
        raise Mixed("the loss does not depend on the samples", "loss-not-separable")
    raise Mixed(
        f"a loss of shape {show(shape, n)} is not one number for each sample", "loss-not-separable"
    )


def place_seed(node: Node, n: sympy.Symbol) -> Placement:
    """Ones: one for each sample's loss, or one for the loss of each sample alone."""
    loss = arguments(node)[1].meta["placement"]
    return loss if isinstance(loss, Shard) else Replicate()


MARK_RULES: dict[Any, Callable[[Node, sympy.Symbol], Placement]] = {
    MARKS.samples.default: place_samples,
    MARKS.release.default: place_release,
    MARKS.seed.default: place_seed,
    MARKS.shown.default: lambda node, n: arguments(node)[0].meta["placement"],
}


def checked(node: Node, placed: Any, n: sympy.Symbol) -> Any:
    """What a rule said, held against the shapes: N stands where the placement says it does."""
    values = node.meta["val"]
    pairs = [(values, placed)]
    if isinstance(values, (tuple, list)):
        if not isinstance(placed, tuple) or len(placed) != len(values):
            raise AssertionError(
                f"the rule of {node.target} gave {placed} for {len(values)} results"
            )
        pairs = list(zip(values, placed, strict=True))
    for value, at in pairs:
        if not isinstance(value, torch.Tensor) or at is None:
            continue
        shape = shape_of(value.shape)
        match at:
            case Shard():
                fits = 0 <= at.dim < len(shape) and is_whole(shape, at, n)
            case Iota(dim, inner):
                fits = sample_axes(shape, n) == [dim] and sympy.expand(shape[dim] - n * inner) == 0
            case _:
                fits = not sample_axes(shape, n)
        if not fits:
            raise Mixed(
                f"the result of shape {show(shape, n)} pairs samples or loses the batch axis"
            )
    return placed


def _judge_outputs(gm: GraphModule, faults: Faults, spoilt: set[Node]) -> None:
    """Gradients must be sums over samples, and state must not be made of them."""
    for name, node in gradients(gm).items():
        if node not in spoilt and not isinstance(node.meta["placement"], Partial | Replicate):
            faults[node] = (
                f"{name}, which holds samples, would get a gradient that no noise protects",
                "input-gradient",
            )
    for name, node in mutations(gm).items():
        if node not in spoilt and not isinstance(node.meta["placement"], Replicate):
            faults[node] = (f"{name} is written from the samples, without noise", "writes-samples")
    for node in kept_outputs(gm):
        at = node.meta.get("placement")
        if node not in spoilt and at is not None and not isinstance(at, Replicate):
            faults.setdefault(node, KEEPS)
