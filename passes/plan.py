"""Choose, for each parameter, how its per-sample norms are found.

What the sums of one gradient are together decides what is possible (`fxdp.graph.kinds`). Between
the strategies that a form offers, the cost model decides, or trials on this machine.
"""

from dataclasses import replace
from typing import Any, Literal

import sympy
import torch
from torch.fx import GraphModule

from fxdp.autotune.trials import Trial, trials
from fxdp.forms.strategy import STRATEGIES, Strategy
from fxdp.graph.kinds import together
from fxdp.graph.records import Choice, Gradient
from fxdp.graph.study import Choices, GradientSums, at_hand, hinted, study
from fxdp.graph.sums import fake_form, sum_at, value
from fxdp.shapes import expr

# Costs this many times the least are believed; below, the machine is asked.
DOUBT = 8.0
# The share of a step's tensors that per-sample gradients may take up in addition.
SHARE = 0.05
WIDEST = 4  # bytes of a number, in most models
Plan = Literal["measured", "model", "fixed"]


def plan(
    gm: GraphModule,
    strategy: Strategy | Literal["auto"] = "auto",
    inspect_each: bool = False,
    how: Plan = "model",
    memory_budget: int | None = None,
) -> GraphModule:
    """Put down the choices.

    Args:
        strategy: "auto", or the one that every sum takes if its form offers it.
        inspect_each: materialise every per-sample gradient, in its parameter's shape.
        how: what "auto" goes by: "measured" times the ways that the cost model cannot tell
            apart, "model" believes it, "fixed" takes what is smaller, ghost norms or
            per-sample gradients (Bu et al., arXiv:2205.10683, section 3.3).
        memory_budget: bytes that per-sample gradients may take up at a time, where that was
            measured; a twentieth of what the sums are made of if not given.
    """
    gradients = [g for g in study(gm).of(GradientSums).all if g.sums]
    room = max(bytes_summed(gm, gradients), memory_budget or 0)
    choices = [
        choose(gm, g, "instantiate" if inspect_each else strategy, how, room) for g in gradients
    ]
    if inspect_each:
        choices = [replace(c, kind="general") for c in choices]
    else:
        budget = memory_budget if memory_budget is not None else int(SHARE * room)
        choices = within(choices, budget)
    study(gm).put(Choices(tuple(choices)))
    return gm


def choose(
    gm: GraphModule,
    gradient: Gradient,
    strategy: Strategy | Literal["auto"],
    how: Plan,
    room: float,
) -> Choice:
    """The kind of a gradient's sums, and a strategy for them.

    Args:
        room: bytes that per-sample gradients may take up for a moment, if "measured" has
            something else to choose; that much is in the operands of all sums.
    """
    taken = [sum_at(gm, s) for s in gradient.sums]
    forms = [fake_form(s) for s in taken if s is not None]
    kind, merged = together(gm, gradient, forms)
    offered: list[Strategy] = [s for s in STRATEGIES if all(s in f.strategies for f in merged)]
    if kind == "general":
        offered = [s for s in offered if STRATEGIES[s].materialises]
    if any(value(s).is_complex() for s in gradient.sums):
        offered = ["instantiate"]
    costs: dict[Strategy, sympy.Expr] = {s: total_cost(merged, s) for s in offered}
    if strategy == "auto":
        if how == "measured" and len(merged) == 1 and kind != "general":
            known: dict[Strategy, float] = {
                s: hinted(gm, c) for s, c in costs.items() if STRATEGIES[s].tried
            }
            small: dict[Strategy, float] = {
                s: c
                for s, c in known.items()
                if hinted(gm, total_extra(merged, s)) * WIDEST <= room
            }
            doubted = doubtful(small or known)
            if len(doubted) > 1:
                ways = trials(merged[0], doubted, at_hand(gm))
                best = min(ways, key=lambda t: t.seconds)
                return Choice(gradient, kind, best.strategy, costs, best.keep, tuple(ways))
            return Choice(gradient, kind, doubted[0], costs)
        sizes = {s: total_extra(merged, s) for s in offered} if how == "fixed" else costs
        modelled: list[Strategy] = [s for s in offered if STRATEGIES[s].modelled]
        strategy = min(modelled, key=lambda s: hinted(gm, sizes[s]))
    wanted: Strategy = strategy if strategy in offered else "instantiate"
    return Choice(gradient, kind, wanted, costs)


def doubtful(costs: dict[Strategy, float]) -> list[Strategy]:
    """The strategies that the cost model cannot rule out, the most promising first."""
    most = DOUBT * min(costs.values())
    return sorted((s for s, c in costs.items() if c <= most), key=costs.__getitem__)


def bytes_summed(gm: GraphModule, gradients: list[Gradient]) -> float:
    """How many bytes the operands of all sums take up."""
    inputs = {i for g in gradients for s in g.sums for i in s.all_input_nodes}
    held = [value(i) for i in inputs if isinstance(value(i), torch.Tensor)]
    stored = {x.untyped_storage()._cdata: x for x in held}.values()  # views share theirs
    return sum(hinted(gm, expr(x.numel())) * x.element_size() for x in stored)


def within(choices: list[Choice], budget: int) -> list[Choice]:
    """The choices, with fewer per-sample gradients kept where they exceed a budget in bytes.

    What gains the least time for its bytes goes first.
    """
    used = {i: kept(c) for i, c in enumerate(choices)}

    def gain(i: int) -> float:
        return (lighter(choices[i]).seconds - taken(choices[i]).seconds) / used[i]

    choices = list(choices)
    for i in sorted((i for i, size in used.items() if size), key=gain):
        if sum(used.values()) <= budget:
            break
        other, used[i] = lighter(choices[i]), 0
        choices[i] = replace(choices[i], strategy=other.strategy, keep=other.keep)
    return choices


def taken(choice: Choice) -> Trial:
    """The trial that a choice follows."""
    return next(t for t in choice.trials if (t.strategy, t.keep) == (choice.strategy, choice.keep))


def lighter(choice: Choice) -> Trial:
    """The fastest trial that keeps nothing."""
    return min((t for t in choice.trials if not t.kept), key=lambda t: t.seconds)


def kept(choice: Choice) -> int:
    """Bytes that a choice keeps, as far as that was measured."""
    return taken(choice).kept if choice.trials else 0


def total_cost(forms: list[Any], strategy: Strategy) -> sympy.Expr:
    """What a strategy costs for some forms together."""
    total: sympy.Expr = sympy.Integer(0)
    for form in forms:
        total = total + form.cost(strategy)
    return total


def total_extra(forms: list[Any], strategy: Strategy) -> sympy.Expr:
    """Numbers that a strategy stores in addition to some forms."""
    total: sympy.Expr = sympy.Integer(0)
    for form in forms:
        total = total + form.extra(strategy)
    return total
