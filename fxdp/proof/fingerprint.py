"""A hash of a captured graph that is the same in every run and every process.

Names of nodes and of size symbols are torch's, and change with what was captured before; so the
graph is written with numbers for nodes, N for the number of samples, and s1, s2, ... for other
sizes in the order in which they appear.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from fxdp.graph.study import Samples, study
from fxdp.proof.program import spelled
from fxdp.shapes import expr, shape_of
from fxdp.torch_internals import pytree


def fingerprint(gm: GraphModule) -> str:
    """SHA-256 of a placed graph, in hexadecimal: its ops, shapes, dtypes, placements and inputs.

    The values of constants are not part of it.
    """
    return hashlib.sha256("\n".join(lines(gm)).encode()).hexdigest()


def lines(gm: GraphModule) -> list[str]:
    """One line for each node."""
    numbers = {node: i for i, node in enumerate(gm.graph.nodes)}
    sizes: dict[Any, sympy.Symbol] = {study(gm).of(Samples).n: sympy.Symbol("N")}

    def size(e: sympy.Expr) -> str:
        for symbol in sorted(e.free_symbols, key=str):
            sizes.setdefault(symbol, sympy.Symbol(f"s{len(sizes)}"))
        return str(e.subs(sizes))

    def word(x: Any) -> str:
        if isinstance(x, Node):
            return f"%{numbers[x]}"
        return size(expr(x)) if isinstance(x, torch.SymInt) else str(x)

    return [" ".join(words(node, gm, word, size)) for node in gm.graph.nodes]


def words(
    node: Node, gm: GraphModule, word: Callable[[Any], str], size: Callable[[sympy.Expr], str]
) -> list[str]:
    """A node: what it does, with what, and what comes out."""
    name = spelled(node) if node.op == "call_function" else study(gm).names.get(node.name, "")
    operands = pytree.tree_leaves((node.args, dict(node.kwargs)))
    results = [
        f"{v.dtype}[{', '.join(map(size, shape_of(v.shape)))}]"
        for v in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(v, torch.Tensor)
    ]
    places = pytree.tree_leaves(node.meta.get("placement"))
    shown = [size(sympy.sympify(p.inner)) if hasattr(p, "inner") else "" for p in places]
    kinds = [f"{type(p).__name__}{getattr(p, 'dim', '')}" for p in places]
    return [node.op, name, *map(word, operands), "->", *results, *kinds, *shown]
