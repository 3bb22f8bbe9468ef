"""The line that says how a training run stands."""

import sys
from typing import Any

import pytest
import torch
from torch import nn

import fxdp
from fxdp.training import progress as module
from tests.test_status import Terminal

DELTA = 1e-5


def private_linear(noise_multiplier: float = 1.0) -> fxdp.PrivateModule:
    torch.manual_seed(0)
    return fxdp.compile(
        nn.Linear(3, 2),
        loss_fn=nn.CrossEntropyLoss(),
        max_grad_norm=1.0,
        backend="eager",
        noise_multiplier=noise_multiplier,
        expected_batch_size=4,
        accounting=fxdp.Accounting(sample_rate=0.1),
    )


def last_line(terminal: Terminal) -> str:
    """The line as it stood at the end."""
    return next(x for x in reversed(terminal.getvalue().splitlines()) if "epsilon" in x)


def run(private: fxdp.PrivateModule, sizes: list[int]) -> torch.Tensor:
    """A step for each size; the last loss."""
    loss = torch.zeros(())
    with fxdp.Progress(private, len(sizes), DELTA) as progress:
        for n in sizes:
            loss = private(10 * torch.ones(n, 3), torch.arange(n) % 2)
            loss.backward()
            progress.step(loss)
    return loss


def terminal_for(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error is a terminal; not a fixture, because pytest sets it anew after those."""
    found = Terminal()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    return found


def test_what_is_on_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    private = private_linear()
    loss = run(private, [4, 4])
    last = last_line(terminal)
    assert "2/2" in last
    assert f"epsilon {private.privacy_spent(DELTA):.3g} |" in last
    assert "at delta 1e-05" in last
    assert f"unprotected: loss {loss.item():.4g}, 100% clipped" in last


def test_an_empty_batch_and_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    run(private_linear(noise_multiplier=0.0), [4, 0])
    last = last_line(terminal)
    assert "epsilon inf |" in last
    assert "- clipped" in last


def test_nothing_is_written_or_worked_out_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    private = private_linear()
    monkeypatch.setattr(fxdp.PrivateModule, "privacy_spent", lambda *_: pytest.fail("asked"))
    run(private, [4, 4])
    assert capsys.readouterr() == ("", "")


def test_epsilon_is_asked_for_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: a hundred steps in 1.5 s, and a question that takes no time."""
    terminal, now, asked = terminal_for(monkeypatch), [0.0], list[float]()
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    private = private_linear()

    def spent(self: Any, delta: float) -> float:
        asked.append(now[0])
        return 1.0

    monkeypatch.setattr(fxdp.PrivateModule, "privacy_spent", spent)
    with fxdp.Progress(private, 100, DELTA) as progress:
        for _ in range(100):
            now[0] += 0.015
            progress.step(0.5)
    assert len(asked) == 3  # at first, after a second, and at the end
    assert terminal.getvalue().count("unprotected") < 30


def test_the_line_goes_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    progress = fxdp.Progress(private_linear(), 10, DELTA)

    def fail() -> None:
        with progress:
            progress.step(1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    before = terminal.getvalue()
    assert "\x1b[?25h" in before  # the cursor is back
    assert before.count("1/10") >= 1


@pytest.mark.parametrize(
    ("steps", "delta", "words"), [(0, DELTA, "total_steps"), (10, 0.0, "delta"), (10, 1.0, "delta")]
)
def test_bad_input(steps: int, delta: float, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        fxdp.Progress(private_linear(), steps, delta)
