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


class Kept(nn.Module):
    """Comments that allow what they do not stand on."""

    def __init__(self, aside):
        super().__init__()
        self.fc, self.aside = nn.Linear(D, D), aside

    def forward(self, x):
        h = self.fc(x)
        getattr(self, self.aside)(h)
        return h.square().sum(1)

    def assigned(self, h):
        middle = h.relu()  # assigned
        self.last = middle  # fxdp: allow[FXD303] for the debugger

    def another_allowed(self, h):
        self.first = h.sigmoid()  # fxdp: allow[FXD303] for the debugger
        middle = h.relu()  # another allowed
        self.last = middle


def line_of(text):
    with open(__file__) as file:
        return next(k for k, line in enumerate(file, 1) if line.rstrip().endswith(text))


def test_a_comment_on_the_line_of_the_assignment_is_seen():
    with pytest.raises(fxdp.BatchMixingError) as caught:
        fxdp.prove(Kept("assigned"), X)
    (d,) = caught.value.diagnostics
    own = line_of("  # assigned")
    assert d.location is not None
    assert d.location.line == own
    said = f"allow[FXD303] stands on line {own + 1}, and the value is computed on line {own}: put"
    assert said in d.remedy


def test_of_several_comments_the_nearest_that_allows_nothing_else():
    with pytest.raises(fxdp.BatchMixingError) as caught:
        fxdp.prove(Kept("another_allowed"), X)
    (d,) = caught.value.diagnostics
    own = line_of("  # another allowed")
    assert d.location is not None
    assert d.location.line == own
    assert f"stands on line {own - 4}, and" in d.remedy


class Alone(nn.Linear):
    def forward(self, x):
        self.first = x.sigmoid()  # fxdp: allow[FXD303] for the debugger
        h = super().forward(x)
        self.last = h.relu()
        return h.square().sum(1)


def test_a_comment_that_allows_something_is_not_named():
    with pytest.raises(fxdp.BatchMixingError) as caught:
        fxdp.prove(Alone(D, D), X)
    assert ["stands on line" in d.remedy for d in caught.value.diagnostics] == [False]
