"""Choose, for each parameter, how its per-sample norms are found.

What the sums of one gradient are together decides what is possible (`fxdp.graph.kinds`). Between
the strategies that a form offers, the cost model decides, or trials on this machine.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import sympy
import torch
from torch.fx import GraphModule

from fxdp.autotune.trials import Trial, trials
from fxdp.forms.strategy import STRATEGIES, Strategy
from fxdp.graph.kinds import together
from fxdp.graph.records import Choice, Gradient, Kind
from fxdp.graph.study import Choices, GradientSums, Size, at_hand, hinted, study
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
    budget = memory_budget if memory_budget is not None else int(SHARE * room)
    cases = [case(gm, g) for g in gradients]
    rows = rows_at_once(gm, cases, budget)
    wanted = "instantiate" if inspect_each else strategy
    choices = [choose(gm, c, wanted, how, room, rows) for c in cases]
    if inspect_each:
        choices = [replace(c, kind="general") for c in choices]
    else:
        choices = within(choices, budget, lambda c: rows * streamed_bytes(gm, c))
    study(gm).put(Choices(tuple(choices), rows))
    return gm


@dataclass(frozen=True)
class Case:
    """What there is to choose for one gradient.

    Attributes:
        gradient: which.
        kind: what its sums are together.
        forms: to be measured, as one where that is possible.
        offered: the strategies that do.
    """

    gradient: Gradient
    kind: Kind
    forms: list[Any]
    offered: list[Strategy]


def case(gm: GraphModule, gradient: Gradient) -> Case:
    """What there is to choose for a gradient."""
    taken = [sum_at(gm, s) for s in gradient.sums]
    kind, forms = together(gm, gradient, [fake_form(s) for s in taken if s is not None])
    if any(value(s).is_complex() for s in gradient.sums):
        return Case(gradient, kind, forms, ["instantiate"])
    offered: list[Strategy] = [s for s in STRATEGIES if all(offers(f, s, kind) for f in forms)]
    return Case(gradient, kind, forms, offered)


def offers(form: Any, strategy: Strategy, kind: Kind) -> bool:
    """Can a form's norms be found by a strategy?"""
    traits = STRATEGIES[strategy]
    if strategy not in form.strategies or (kind == "general" and not traits.materialises):
        return False
    return not traits.streams or form.streams


def rows_at_once(gm: GraphModule, cases: list[Case], budget: int) -> int:
    """Of how many samples gradients are streamed at a time: as many as a budget in bytes has room
    for, a power of two; of one at least, of all at most."""
    each = sum(
        hinted(gm, total_extra(c.forms, "stream")) * WIDEST for c in cases if "stream" in c.offered
    )
    samples = at_hand(gm)(value(study(gm).of(Size).node))
    fitting = min(samples, int(budget // each)) if each else 1
    return 1 << max(0, fitting.bit_length() - 1)


def streamed_bytes(gm: GraphModule, choice: Choice) -> int:
    """Bytes of one sample's gradient, where that is streamed."""
    if not STRATEGIES[choice.strategy].streams:
        return 0
    return int(hinted(gm, expr(value(choice.gradient.node).numel()))) * WIDEST


def choose(
    gm: GraphModule,
    case: Case,
    strategy: Strategy | Literal["auto"],
    how: Plan,
    room: float,
    rows: int,
) -> Choice:
    """A strategy for a gradient's sums.

    Args:
        strategy: "auto", or what is taken where it is offered; else what is streamed elsewhere
            goes by "auto", and any other is instantiated.
        room: bytes that per-sample gradients may take up for a moment, if "measured" has
            something else to choose; that much is in the operands of all sums.
        rows: of how many samples at a time gradients are streamed.
    """
    gradient, kind, merged, offered = case.gradient, case.kind, case.forms, case.offered
    if strategy != "auto" and STRATEGIES[strategy].streams and strategy not in offered:
        strategy = "auto"
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
                ways = trials(merged[0], doubted, at_hand(gm), rows)
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


def within(choices: list[Choice], budget: int, streamed: Callable[[Choice], int]) -> list[Choice]:
    """The choices, with fewer per-sample gradients kept where they exceed a budget in bytes.

    What gains the least time for its bytes goes first.

    Args:
        streamed: the bytes that streaming takes for a choice.
    """
    used = {i: kept(c) for i, c in enumerate(choices)}

    def gain(i: int) -> float:
        return (lighter(choices[i]).seconds - taken(choices[i]).seconds) / used[i]

    choices = list(choices)
    for i in sorted((i for i, size in used.items() if size), key=gain):
        if sum(used.values()) + sum(map(streamed, choices)) <= budget:
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
