"""What a graph must give up at its ends, and must not ask on the way.

gradients of parameters      sums over samples, or without samples
new values of inputs         without samples
what the model keeps         without samples, unless the certificate says who allowed it
the loss                     released at one place
questions about N            answered alike for every N from 2 up: else other batches run
                             another program
"""

from typing import Any

import sympy
import torch
from torch.fx import GraphModule, Node

from fxdp.checker.claims import Claims, Partial, Replicate
from fxdp.graph import marks

GRADIENT, WRITTEN = "GradAOTOutput", "InputMutationAOTOutput"
# torch asks for N to choose among kernels of convolutions that compute the same.
HARMLESS = ("fake_impls.py", "conv")
RETURNED = (marks.release.default, marks.shown.default)


def outputs(gm: GraphModule, forward: int) -> list[tuple[Node, str]]:
    """The tensors that leave a joint graph, each with its role: "gradient", "shared" for what must
    hold no samples, "kept" by the model, or "returned" to the caller.

    Args:
        forward: how many outputs the forward pass has; they come first.
    """
    out = gm.graph.output_node()
    kinds = [type(d).__name__ for d in out.meta["desc"]]
    found: list[tuple[Node, str]] = []
    values: Any = out.args[0]
    for place, (node, kind) in enumerate(zip(values, kinds, strict=True)):
        if not isinstance(node, Node) or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        if kind == GRADIENT:
            found.append((node, "gradient"))
        elif kind == WRITTEN or place >= forward:
            found.append((node, "shared"))
        else:
            found.append((node, "returned" if node.target in RETURNED else "kept"))
    return found


def ancestors(ends: list[Node]) -> set[Node]:
    """The nodes that some nodes are made of, and those."""
    found: set[Node] = set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return found


def numbers(gm: GraphModule, n: sympy.Symbol) -> set[sympy.Symbol]:
    """The symbols of how many samples there are, and how many rows of theirs of each kind."""
    found = {n}
    for target in (marks.ragged.default, marks.owned.default):
        for node in gm.graph.find_nodes(op="call_function", target=target):
            for owner in node.all_input_nodes[1:]:
                rows = owner.meta["val"].shape[0]
                if isinstance(rows, torch.SymInt):
                    found |= rows.node.expr.free_symbols
    return found


def counts(gm: GraphModule, n: sympy.Symbol) -> Node | None:
    """A number that leaves a joint graph, and is made of the number of samples or of rows."""
    counted = numbers(gm, n)
    values: Any = gm.graph.output_node().args[0]
    for node in values:
        value = node.meta.get("val") if isinstance(node, Node) else None
        symbolic = isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)
        if symbolic and not counted.isdisjoint(value.node.expr.free_symbols):
            return node
    return None


def trouble(role: str, known: list[Claims]) -> str | None:
    """Why an output is not what it must be; None if it is."""
    allowed = (Partial | Replicate) if role == "gradient" else Replicate
    if role == "returned" or any(isinstance(c[0], allowed) for c in known):
        return None
    if role == "gradient":
        return "it is a gradient, and no sum over samples"
    return "it leaves the step without noise, and holds samples"


def releases(gm: GraphModule) -> list[Node]:
    """Where the loss leaves the model."""
    return list(gm.graph.find_nodes(op="call_function", target=marks.release.default))


def other_program(env: Any, n: sympy.Symbol) -> str | None:
    """What is computed for some N only, or may be; None if nothing is.

    Args:
        env: torch's record of what was asked about sizes during capture.
    """
    m = sympy.Symbol("m", integer=True, nonnegative=True)
    for guard in env.guards:
        place = guard.sloc.framework_loc
        asker = (str(getattr(place, "filename", ""))[-13:], getattr(place, "name", ""))
        own = {s for s in guard.expr.free_symbols if env.simplify(s) == n}
        if asker == HARMLESS or not own:
            continue
        free: dict[Any, Any] = dict.fromkeys(own, m + 2)
        for s in guard.expr.free_symbols - own:
            least = getattr(env.var_to_range.get(s), "lower", 0)
            least = least if getattr(least, "is_Integer", False) and least > 0 else 0
            free[s] = sympy.Symbol(f"t_{s}", integer=True, nonnegative=True) + least
        asked = guard.expr.subs(free)
        if not holds(asked):
            text = guard.expr.subs(dict.fromkeys(own, sympy.Symbol("N")))
            return f"what is computed may depend on whether {text}"
    return None


def holds(asked: Any) -> bool:
    """Is a question about whole numbers that are not negative always answered yes?

    Sums of products alone are decided; whatever else is asked counts as no.
    """
    if asked in (sympy.true, True):
        return True
    if isinstance(asked, sympy.And):
        return all(map(holds, asked.args))
    if not isinstance(asked, sympy.core.relational.Relational):
        return False
    left: Any = asked.lhs
    gap = sympy.expand(left - asked.rhs)
    match asked:
        case sympy.Eq():
            return gap == 0
        case sympy.Ne():
            return positive(gap) or positive(-gap)
        case sympy.Ge():
            return positive(gap + 1)
        case sympy.Gt():
            return positive(gap)
        case sympy.Le():
            return positive(1 - gap)
        case sympy.Lt():
            return positive(-gap)
        case _:
            return False


def positive(e: sympy.Expr) -> bool:
    """Is a sum of products of such numbers 1 or more, whatever they are?"""
    e = sympy.expand(e)
    if not e.is_polynomial(*e.free_symbols):
        return False
    terms: dict[Any, Any] = e.as_coefficients_dict()
    whole = all(sympy.sympify(c).is_Integer and c >= 0 for c in terms.values())
    return bool(whole and terms.get(sympy.Integer(1), 0) >= 1)
