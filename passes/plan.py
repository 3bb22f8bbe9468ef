"""Choose, for each parameter, how its per-sample norms are found.

What the sums of one gradient are together decides what is possible: one sum moved about by
isometries has that sum's norm; several of one kind are one sum over more positions; an
embedding tied to a head has an exact cross term; anything else is materialised for each sample
and mapped. Between the strategies that a form offers, the cost model decides.
"""

from dataclasses import replace
from typing import Any, Literal

import sympy
import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from fxdp.forms import Outer, Scatter
from fxdp.forms.batch import Strategy
from fxdp.graph_pass import Choice, Gradient, study
from fxdp.sums import fake_form, is_partial, sum_at, value

STRATEGIES: tuple[Strategy, ...] = ("instantiate", "crb", "ghost", "naive", "multi")
# These two differ in kind; the others are there to compare with.
MODELLED = ("instantiate", "ghost")
Kind = Literal["one", "joined", "tied", "general"]


def plan(
    gm: GraphModule, strategy: Strategy | Literal["auto"] = "auto", inspect_each: bool = False
) -> GraphModule:
    """Set the study's choices.

    Args:
        strategy: "auto", or the one that every sum takes if its form offers it.
        inspect_each: materialise every per-sample gradient, in its parameter's shape.
    """
    gradients = [g for g in study(gm).gradients if g.sums]
    choices = [choose(gm, g, "instantiate" if inspect_each else strategy) for g in gradients]
    if inspect_each:
        choices = [replace(c, kind="general") for c in choices]
    study(gm).choices = tuple(choices)
    return gm


def choose(gm: GraphModule, gradient: Gradient, strategy: Strategy | Literal["auto"]) -> Choice:
    """The kind of a gradient's sums, and a strategy for them."""
    taken = [sum_at(gm, s) for s in gradient.sums]
    forms = [fake_form(s) for s in taken if s is not None]
    kind, merged = together(gm, gradient, forms)
    offered: list[Strategy] = [s for s in STRATEGIES if all(s in f.strategies for f in merged)]
    if kind == "general":
        offered = [s for s in offered if s != "ghost"]
    if any(value(s).is_complex() for s in gradient.sums):
        offered = ["instantiate"]
    costs = {s: total_cost(merged, s) for s in offered}
    if strategy == "auto":
        strategy = min((s for s in offered if s in MODELLED), key=lambda s: hinted(gm, costs[s]))
    wanted: Strategy = strategy if strategy in offered else "instantiate"
    if kind == "tied" and wanted != "ghost":
        kind = "general"
    return Choice(gradient, kind, wanted, costs)


def together(gm: GraphModule, gradient: Gradient, forms: list[Any]) -> tuple[Kind, list[Any]]:
    """What the sums of a gradient are together, and the forms to be measured."""
    if not all(is_isometry(gm, n) for n in gradient.linear):
        return "general", forms
    if len(forms) == 1:
        return "one", forms
    if not same_layout(gradient):
        return "general", forms
    kinds = {type(f) for f in forms}
    if kinds == {Outer}:
        return "joined", [Outer.joined(forms)]
    if kinds == {Scatter}:
        return "joined", [Scatter.joined(forms)]
    if kinds == {Outer, Scatter}:
        return "tied", forms
    return "general", forms


def total_cost(forms: list[Any], strategy: Strategy) -> sympy.Expr:
    """What a strategy costs for some forms together."""
    total: sympy.Expr = sympy.Integer(0)
    for form in forms:
        total = total + form.cost(strategy)
    return total


def is_isometry(gm: GraphModule, node: Node) -> bool:
    """Does a linear node only move elements, or add sums that stand alike?"""
    rule = study(gm).table.get(node.target)  # type: ignore[arg-type]
    if rule is None:
        return False
    partial = [i for i in node.all_input_nodes if is_partial(i)]
    adds = rule.adds and all(value(i).shape == value(node).shape for i in partial)
    return adds or (rule.isometry and len(partial) == 1)


def same_layout(gradient: Gradient) -> bool:
    """Do all sums reach the gradient the same way, element by element?

    The views between are tried out on tensors without data, whose strides tell where an
    element went. An op that copies or flips signs forgets that: then the answer is no.
    """
    layouts = {layout(gradient, s) for s in gradient.sums}
    return len(layouts) == 1 and None not in layouts


def layout(gradient: Gradient, source: Node) -> tuple[Any, ...] | None:
    """Shape and strides of a sum's elements as they stand in the gradient."""
    shape = [int(s) if not isinstance(s, torch.SymInt) else None for s in value(source).shape]
    if None in shape:
        return None
    at: dict[Node, torch.Tensor | None] = {source: torch.empty(shape, device="meta")}  # type: ignore[arg-type]
    for node in gradient.linear:
        reached = [at[i] for i in node.all_input_nodes if i in at]
        if not reached:
            continue
        if any(r is None for r in reached) or len(reached) > 1:
            return None
        target: Any = node.target
        if isinstance(target, OpOverload) and target.is_view:
            args = [at[a] if isinstance(a, Node) else a for a in node.args]
            at[node] = target(*args)
        elif len([i for i in node.all_input_nodes if is_partial(i)]) > 1:
            at[node] = reached[0]
        else:
            return None
    end = at.get(gradient.node)
    return None if end is None else (tuple(end.shape), end.stride())


def hinted(gm: GraphModule, cost: sympy.Expr) -> float:
    """A cost in numbers, for the sizes that the model was captured with."""
    size = study(gm).size
    assert size is not None
    env = value(size).node.shape_env
    hint = getattr(env, "optimization_hint", None) or env.size_hint  # torch 2.11 has the second
    return float(hint(cost))
