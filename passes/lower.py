"""Make the graph ready for a backend, with the batch size still symbolic.

The marks are gone, composite ops are taken apart the way the backend wants them, and equal
nodes are one node. Inputs and outputs keep their order and their descriptors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node, traceback

from fxdp.graph import marks
from fxdp.graph.emit import emit
from fxdp.graph.nodes import copied
from fxdp.graph.randomness import draws_apart
from fxdp.graph.study import Readable, study
from fxdp.graph.sums import value
from fxdp.shapes import expr
from fxdp.torch_internals import fx_graph_cse, make_fx


def lower(
    gm: GraphModule, decompositions: dict[Any, Callable[..., Any]] | None = None
) -> GraphModule:
    """The same computation as a graph for a backend.

    Args:
        decompositions: of a backend that makes code of plain aten ops; None for one that runs the
            graph as it is, and can run composite ops, too.
    """
    drop_marks(gm)
    flat = copied(gm) if decompositions is None else retraced(gm, decompositions)
    with draws_apart(flat):
        flat.graph = fx_graph_cse(flat.graph)
    for new, old in zip(*(g.graph.find_nodes(op="placeholder") for g in (flat, gm)), strict=True):
        new.meta |= {k: v for k, v in old.meta.items() if k not in ("val", "placement")}
        new.target = new.name = old.name
    flat.graph.output_node().meta |= gm.graph.output_node().meta
    flat.meta |= gm.meta
    flat.graph.eliminate_dead_code()
    study(flat).put(Readable(gm))
    return flat


def retraced(gm: GraphModule, decompositions: dict[Any, Callable[..., Any]]) -> GraphModule:
    """The graph as plain aten ops, each taken apart the way a backend wants it."""
    inputs = gm.graph.find_nodes(op="placeholder")
    with torch.no_grad(), traceback.preserve_node_meta():
        return make_fx(
            lambda *args: Interpreter(gm).run(*args, enable_io_processing=False),
            decomposition_table=decompositions,
            _allow_non_fake_inputs=True,
        )(*(value(n) for n in inputs))


def as_marked(mark: Node) -> Node:
    """What was marked, laid out as the ops behind the mark were captured with."""
    x = mark.all_input_nodes[0]
    same = [expr(s) for s in value(x).stride()] == [expr(s) for s in value(mark).stride()]
    return x if same else emit(mark, torch.Tensor.contiguous, x)


def seeded(tangent: Tensor, loss: Tensor, mask: Tensor, reduction: str = "") -> Tensor:
    """What the mark on the gradient of the loss stands for; ones are computed from the tangent.

    What hangs on the tangent is backward to the partitioner. Plain ones would let it compute
    the norms in the forward half, and most of the backward pass twice.
    """
    if reduction:
        return tangent * mask.sum() if reduction == "mean" else tangent
    return (tangent.isnan() | ~tangent.isnan()).to(loss.dtype).expand_as(loss)


INPUTS = tuple(
    mark.default for mark in (marks.samples, marks.ragged, marks.owned, marks.shown)
)  # which stand for their first operand


def drop_marks(gm: GraphModule) -> None:
    """Replace the marks on inputs by the inputs, and the gradient of the loss by ones."""
    graph = gm.graph
    for node in list(graph.nodes):
        if node.target in INPUTS:
            node.replace_all_uses_with(as_marked(node))
        elif node.target is marks.seed.default:
            node.replace_all_uses_with(emit(node, seeded, *node.args))
    graph.eliminate_dead_code()
    gm.recompile()
