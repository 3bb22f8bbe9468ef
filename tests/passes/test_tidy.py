"""One spelling of each op."""

import torch
from torch import Tensor

from fxdp.passes.tidy import tidy
from tests.passes.graphs import block, cut, linear, made, normal


def before_and_after(function, *inputs: Tensor) -> tuple[str, str]:
    """A function's graph, and what tidy makes of it."""
    gm = made(function, *inputs)
    before = normal(gm.print_readable(print_output=False), {})
    after = tidy(gm)
    after.recompile()
    return before, normal(after.print_readable(print_output=False), {})


def test_axes_and_defaults() -> None:
    """Axes count from the left, and every positional argument is written out."""
    texts = linear().texts
    assert cut(texts["captured"], "sum(pow", "sum(sum") == block("""
        sum = sum(^pow, [-1])
        sum_2 = sum(sum, [])
    """)
    assert cut(texts["tidy"], "sum(pow", "sum(sum") == block("""
        sum = sum(^pow, [1], False)
        sum_2 = sum(sum, [], False)
    """)


def test_new_axis() -> None:
    """An axis that an op adds counts in the result, where there is one more."""
    before, after = before_and_after(
        lambda x: torch.ops.aten.unsqueeze(x, -1).transpose(-1, -2), torch.zeros(2, 3)
    )
    assert before == block("""
        unsqueeze = unsqueeze(x_1, -1)
        transpose = transpose(unsqueeze, -1, -2)
    """)
    assert after == block("""
        unsqueeze = unsqueeze(x_1, 2)
        transpose = transpose(unsqueeze, 2, 1)
    """)


def test_identities_are_gone() -> None:
    """Aliases and what nobody uses."""

    def function(x: Tensor) -> Tensor:
        x.cos()
        return torch.ops.aten.alias(torch.ops.aten.detach(x)).sin()

    before, after = before_and_after(function, torch.zeros(2))
    # A detach is traced as an alias since torch 2.14.
    calls = [line.split(" = ")[1].partition("(")[0] for line in before.splitlines()]
    assert calls in (["cos", "detach", "alias", "sin"], ["cos", "alias", "alias", "sin"])
    assert after == "sin = sin(x_1)"


def test_repeated_late() -> None:
    """What is computed from a 0-d value alone is computed before it is repeated."""
    texts = linear().texts
    assert cut(texts["captured"], "expand(seed", "div(") == block("""
        expand = expand(^seed, [N])
        div = div(expand, N)
    """)
    assert cut(texts["tidy"], "div(seed", "expand(") == block("""
        div = div(^seed, N)
        expand = expand(div, [N])
    """)


def test_broadcast() -> None:
    """Beside an operand of the result's shape a 0-d value is not repeated at all."""
    before, after = before_and_after(
        lambda x, y: x.expand(2, 3) * y, torch.zeros(()), torch.zeros(2, 3)
    )
    assert before == block("""
        expand = expand(x_1, [2, 3])
        mul = mul(expand, y_1)
    """)
    assert after == "mul = mul(x_1, y_1)"
