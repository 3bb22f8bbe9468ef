"""Emit the squared norm of every per-sample gradient.

Squared norms add up over parameters, but not over the uses of one parameter: those are joined
before they are measured.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.forms.batch import sq_sum
from fxdp.forms.strategy import STRATEGIES, Strategy
from fxdp.graph.emit import emit, emit_all
from fxdp.graph.records import Choice
from fxdp.graph.study import Choices, PerSample, Squares, study
from fxdp.graph.sums import Sum, each_image, sum_at, whole
from fxdp.kernels.ghost import covered


def measure(gm: GraphModule) -> GraphModule:
    """Add nodes for the squared norms [N] of the gradients of each parameter, float32 at least.

    Those that are streamed are left to `stream`.
    """
    end = gm.graph.output_node()
    choices = [c for c in study(gm).of(Choices).all if not STRATEGIES[c.strategy].streams]
    ways = [way(gm, choice, end) for choice in choices]
    squares: dict[int, Node] = {}
    per_sample: dict[str, Node] = {}
    for composite in (True, False):
        chosen = [i for i, c in enumerate(choices) if is_composite(c) == composite]
        results = emit_all(end, [ways[i] for i in chosen], composite=composite)
        for i, (square, each) in zip(chosen, results, strict=True):
            squares[i] = square
            if each is not None:
                per_sample[choices[i].gradient.parameter] = each
    study(gm).put(Squares({c.gradient.parameter: squares[i] for i, c in enumerate(choices)}))
    study(gm).put(PerSample(per_sample))
    return gm


def is_composite(choice: Choice) -> bool:
    """May composite ops stay whole where this is traced?"""
    return STRATEGIES[choice.strategy].traceable or choice.kind == "general"


# A function, and its arguments; it returns the squared norms [N], and the per-sample gradients
# that they were taken of, or None if there are none.
Way = tuple[Callable[..., tuple[Tensor, Tensor | None]], tuple[Any, ...]]


def way(gm: GraphModule, choice: Choice, end: Node) -> Way:
    """How the squared norms of one parameter's per-sample gradients are computed."""
    sums = [sum_at(gm, node) for node in choice.gradient.sums]
    taken = [s for s in sums if s is not None]
    inputs = tuple(s.inputs for s in taken)
    if choice.kind == "general":
        composite = STRATEGIES[choice.strategy].traceable
        parts = {
            s.node: emit(end, one_each(s, choice.strategy), *s.inputs, composite=composite)
            for s in taken
        }
        return with_square, (each_image(gm, choice.gradient, parts, end),)
    if STRATEGIES[choice.strategy].materialises:
        if not choice.keep:
            return lambda *groups: square_alone(whole(taken, groups), choice.strategy), inputs
        return lambda *groups: with_square(whole(taken, groups).per_sample(choice.strategy)), inputs
    return lambda *groups: (whole(taken, groups).sq_norm(choice.strategy), None), inputs


def with_square(each: Tensor) -> tuple[Tensor, Tensor]:
    """Per-sample gradients, behind their squared norms."""
    return sq_sum(each), each


def square_alone(form: Any, strategy: Strategy) -> tuple[Tensor, None]:
    """The squared norms of per-sample gradients, which go once they are measured: rounded up, for
    the clipped sum is computed anew."""
    return covered(sq_sum(form.per_sample(strategy)), form.gross()), None


def one_each(taken: Sum, strategy: Strategy) -> Any:
    """The function that gives the per-sample gradients of one sum."""

    def per_sample(*values: Any) -> Tensor:
        form = taken.build(*values)
        return form.per_sample(strategy if strategy in form.strategies else "instantiate")

    return per_sample
