"""The proof: place every value of the graph, or say why it cannot be placed.

The placement of each node follows from those of its operands by the rule of its op. When a
parameter's gradient comes out as a `Partial`, the summands are the per-sample gradients, by
induction over the graph. What a rule refuses, and all that depends on it, has no placement; a
refusal matters if it reaches an output.
"""

import operator
from collections.abc import Callable
from typing import Any

import networkx
import sympy
import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxdp.diagnostic import BatchMixingError, Diagnostic, ProofError, diagnose
from fxdp.graph_pass import arguments, gradients, mark, mutations, outputs, study
from fxdp.guards import refuse_fixed_size, refuse_other_programs
from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, Value, refuse_counts
from fxdp.shapes import expr, is_whole, sample_axes, shape_of, show

MARKS = torch.ops.fxdp
# Names of arguments in which N is nothing but a size, of which the shapes tell, and those that
# rules look at themselves. A pointwise op may take N as a value: see `localize`.
SIZES = {
    "size", "sizes", "shape", "stride", "repeats", "input_size", "input_sizes", "output_size",
    "split_size", "split_sizes", "length", "start", "end", "n", "m", "fill_value", "s",
}  # fmt: skip
Faults = dict[Node, tuple[str, str]]  # where: (why, name of the code)
KEEPS = ("the model keeps a value made of samples, without noise", "writes-samples")
Placed = Placement | tuple[Placement | None, ...] | None


def prove(gm: GraphModule) -> GraphModule:
    """Set `meta["placement"]` on every node that holds a tensor.

    Raises:
        BatchMixingError: an output depends on a value in which samples mix.
        ProofError: an output depends on an op that no rule explains.
    """
    here = study(gm)
    here.mark = mark(gm)
    mask = here.mark.mask.meta["val"]
    refuse_fixed_size(mask)
    here.n = batch_symbol(mask)
    faults: Faults = {}
    spoilt: set[Node] = set()
    forward = needed_for(_forward_outputs(gm))
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        if any(i in spoilt for i in node.all_input_nodes) or (
            node.target is MARKS.seed.default and here.mark.node in spoilt
        ):
            spoilt.add(node)
            continue
        try:
            node.meta["placement"] = place(node, here.n, here.table, node not in forward)
        except Mixed as refusal:
            faults[node] = (refusal.why, refusal.name)
            spoilt.add(node)
    _judge_outputs(gm, faults, spoilt)
    report(gm, faults)
    seen = gm.graph.find_nodes(op="call_function", target=MARKS.shown.default)
    here.shown = tuple(n.meta["placement"] for n in seen)
    # What is left can reach no output: assertions about the whole batch.
    for node in reversed(gm.graph.nodes):
        if node in spoilt:
            gm.graph.erase_node(node)
    refuse_other_programs(mask)
    return gm


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
        call = Call(shapes, n, backward)
        placed = apply(rule, node, call) if rule is not None else shared_results(node)
    return checked(node, placed, n)


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
    """Call a rule on the operands of a node."""
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
    if at == Shard(0) and len(shape) == 1 or isinstance(at, Partial) and not shape:
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
    for node in _kept(gm):
        at = node.meta.get("placement")
        if node not in spoilt and at is not None and not isinstance(at, Replicate):
            faults.setdefault(node, KEEPS)


def report(gm: GraphModule, faults: Faults) -> None:
    """Raise what was found, if it reaches an output."""
    if not faults:
        return
    flow = networkx.DiGraph((n, user) for n in gm.graph.nodes for user in n.users)
    released = {node: f"gradient of {name}" for name, node in gradients(gm).items()}
    kept = {node: "value kept by the model" for node in _kept(gm)}
    kept |= {node: f"new value of {name}" for name, node in mutations(gm).items()}
    forward = {n: "output" for n in _forward_outputs(gm) if n not in kept}
    found: list[tuple[Node, Diagnostic]] = []
    for node, fault in faults.items():
        path = _path(flow, node, released) or _path(flow, node, forward)
        if path is None and (path := _path(flow, node, kept)) is not None:
            fault = KEEPS if fault[1] != "no-rule" else fault
        if path is not None:
            found.append((node, diagnose(node, *fault, path)))
    if not found:
        return
    diagnostics = _once(found)
    mixing = any(d.code.code < "FXD400" for d in diagnostics)
    raise (BatchMixingError if mixing else ProofError)(*diagnostics)


def _once(found: list[tuple[Node, Diagnostic]]) -> list[Diagnostic]:
    """The faults in the order of the user's lines, each once.

    What the backward pass of a line does wrong where its forward pass is at fault already is
    the same fault again.
    """
    known = {d.location for node, d in found if not is_backward(node) and d.location}
    once = {
        (d.location, d.op, d.why): d
        for node, d in reversed(found)
        if not (is_backward(node) and d.location in known)
    }
    order = {d: i for i, (_, d) in enumerate(found)}
    return sorted(once.values(), key=lambda d: (_line(d), order[d]))


def is_backward(node: Node) -> bool:
    """Was this node written by autograd?"""
    return node.meta.get("partitioner_tag") == "is_backward"


def _line(d: Diagnostic) -> tuple[str, int]:
    return (d.location.file, d.location.line) if d.location else ("", 0)


def _forward_outputs(gm: GraphModule) -> list[Node]:
    return [n for n in outputs(gm)[: study(gm).outputs] if isinstance(n, Node)]


def _kept(gm: GraphModule) -> list[Node]:
    """Outputs of the forward pass that the caller does not see: attributes, globals, lists."""
    returned = (MARKS.release.default, MARKS.shown.default)
    written = mutations(gm).values()
    return [n for n in _forward_outputs(gm) if n.target not in returned and n not in written]


def _path(flow: Any, node: Node, ends: dict[Node, str]) -> tuple[str, ...] | None:
    """The ops on the shortest way from a node to one of the ends; None if there is no way."""
    if node not in flow and node not in ends:
        return None
    reach = networkx.single_source_shortest_path(flow, node) if node in flow else {node: [node]}
    ways = [reach[end] for end in ends if end in reach]
    if not ways:
        return None
    best = min(ways, key=len)
    return (*(n.name for n in best), ends[best[-1]])
