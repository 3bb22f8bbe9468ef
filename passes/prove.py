"""The proof: place every value of the graph, or say why it cannot be placed.

The placement of each node follows from those of its operands by the rule of its op. When a
parameter's gradient comes out as a `Partial`, the summands are the per-sample gradients, by
induction over the graph. What a rule refuses, and all that depends on it, has no placement; a
refusal matters if it reaches an output.
"""

from collections import Counter
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from fxdp.graph import marks
from fxdp.graph.ends import gradients, mutations
from fxdp.graph.nodes import mark
from fxdp.graph.study import Joint, RaggedAxes, Samples, Seen, study
from fxdp.graph.sums import is_total
from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.proof.faults import (
    COUNTS,
    KEEPS,
    Faults,
    forward_outputs,
    kept_outputs,
    report,
)
from fxdp.proof.fingerprint import fingerprint
from fxdp.proof.guards import refuse_fixed_size, refuse_other_programs
from fxdp.proof.placing import place
from fxdp.proof.program import placements
from fxdp.proof.ragged import Owners, ragged_axes
from fxdp.shapes import expr, is_whole, sample_axes, shape_of
from fxdp.torch_internals import pytree

SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool)


def prove(gm: GraphModule) -> GraphModule:
    """Set `meta["placement"]` on every node that holds a tensor.

    Raises:
        BatchMixingError: an output depends on a value in which samples mix.
        ProofError: an output depends on an op that no rule explains.
    """
    here = study(gm)
    release = mark(gm)
    here.put(Joint(gm, release))
    mask = release.mask.meta["val"]
    refuse_fixed_size(mask)
    n = batch_symbol(mask)
    here.put(Samples(n))
    axes = ragged_axes(gm, n)
    here.put(RaggedAxes(axes))
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
            node.target is marks.seed.default and release.node in spoilt
        )
        try:
            node.meta["placement"] = place(node, n, here.table, node not in forward, axes)
        except Mixed as refusal:
            (later if tainted else faults)[node] = (refusal.why, refusal.name)
            tainted = True
            try:
                node.meta["placement"] = supposed(node, n, axes)
            except Mixed:
                lost.add(node)
        if tainted:
            spoilt.add(node)
    _judge_outputs(gm, faults, spoilt)
    report(gm, faults, later, lost)
    calls = gm.graph.find_nodes(op="call_function", target=marks.shown.default)
    shown = tuple(call.meta["placement"] for call in calls)
    # What is left are assertions about the whole batch, and what a line allows to be kept.
    for node in reversed(gm.graph.nodes):
        if node in spoilt and not node.users:
            gm.graph.erase_node(node)
    refuse_other_programs(mask)
    for owner in axes.values():
        refuse_other_programs(owner.meta["val"], "rows")
    here.put(seen(gm, shown))
    return gm


def seen(gm: GraphModule, shown: tuple[Any, ...]) -> Seen:
    """The placed graph in numbers.

    Args:
        shown: placements of what the caller sees apart from the loss.
    """
    places = [(n, p) for n in gm.graph.nodes for p in pytree.tree_leaves(n.meta.get("placement"))]
    totals = [n for n, p in places if isinstance(p, Partial) and is_total(n)]
    kinds = Counter(type(p).__name__ for _, p in places)
    ops = frozenset(n.target for n in gm.graph.nodes)
    written = len(mutations(gm))
    return Seen(fingerprint(gm), dict(kinds), ops, len(totals), written, shown, placements(gm))


def supposed(node: Node, n: sympy.Symbol, axes: Owners) -> Any:
    """What a faulty value would be if it were none: the proof goes on with it to find faults
    that do not follow from this one. The graph is refused all the same."""

    def of(x: Any) -> Placement | None:
        if not isinstance(x, torch.Tensor):
            return None
        shape = shape_of(x.shape)
        held = sample_axes(shape, n)
        rows = any(sample_axes(shape, r) for r in axes)
        if rows or held and not is_whole(shape, Shard(held[0]), n):
            raise Mixed("nothing can be supposed")
        return Shard(held[0]) if held else Replicate()

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


def _judge_outputs(gm: GraphModule, faults: Faults, spoilt: set[Node]) -> None:
    """Gradients must be sums over samples, and state must not be made of them."""
    here = study(gm)
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
    # How many there are is a fact of the samples, too: one more or less is a neighbour.
    counted = {here.of(Samples).n, *here.of(RaggedAxes).owners}
    for node in forward_outputs(gm):
        value = node.meta.get("val")
        if isinstance(value, SIZES) and not counted.isdisjoint(expr(value).free_symbols):
            faults.setdefault(node, COUNTS)
