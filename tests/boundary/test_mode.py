"""Privacy does not depend on the mode of a module, and plain gradients are asked for by name."""

import contextlib
import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.privacy.ledger import Ledger
from tests.keywords import grouped

X, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 3)
    )


def compiled(model: nn.Module, **options: Any) -> fxdp.PrivateModule:
    given: dict[str, Any] = {
        "loss_fn": F.cross_entropy, "max_grad_norm": 0.5, "noise_multiplier": 0.0,
        "expected_batch_size": 6.0, "backend": "eager", "plan": "fixed",
    }  # fmt: skip
    return fxdp.compile(model, **grouped(given | options))


def plain(model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(X), Y), list(model.parameters())))


def test_in_eval_mode_a_step_is_private() -> None:
    """As from_pretrained() returns a model; dropout is off, and batch norm has constants."""
    model = network().eval()
    private = compiled(model, max_grad_norm=1e6)
    private(X, Y).backward()
    assert private.releases == 1
    for p, g in zip(model.parameters(), plain(model), strict=True):
        torch.testing.assert_close(p.grad, g)
    private.zero_grad()
    private.max_grad_norm = 1e-3
    private(X, Y).backward()
    assert torch.cat([p.grad.flatten() for p in model.parameters()]).norm() <= 1e-3 + 1e-9


def test_one_compilation_a_mode() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3))
    private = compiled(model)
    for mode in (True, False, True, False):
        private.train(mode)
        private(X, Y).backward()
    assert private.releases == 4
    assert private._stepper.record.compilations == 2
    model[1].eval()  # a part of the model alone
    private(X, Y).backward()
    assert private.releases == 5


def test_a_validation_loop_that_forgets_to_switch_back() -> None:
    private = compiled(nn.Linear(5, 3), noise_multiplier=2.0, budget=(1.0, 1e-5))

    def train(steps: int) -> None:
        for _ in range(steps):
            private.zero_grad()
            private(X, Y).backward()
            private.eval()
            with torch.no_grad():
                private(X)

    with pytest.raises(fxdp.BudgetExhausted):
        train(50)
    assert all(p.grad is None for p in private.parameters())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_the_model(context: Any) -> None:
    model = network()
    private = compiled(model.eval())
    with context():
        assert torch.equal(private(X), model(X))
    assert private.releases == 0


def test_a_model_that_asks_for_gradients_by_itself_gives_none() -> None:
    class Asks(nn.Linear):
        @torch.enable_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    private = compiled(Asks(5, 3))
    with torch.no_grad():
        assert not private(X).requires_grad


def test_a_checkpoint_in_eval_mode(tmp_path: Path) -> None:
    def made() -> fxdp.PrivateModule:
        return compiled(nn.Linear(5, 3).eval(), noise_multiplier=1.0)

    private = made()
    private(X, Y).backward()
    fxdp.save_checkpoint(tmp_path / "run", private)
    other = made()
    fxdp.load_checkpoint(tmp_path / "run", other)
    assert not other.training
    found = []
    for each in (private, other):
        each.zero_grad()
        each(X, Y).backward()
        found.append([p.grad for p in each.parameters()])
        assert each.releases == 2
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class TestUnprotected:
    """Each line of the table in `fxdp.unprotected`."""

    def test_plain_gradients_are_noted(self) -> None:
        model = nn.Linear(5, 3)
        private = compiled(model, noise_multiplier=1.0)
        with fxdp.unprotected(private):
            loss = private(X, Y)
        loss.backward()
        assert all(
            torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain(model), strict=True)
        )
        assert (private.releases, private.ledger.unprotected) == (0, 1)
        private.zero_grad()
        private(X, Y).backward()
        assert private.releases == 1
        assert "plain gradients" in private.privacy_statement(1e-5)
        assert any("plain gradients" in a.what for a in private.certificate().assumptions)

    def test_the_note_is_kept(self) -> None:
        private = compiled(nn.Linear(5, 3))
        before = private.privacy_state_dict()
        for _ in range(2):
            with fxdp.unprotected(private), fxdp.unprotected(private):
                pass
        read = Ledger()
        read.load_state_dict(private.ledger.state_dict())
        assert read.unprotected == copy.deepcopy(private).ledger.unprotected == 4
        assert (read + read).unprotected == 8
        assert "unprotected" not in before["ledger"]

    def test_others_stay_private_and_so_does_what_follows(self) -> None:
        one, other = compiled(nn.Linear(5, 3)), compiled(nn.Linear(5, 3))
        with contextlib.suppress(KeyError), fxdp.unprotected(one):
            other(X, Y).backward()
            raise KeyError
        one(X, Y).backward()
        assert (one.releases, other.releases) == (1, 1)

    @pytest.mark.parametrize("door", ["compile", "torch.compile"])
    def test_other_threads_stay_private(self, door: str) -> None:
        model = nn.Linear(5, 3)
        options: dict[str, Any] = {"max_grad_norm": 1.0, "noise_multiplier": 1e4,
                                   "expected_batch_size": 6.0, "backend": "eager"}  # fmt: skip
        step: Any = (
            fxdp.compile(model, loss_fn=F.cross_entropy, **grouped(options))
            if door == "compile"
            else torch.compile(
                lambda x, y: F.cross_entropy(model(x), y), backend="fxdp", options=options
            )
        )
        account = step if door == "compile" else step.privacy
        step(X, Y).backward()
        model.zero_grad()
        with fxdp.unprotected(step):
            other = threading.Thread(target=lambda: step(X, Y).backward())
            other.start()
            other.join()
            assert model.weight.grad is not None
            assert model.weight.grad.std() > 100
            assert (account.releases, account.unprotected) == (2, 1)

    def test_nothing_else_was_done(self) -> None:
        private = compiled(nn.Linear(5, 3))
        with fxdp.unprotected(private):
            pass
        assert "once, by fxdp.unprotected" in private.privacy_statement(1e-5)

    def test_a_step_of_torch_compile(self) -> None:
        model = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))
        step: Any = torch.compile(
            lambda x: model(x).square().mean(), backend="fxdp",
            options={"max_grad_norm": 1e-3, "noise_multiplier": 0.0, "expected_batch_size": 6.0,
                     "backend": "eager", "plan": "fixed"},
        )  # fmt: skip
        with fxdp.unprotected(step):
            step(X).backward()
        want = torch.autograd.grad(model(X).square().mean(), model[0].weight)[0]
        assert torch.equal(model[0].weight.grad, want)
        assert step.privacy.ledger.unprotected == 1
        model.zero_grad()
        with pytest.raises(fxdp.StepError, match="unprotected"):
            model(X).square().mean().backward()
        assert model[0].weight.grad is None

    def test_what_is_no_private_step(self) -> None:
        with pytest.raises(TypeError, match="not a Linear"), fxdp.unprotected(nn.Linear(2, 2)):
            pass
