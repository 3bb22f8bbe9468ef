"""Emit the squared norm of every per-sample gradient.

Squared norms add up over parameters, but not over the uses of one parameter: those are joined
before they are measured.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from fxdp.forms import Reduce
from fxdp.forms.batch import has_ops, sq_sum, wide
from fxdp.forms.strategy import STRATEGIES, Strategy
from fxdp.graph.emit import emit, emit_all
from fxdp.graph.records import Choice
from fxdp.graph.study import Choices, PerSample, Squares, study
from fxdp.graph.sums import Sum, each_image, fake_form, sum_at, whole
from fxdp.kernels.clipped_sum import squared_norms
from fxdp.kernels.ghost import covered


def measure(gm: GraphModule) -> GraphModule:
    """Add nodes for the squared norms [N] of the gradients of each parameter, float32 at least.

    Those that are streamed are left to `stream`.
    """
    end = gm.graph.output_node()
    choices = [c for c in study(gm).of(Choices).all if not STRATEGIES[c.strategy].streams]
    squares: dict[int, Node] = {}
    per_sample: dict[str, Node] = {}

    def found(numbers: Iterable[int], results: list[tuple[Node, Node | None]]) -> None:
        for i, (square, each) in zip(numbers, results, strict=True):
            squares[i] = square
            if each is not None:
                per_sample[choices[i].gradient.parameter] = each

    plain = {i: taken for i, c in enumerate(choices) if (taken := plain_sum(gm, c)) is not None}
    if len(plain) > 1:
        inputs = [taken.inputs for taken in plain.values()]
        found(plain, emit(end, partial(measured_at_once, list(plain.values())), inputs))
    at_once = frozenset(per_sample)
    ways = {i: way(gm, c, end) for i, c in enumerate(choices) if i not in squares}
    for composite in (True, False):
        chosen = [i for i in ways if is_composite(choices[i]) == composite]
        found(chosen, emit_all(end, [ways[i] for i in chosen], composite=composite))
    study(gm).put(Squares({c.gradient.parameter: squares[i] for i, c in enumerate(choices)}))
    study(gm).put(PerSample(per_sample, at_once))
    return gm


def plain_sum(gm: GraphModule, choice: Choice) -> Sum | None:
    """The sum of a gradient that adds up per-sample gradients which are there, if ops take them.

    A model has many of these, of biases and scales: one op for all of them is quicker to compile
    and to run than one each.
    """
    if choice.kind != "one" or not choice.keep:
        return None
    taken = sum_at(gm, choice.gradient.sums[0])
    form = None if taken is None else fake_form(taken)
    here = isinstance(form, Reduce) and has_ops(form.x) and form.x.is_floating_point()
    return taken if here else None


def measured_at_once(taken: list[Sum], inputs: list[Any]) -> list[tuple[Tensor, Tensor]]:
    """Squared norms [N] and per-sample gradients of several plain sums."""
    each = [wide(s.build(*own).per_sample()) for s, own in zip(taken, inputs, strict=True)]
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(x.dtype for x in each):
        alike = [i for i, x in enumerate(each) if x.dtype == dtype]
        found |= dict(zip(alike, squared_norms([each[i] for i in alike]).unbind(0), strict=True))
    return [(found[i], x) for i, x in enumerate(each)]


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
