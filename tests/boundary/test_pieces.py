"""A batch in pieces is one batch: to the state that a model writes, and to a loss's parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.module import accumulation
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


class Fork(nn.Module):
    """Two ways, of which the second has no sample's gradient for a parameter of the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.first = nn.Linear(3, 4), nn.Linear(4, 2), True

    def forward(self, x: Tensor) -> Tensor:
        loss = self.body(x).square().mean(1)
        if self.first:
            return loss + self.head(self.body(x)).square().mean(1)
        return loss.mean() + self.head.weight.square().sum() + self.head.bias.square().sum()


def freeze(model: Fork) -> None:
    model.head.bias.requires_grad_(False)


def replace_one(model: Fork) -> None:
    model.head.bias = nn.Parameter(torch.zeros(2))


def other_way(model: Fork) -> None:
    model.first = False


def to_double(model: Fork) -> None:
    model.double()


class TestPiecesOfOneBatchTrainTheSame:
    """Noise comes with the last piece, to the parameters that it trains."""

    CHANGES = pytest.mark.parametrize("change", [freeze, replace_one, other_way, to_double])

    @staticmethod
    def private() -> tuple[Fork, fxdp.PrivateModule]:
        model = Fork()
        return model, fxdp.compile(
            model, max_grad_norm=0.5, noise_multiplier=1.0, expected_batch_size=4, backend="eager",
            microbatch_size=2,
        )  # fmt: skip

    @CHANGES
    @pytest.mark.parametrize("at", ["before the next call", "at the end"])
    def test_in_accumulate(self, change: Callable[[Fork], None], at: str) -> None:
        model, private = self.private()
        before = dict(model.named_parameters())

        def batch() -> None:
            with private.accumulate():
                private(torch.randn(2, 3)).backward()
                change(model)
                if at == "before the next call":
                    dtype = model.body.weight.dtype
                    private(torch.randn(2, 3, dtype=dtype)).backward()

        # What is left in float32 does not fit a model in float64, either.
        how: Any = {"match": "train other parameters"} if change is not to_double else {}
        of_torch = RuntimeError if change is to_double else fxdp.StepError  # in torch 2.11
        with pytest.raises((fxdp.StepError, fxdp.ProofError, of_torch), **how):
            batch()
        assert private.releases == 0
        assert all(p.grad is None for p in (*before.values(), *model.parameters()))

    @pytest.mark.parametrize("change", [freeze, replace_one])
    def test_within_one_call(
        self, change: Callable[[Fork], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever does it: another thread, or a hook."""
        model, private = self.private()
        before, true = dict(model.named_parameters()), accumulation.added
        monkeypatch.setattr(accumulation, "added", lambda *a: change(model) or true(*a))
        with pytest.raises(fxdp.StepError, match="train other parameters"):
            private(torch.randn(4, 3)).backward()
        assert private.releases == 0
        assert all(p.grad is None for p in (*before.values(), *model.parameters()))

    def test_between_batches_they_may_change(self) -> None:
        model, private = self.private()
        for change in (freeze, replace_one, other_way):
            private(torch.randn(4, 3)).backward()
            change(model)
        private(torch.randn(4, 3)).backward()
        assert private.releases == 4


class Task(nn.Module):
    """Of two ways, an attribute says which; and it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.task, self.calls = nn.Linear(5, 3), 0, 0
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return F.cross_entropy(self.fc(x) * (1 + self.task) * self.scale, y)


def test_what_the_caller_changes_within_a_batch_holds() -> None:
    """And what the model itself writes is still written once."""
    model, inner = Task(), Task()
    private = compiled(inner)
    want: dict[str, Tensor] = {}
    with private.accumulate():
        for k, (x, y) in enumerate(zip(X.split(3), Y.split(3), strict=True)):
            private(x, y).backward()
            alone = compiled(model, expected_batch_size=7.0)
            model.zero_grad()
            alone(x, y).backward()
            for name, p in model.named_parameters():
                want[name] = want.get(name, 0) + p.grad
            for each in (model, inner):
                each.task = k + 1
                each.scale.mul_(0.5)  # type: ignore[operator]
    assert (inner.task, inner.calls) == (3, 1)
    assert float(inner.scale) == 0.125  # type: ignore[arg-type]
    for name, grad in want.items():
        torch.testing.assert_close(private.get_parameter(name).grad, grad)
