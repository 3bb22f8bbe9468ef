"""Which sums over samples a gradient is made of."""

import torch
from torch import nn

from fxdp.graph.study import GradientSums
from tests.passes.graphs import Decay, Run, Twice, cut, linear, mean_square, op, passed, sum_square


def parts(run: Run) -> dict[str, tuple[list[str], list[str]]]:
    """The ops of the sums and of the linear nodes, by parameter."""
    return {
        g.parameter: ([op(n) for n in g.sums], [op(n) for n in g.linear])
        for g in run.study.of(GradientSums).all
    }


def test_linear() -> None:
    """A product and two transposes; a sum and a view."""
    run = linear("explain")
    assert parts(run) == {
        "weight": (["mm"], ["permute", "permute"]),
        "bias": (["sum"], ["view"]),
    }
    assert cut(run.texts["explain"], "mm(permute") == "mm = mm(^permute, ^samples)"


def test_graph_is_kept() -> None:
    """The pass looks and changes nothing."""
    texts = linear().texts
    assert texts["explain"] == texts["localize"]


def test_twice() -> None:
    """Each use is a sum of its own."""
    model = Twice(3, 3, bias=False)
    run = passed(model, mean_square, torch.zeros(4, 3), torch.zeros(4, 3), last="explain")
    sums, linear_nodes = parts(run)["weight"]
    assert sums == ["mm", "mm"]
    assert linear_nodes.count("add") == 1


def test_public_term() -> None:
    """A term without samples comes in at an addition, and is no sum."""
    run = passed(Decay(3, 2, bias=False), None, torch.zeros(4, 3), last="explain")
    sums, linear_nodes = parts(run)["weight"]
    assert sums == ["mm"]
    assert linear_nodes[-1] == "add"


def test_frozen() -> None:
    """A parameter without a gradient is not looked at."""
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    run = passed(model, sum_square, torch.zeros(4, 5, 3), torch.zeros(4), last="explain")
    assert [g.parameter for g in run.study.of(GradientSums).all] == ["bias"]
