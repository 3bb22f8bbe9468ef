"""How each parameter's norms are found."""

import pytest
import torch
from torch import Tensor, nn

from tests.passes.graphs import Run, Twice, conv, linear, mean_square, passed, sequence, sum_square


def chosen(run: Run) -> list[tuple[str, str, str]]:
    """Parameter, kind and strategy."""
    return [(c.gradient.parameter, c.kind, c.strategy) for c in run.study.choices]


def test_auto() -> None:
    """A linear layer at one position: two vectors, whose norms multiply."""
    run = linear("plan")
    assert chosen(run) == [("weight", "one", "ghost"), ("bias", "one", "instantiate")]
    costs = run.study.choices[0].costs
    assert costs["ghost"].subs(run.study.n, 4) <= costs["instantiate"].subs(run.study.n, 4)


@pytest.mark.parametrize(
    ("strategy", "taken"),
    [
        ("auto", "instantiate"),
        ("instantiate", "instantiate"),
        ("ghost", "ghost"),
        ("naive", "naive"),
        ("multi", "multi"),
        ("crb", "instantiate"),
    ],
)
def test_linear(strategy: str, taken: str) -> None:
    """A form that does not offer a strategy is instantiated."""
    assert chosen(sequence("plan", strategy)) == [("weight", "one", taken)]


@pytest.mark.parametrize("strategy", ["instantiate", "ghost", "crb", "naive", "multi"])
def test_conv(strategy: str) -> None:
    """Convolutions offer every strategy."""
    assert chosen(conv("plan", strategy)) == [("weight", "one", strategy)]


def test_joined() -> None:
    """Sums of one kind are one sum over more positions."""
    model = Twice(3, 3, bias=False)
    run = passed(model, mean_square, torch.zeros(4, 3), torch.zeros(4, 3), last="plan")
    assert [c.kind for c in run.study.choices] == ["joined"]


class Tied(nn.Embedding):
    """An embedding whose table is also the head."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) @ self.weight.T


@pytest.mark.parametrize(("strategy", "kind"), [("ghost", "tied"), ("instantiate", "general")])
def test_tied(strategy: str, kind: str) -> None:
    """The cross term is for ghost norms; else the sum is materialised."""
    ids = torch.zeros(4, 5, dtype=torch.long)
    run = passed(Tied(7, 3), sum_square, ids, torch.zeros(4), last="plan", strategy=strategy)
    assert chosen(run) == [("weight", kind, strategy)]


class Doubled(nn.Linear):
    """The gradient of the weight is scaled on its way."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * 2).T


def test_general() -> None:
    """What is no isometry leaves only the general way, without ghost norms."""
    x = torch.zeros(4, 5, 3)
    run = passed(Doubled(3, 2, bias=False), sum_square, x, torch.zeros(4), last="plan",
                 strategy="ghost")  # fmt: skip
    assert chosen(run) == [("weight", "general", "instantiate")]
    assert "ghost" not in run.study.choices[0].costs
