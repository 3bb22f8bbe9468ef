"""A captured graph before any pass, written down: what a certificate's placements are of.

Passes copy, join and drop nodes; so each node of the captured graph is given its number first,
which its copies keep. Names of nodes and of size symbols are torch's, and change with what was
captured before; so the graph is written with numbers for nodes, N for the number of samples, and
s1, s2, ... for other sizes in the order in which they appear.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from fxdp.graph import marks
from fxdp.graph.nodes import mark
from fxdp.graph.study import Program, Written, study
from fxdp.placement import (
    Iota,
    Owner,
    Partial,
    Placement,
    Pointer,
    Replicate,
    Segment,
    Shard,
    Starts,
)
from fxdp.shapes import expr, shape_of
from fxdp.torch_internals import OpOverload, pytree

NUMBER = "fxdp_number"  # in a node's meta: its place in the captured graph


@dataclass
class Sizes:
    """Names of sizes that are the same in every process.

    Attributes:
        names: of torch's symbols.
    """

    names: dict[Any, sympy.Symbol]

    def text(self, e: sympy.Expr) -> str:
        """An expression by those names; symbols that are new get the next."""
        for symbol in sorted(e.free_symbols, key=str):
            self.names.setdefault(symbol, sympy.Symbol(f"s{len(self.names)}"))
        return str(e.subs(self.names))


def written(gm: GraphModule) -> tuple[list[Written], Sizes]:
    """One line for each node of a captured graph, without placements; and the names of sizes."""
    released = gm.graph.find_nodes(op="call_function", target=marks.release.default)
    counts = [expr(mark(gm).mask.meta["val"].shape[0]) for _ in released[:1]]
    sizes = Sizes({n: sympy.Symbol("N") for n in counts if isinstance(n, sympy.Symbol)})
    numbers = {node: i for i, node in enumerate(gm.graph.nodes)}

    def word(x: Any) -> str:
        if isinstance(x, Node):
            return f"%{numbers[x]}"
        return sizes.text(expr(x)) if isinstance(x, torch.SymInt) else str(x)

    return [line(node, gm, word, sizes.text) for node in gm.graph.nodes], sizes


def line(
    node: Node, gm: GraphModule, word: Callable[[Any], str], size: Callable[[sympy.Expr], str]
) -> Written:
    """A node: what it does, with what, and what comes out."""
    known = study(gm).names
    name = spelled(node) if node.op == "call_function" else known.get(node.name, "")
    operands = pytree.tree_leaves((node.args, dict(node.kwargs)))
    return Written(f"{node.op} {name}".strip(), " ".join(map(word, operands)), results(node, size))


def results(node: Node, size: Callable[[sympy.Expr], str]) -> str:
    """The dtypes and shapes of what a node returns."""
    return " ".join(
        f"{str(v.dtype).removeprefix('torch.')}[{', '.join(map(size, shape_of(v.shape)))}]"
        for v in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(v, torch.Tensor)
    )


def spelled(node: Node) -> str:
    """The op of a node, without addresses."""
    if isinstance(node.target, OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(type(node.target)))


def number(gm: GraphModule) -> None:
    """Number the nodes of a captured graph, and put down how it is written."""
    for i, node in enumerate(gm.graph.nodes):
        node.meta[NUMBER] = i
    lines, sizes = written(gm)
    study(gm).put(Program(tuple(lines), sizes.names))


def placements(gm: GraphModule) -> tuple[tuple[str, ...], ...]:
    """What the proof found of every node of the captured graph: no placement where a pass dropped
    the node, and several where copies of it were placed in several ways."""
    program = study(gm).of(Program)
    sizes = Sizes(program.sizes)
    found: list[dict[str, None]] = [{} for _ in program.lines]
    for node in gm.graph.nodes:
        place = node.meta.get(NUMBER)
        if place is None or node.meta.get("placement") is None:
            continue
        if results(node, sizes.text) == program.lines[place].results:
            found[place][said(node.meta["placement"], sizes)] = None
    return tuple(tuple(f) for f in found)


def said(at: Placement | tuple[Placement | None, ...] | None, sizes: Sizes) -> str:
    """A placement as a certificate has it; those of several results with a semicolon between."""
    match at:
        case Replicate(zero):
            return "Replicate zero" if zero else "Replicate"
        case Shard(dim, inner):
            return f"Shard {dim} {short(inner, sizes)}"
        case Partial(public):
            return "Partial public" if public else "Partial"
        case Iota(dim, inner, step):
            return f"Iota {dim} {short(inner, sizes)} {short(step, sizes)}"
        case Segment(dim, rows, inner):
            return f"Segment {dim} {short(rows, sizes)} {short(inner, sizes)}"
        case Owner(dim, rows):
            return f"Owner {dim} {short(rows, sizes)}"
        case Pointer(dim, rows, to):
            return f"Pointer {dim} {short(rows, sizes)} {short(to, sizes)}"
        case Starts(rows):
            return f"Starts {short(rows, sizes)}"
        case None:
            return "None"
        case _:
            return "; ".join(said(p, sizes) for p in at)


def short(e: sympy.Expr, sizes: Sizes) -> str:
    """A size without spaces."""
    return sizes.text(sympy.sympify(e)).replace(" ", "")
