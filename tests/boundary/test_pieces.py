"""A batch in pieces is one batch: to the state that a model writes, and to a loss's parameters."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.keywords import grouped

X, Y = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3


def compiled(model: nn.Module, **options: Any) -> fxdp.PrivateModule:
    given: dict[str, Any] = {
        "max_grad_norm": 0.1, "noise_multiplier": 0.0, "expected_batch_size": 7.0,
        "backend": "eager", "plan": "fixed",
    }  # fmt: skip
    return fxdp.compile(model, **grouped(given | options))


class Counts(nn.Module):
    """Counts its calls, in a buffer that is written to and in one that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(5, 3)
        self.register_buffer("written", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.written += 1
        self.replaced = self.replaced + 1
        return F.cross_entropy(self.fc(x) / (1 + self.written + self.replaced), y)


def state(private: fxdp.PrivateModule) -> tuple[float, float]:
    return float(private.written), float(private.replaced)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 3, None])
def test_state_is_written_once_a_batch(size: int | None) -> None:
    """From the state before it, so that all pieces see one state."""
    whole, private = compiled(Counts()), compiled(Counts(), microbatch_size=size)
    for step in (1, 2):
        for each in (whole, private):
            each.zero_grad()
            each(X, Y).backward()
        assert state(private) == state(whole) == (step, step)
        torch.testing.assert_close(private.fc.weight.grad, whole.fc.weight.grad)


def test_and_once_in_accumulate() -> None:
    whole, private = compiled(Counts()), compiled(Counts(), noise_multiplier=1e-9)
    for step in (1, 2):
        whole.zero_grad()
        whole(X, Y).backward()
        private.zero_grad()
        with private.accumulate():
            for x, y in zip(X.split(3), Y.split(3), strict=True):
                private(x, y).backward()
        assert state(private) == (step, step)
        torch.testing.assert_close(private.fc.weight.grad, whole.fc.weight.grad)


def test_a_look_writes_nothing() -> None:
    private = compiled(Counts())
    private.per_sample_norms(X, Y)
    private.per_sample_grads(X, Y)
    assert state(private) == (0, 0)


class Weighted(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.ones(3))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out * self.c, y)


@pytest.mark.parametrize("how", ["pieces", "accumulate", "correlated"])
def test_parameters_of_the_loss_train_in_pieces(how: str) -> None:
    def gradient(**options: Any) -> list[Tensor]:
        torch.manual_seed(0)
        model, loss = nn.Linear(5, 3), Weighted()
        private = compiled(model, loss_fn=loss, **options)
        if how == "accumulate" and options:
            with private.accumulate():
                for x, y in zip(X.split(3), Y.split(3), strict=True):
                    private(x, y).backward()
        else:
            private(X, Y).backward()
        assert private.releases == 1
        return [p.grad for p in (*model.parameters(), loss.c)]

    correlated: dict[str, Any] = {
        "noise": fxdp.noise.BandMF(bands=2), "noise_multiplier": 1e-9,
        "sample_rate": fxdp.privacy.CyclicPoisson(1.0, 2),
    }  # fmt: skip
    options = correlated if how == "correlated" else {"microbatch_size": 3}
    for got, want in zip(gradient(**options), gradient(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
