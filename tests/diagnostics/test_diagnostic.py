"""A fault is told at the expression that has it, and with the submodule it ran in."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from tests.releases import since

columns = since((2, 12), "a line of a model comes without its columns")

N, D = 6, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.model = nn.Linear(D, D), nn.BatchNorm1d(D)

    def forward(self, x):
        x = self.model(self.fc(x)) + 1  # normalised
        return x - x.mean(0, keepdim=True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"in": Block(), "out": nn.Sequential(Block())})

    def forward(self, x):
        x = self.model["in"](x)
        x = "é" and torch.flip(x, [0]) * 2
        return self.model["out"](x)


X, Y = torch.randn(N, D), torch.arange(N) % D


@pytest.fixture(scope="module")
def found() -> tuple[fxdp.Diagnostic, ...]:
    with pytest.raises(fxdp.BatchMixingError) as caught:
        fxdp.prove(Net(), X, Y, loss_fn=F.cross_entropy)
    return caught.value.diagnostics


def marked(d: fxdp.Diagnostic) -> str:
    """What the columns of a diagnostic mark."""
    assert d.location is not None
    with open(__file__, encoding="utf8") as file:
        line = file.read().splitlines()[d.location.line - 1]
    assert d.location.column is not None
    assert d.location.end_column is not None
    return line[d.location.column - 1 : d.location.end_column - 1]


@columns
def test_the_expression_is_marked(found: tuple[fxdp.Diagnostic, ...]):
    assert [marked(d) for d in found] == [
        "self.model(self.fc(x))", "x.mean(0, keepdim=True)", "torch.flip(x, [0])",
    ]  # fmt: skip


def test_every_module_that_runs_the_line_is_named_once(found: tuple[fxdp.Diagnostic, ...]):
    assert [d.modules for d in found] == [
        ("model.in.model", "model.out.0.model"), ("model.in", "model.out.0"), ("",),
    ]  # fmt: skip
    assert "(in model.in.model and 1 more)" in str(found[0])


def test_shapes_are_those_of_the_operands(found: tuple[fxdp.Diagnostic, ...]):
    assert found[0].shapes == ("[N, 4]",)
    assert found[2].shapes == ("[N, 4]",)


def test_a_fault_does_not_hide_the_next_but_its_consequences_are_not_told(
    found: tuple[fxdp.Diagnostic, ...],
):
    lines = [d.location.line for d in found if d.location]
    assert len(set(lines)) == 3
    assert lines == sorted(lines)
