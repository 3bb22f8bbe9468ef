"""Collects the proof's failures, drops consequences and repeats, and reports them in source order.

A fault matters if it reaches an output, and is reported with the shortest path there. What only
follows from a fault, or repeats it in the backward pass of the same line, is left out.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx
import sympy
import torch
from torch.fx import GraphModule, Node

from fxdp.diagnostics.diagnostic import (
    BatchMixingError,
    Diagnostic,
    ProofError,
    allowance,
    is_allowed,
    not_allowed,
)
from fxdp.graph import marks
from fxdp.graph.ends import gradients, mutations
from fxdp.graph.nodes import outputs
from fxdp.graph.origin import diagnose, nearest
from fxdp.graph.study import Samples, study
from fxdp.shapes import shape_of, show

Faults = dict[Node, tuple[str, str]]  # where: (why, name of the code)
KEEPS = ("the model keeps a value made of samples, without noise", "keeps-samples")
COUNTS = ("the number of samples outlives the step, without noise", "keeps-count")
WRITES = ("a buffer is written from the samples, without noise", "writes-samples")


def report(gm: GraphModule, faults: Faults, later: Faults, lost: set[Node]) -> None:
    """Raise the faults that reach an output, except those that the user's line allows.

    Args:
        faults: whose operands are in order.
        later: whose operands are made of faulty values; reported in the forward pass only.
        lost: nodes of which nothing can be said; no line can allow them.

    Raises:
        BatchMixingError: a fault in the model.
        ProofError: only such as fxdp cannot follow.
    """
    if not faults:
        return
    n = study(gm).of(Samples).n
    flow = networkx.DiGraph((n, user) for n in gm.graph.nodes for user in n.users)
    released = {node: f"gradient of {name}" for name, node in gradients(gm).items()}
    kept = {node: "value kept by the model" for node in kept_outputs(gm)}
    written = {node: f"new value of {name}" for name, node in mutations(gm).items()}
    forward = {n: "output" for n in forward_outputs(gm) if n not in kept | written}

    def told(node: Node, fault: tuple[str, str], path: tuple[str, ...]) -> Diagnostic:
        return diagnose(node, *fault, path, operand_shapes(node, n))

    found: list[tuple[Node, Diagnostic]] = []
    for node, fault in faults.items():
        path = way(flow, node, released) or way(flow, node, forward)
        # What is written is reported first: only what is merely kept can be allowed.
        for leaks, leak in ((written, WRITES), (kept, KEEPS)):
            if path is None and (path := way(flow, node, leaks)) is not None:
                fault = fault if fault == COUNTS or fault[1] == "no-rule" else leak
        if path is not None:
            found.append((node, told(node, fault, path)))
    if not found:
        return
    for node, fault in later.items():
        path = None if is_backward(node) else way(flow, node, released)
        if path is not None and nearest(node) is not None:
            found.append((node, told(node, fault, path)))
    # Before faults of one line are reported as one: an allowed one must not stand for the others.
    allowed = [(node, d) for node, d in found if is_allowed(d) and lost.isdisjoint(kept)]
    study(gm).notes += dict.fromkeys(
        f"{d.why}, at {shortly(d)}: {allowance(d)}" for _, d in allowed
    )
    used = {line(d) for _, d in allowed}
    refused = [not_allowed(d, used) for d in once([f for f in found if f not in allowed], later)]
    if refused:
        mixing = any(d.code.code < "FXD400" for d in refused)
        raise (BatchMixingError if mixing else ProofError)(*refused)


def shortly(d: Diagnostic) -> str:
    """A line without its folder."""
    return f"{Path(d.location.file).name}:{d.location.line}" if d.location else "an unknown line"


def operand_shapes(node: Node, n: sympy.Symbol) -> tuple[str, ...]:
    """The shapes of the tensors that an op is given, with N for the number of samples."""
    values = (i.meta.get("val") for i in node.all_input_nodes)
    return tuple(show(shape_of(v.shape), n) for v in values if isinstance(v, torch.Tensor))


def once(found: list[tuple[Node, Diagnostic]], later: Faults) -> list[Diagnostic]:
    """The faults in the order of the user's lines, each once, with all modules that have it."""
    known = {line(d) for node, d in found if not is_backward(node) and node not in later}
    told: list[Diagnostic] = []
    for node, d in found:
        if is_backward(node) and d.location and line(d) in known:
            continue
        same = [t for t in told if (t.location, t.op) == (d.location, d.op)]
        same = [t for t in same if node in later or t.why == d.why]
        if same:
            modules = tuple(dict.fromkeys(same[0].modules + d.modules))
            told[told.index(same[0])] = replace(same[0], modules=modules)
        elif node not in later or line(d) not in known:
            told.append(d)
    return sorted(told, key=line)


def is_backward(node: Node) -> bool:
    """Was this node written by autograd?"""
    return node.meta.get("partitioner_tag") == "is_backward"


def line(d: Diagnostic) -> tuple[str, int]:
    """Where a fault is reported."""
    return (d.location.file, d.location.line) if d.location else ("", 0)


def forward_outputs(gm: GraphModule) -> list[Node]:
    """What the forward pass returns."""
    return [n for n in outputs(gm)[: study(gm).outputs] if isinstance(n, Node)]


def kept_outputs(gm: GraphModule) -> list[Node]:
    """Outputs of the forward pass that the caller does not see: attributes, globals, lists."""
    returned = (marks.release.default, marks.shown.default)
    written = mutations(gm).values()
    return [n for n in forward_outputs(gm) if n.target not in returned and n not in written]


def way(flow: Any, node: Node, ends: dict[Node, str]) -> tuple[str, ...] | None:
    """The ops on the shortest way from a node to one of the ends; None if there is no way."""
    if node not in flow and node not in ends:
        return None
    reach = networkx.single_source_shortest_path(flow, node) if node in flow else {node: [node]}
    ways = [reach[end] for end in ends if end in reach]
    if not ways:
        return None
    best = min(ways, key=len)
    return (*(n.name for n in best), ends[best[-1]])
