"""The line that says what a compilation is at."""

import io
import sys

import pytest
import torch
from torch import nn

import fxdp
from fxdp import status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def private_linear() -> fxdp.PrivateModule:
    return fxdp.compile(
        nn.Linear(3, 2), loss_fn=nn.CrossEntropyLoss(), max_grad_norm=1.0, noise_multiplier=1.0,
        expected_batch_size=4, backend="eager",
    )  # fmt: skip


def step(private: fxdp.PrivateModule) -> None:
    private(torch.randn(4, 3), torch.randint(2, (4,))).backward()


def test_stages_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    private = private_linear()
    step(private)
    said = terminal.getvalue()
    stages = ["capturing", "prove", "measure", "noise", "lower"]
    assert [s for s in stages if s in said] == stages
    assert sorted(stages, key=said.index) == stages
    assert said.endswith(status.ERASE)
    step(private)
    assert terminal.getvalue() == said  # a step that compiles nothing says nothing


def test_nothing_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    step(private_linear())
    assert capsys.readouterr().err == ""


def test_a_failure_takes_the_line_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def fail() -> None:
        status.say("dividing")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), status.line():
        fail()
    assert "dividing" in terminal.getvalue()
    assert terminal.getvalue().endswith(status.ERASE)
    before = terminal.getvalue()
    status.say("outside")
    assert terminal.getvalue() == before
