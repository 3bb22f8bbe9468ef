"""What is released is counted, by the step itself, and refused where it costs too much."""

import copy
import gc
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.privacy import Budget, GaussianRelease, Poisson
from tests.keywords import grouped

X, Y = torch.randn(8, 4, generator=torch.manual_seed(0)), torch.arange(8) % 3
RATE, SIGMA = 0.1, 1.5


def private_of(**options: object) -> fxdp.PrivateModule:
    torch.manual_seed(0)
    given = {
        "loss_fn": F.cross_entropy, "max_grad_norm": 0.5, "noise_multiplier": SIGMA,
        "expected_batch_size": 8.0, "backend": "eager", "sample_rate": RATE, "accountant": "rdp",
    }  # fmt: skip
    return fxdp.compile(nn.Linear(4, 3), **grouped(given | options))


def gradients(private: fxdp.PrivateModule) -> list[Tensor | None]:
    return [p.grad for p in private.parameters()]


class TestGuarantees:
    """Each line of the table in `fxdp.module.account.Account`."""

    def test_a_backward_pass_is_a_release(self) -> None:
        private = private_of()
        for _ in range(3):
            private(X, Y).backward()
        assert private.releases == 3
        (run,) = private.ledger.runs
        assert (run.release, run.count) == (GaussianRelease(SIGMA, Poisson(RATE), 0.5), 3)
        wanted = fxdp.privacy.epsilon(SIGMA, RATE, 3, 1e-5, "rdp")
        assert private.privacy_spent(1e-5) == wanted

    def test_the_budget_is_asked_before(self) -> None:
        three = fxdp.privacy.epsilon(SIGMA, RATE, 3, 1e-5, "rdp")
        private = private_of(budget=(three, 1e-5))
        for _ in range(3):
            private.zero_grad()
            private(X, Y).backward()
        private.zero_grad()
        loss = private(X, Y)
        state = torch.random.get_rng_state()
        with pytest.raises(fxdp.BudgetExhausted):
            loss.backward()
        assert gradients(private) == [None, None]
        assert private.releases == 3
        assert private.privacy_spent(1e-5) == three
        assert torch.equal(state, torch.random.get_rng_state())  # no noise was drawn

    def test_a_failed_backward_pass_is_no_release(self, monkeypatch: pytest.MonkeyPatch) -> None:
        private = private_of()
        private(X, Y).backward()
        private.zero_grad()

        def fail(*args: object, **kwargs: object) -> Tensor:
            raise MemoryError

        loss = private(X, Y)
        loss.register_hook(fail)  # a hook of the user's, on the way to the release
        with pytest.raises(MemoryError):
            loss.backward()
        assert gradients(private) == [None, None]
        assert private.releases == 1

    def test_a_forgotten_backward_pass_is_an_error(self) -> None:
        private = private_of()
        loss = private(X, Y)
        with pytest.raises(fxdp.StepError, match=r"loss\.backward\(\) was not called"):
            private(X, Y)
        assert private.releases == 0
        loss.backward()
        assert private.releases == 1
        private(X, Y).backward()
        assert private.releases == 2

    def test_a_deleted_loss_is_forgotten(self) -> None:
        private = private_of()
        loss = private(X, Y)
        del loss
        gc.collect()
        private(X, Y).backward()
        assert private.releases == 1

    def test_a_graph_is_not_kept_for_a_second_pass(self) -> None:
        private = private_of()
        loss = private(X, Y)
        loss.backward(retain_graph=True)
        before = [g.clone() for g in gradients(private) if g is not None]
        with pytest.raises(fxdp.StepError, match="release again"):
            loss.backward()
        assert private.releases == 1
        assert all(torch.equal(*pair) for pair in zip(gradients(private), before, strict=True))


def test_what_is_set_between_steps_is_recorded() -> None:
    """As it was when the loss was made, not as it is when the gradient is."""
    private = private_of()
    loss = private(X, Y)
    private.noise_multiplier, private.max_grad_norm = 9.0, 0.1
    loss.backward()
    private(X, Y).backward()
    found = [(r.release.noise_multiplier, r.release.max_grad_norm) for r in private.ledger.runs]
    assert found == [(SIGMA, 0.5), (9.0, 0.1)]


def test_without_noise_nothing_is_private() -> None:
    private = private_of(noise_multiplier=0.0, max_grad_norm=math.inf)
    private(X, Y).backward()
    assert private.privacy_spent(1e-5) == math.inf
    with pytest.raises(fxdp.BudgetExhausted):
        private_of(noise_multiplier=0.0, budget=Budget(9.0, 1e-5))(X, Y).backward()


def test_looking_costs_nothing() -> None:
    private = private_of()
    private.per_sample_norms(X, Y)
    private.per_sample_grads(X, Y)
    private.certificate(X, Y)
    private.eval()
    private(X, Y)
    assert private.releases == 0


def test_no_rate_amplifies_nothing() -> None:
    spent = []
    for rate in (RATE, None):
        private = private_of(sample_rate=rate)
        private(X, Y).backward()
        spent.append(private.privacy_spent(1e-5))
    assert spent[0] < spent[1]


def test_a_copy_has_spent_as_much() -> None:
    private = private_of()
    private(X, Y).backward()
    twin = copy.deepcopy(private)
    twin(X, Y).backward()
    assert (private.releases, twin.releases) == (1, 2)


def test_a_statement() -> None:
    private = private_of()
    private(X, Y).backward()
    assert "1.5" in private.privacy_statement(1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 3.0}, "budget must be"),
        ({"budget": (0.0, 1e-5)}, "epsilon must be"),
        ({"budget": (1.0, 1.0)}, "delta must be"),
        ({"sample_rate": 1.5}, "sample_rate must be"),
        ({"accountant": "gdp"}, "accountant must be"),
        ({"neighbours": "any"}, "neighbours must be"),
        ({"neighbours": "replace-one"}, "pass accountant='pld'"),
    ],
)
def test_bad_input(options: dict[str, object], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        private_of(**options)


class TestState:
    """What was spent survives the process, and is not forgotten."""

    def test_a_resumed_run_has_spent_as_much(self, tmp_path: Path) -> None:
        private = private_of()
        for _ in range(2):
            private(X, Y).backward()
        path = tmp_path / "run.pt"
        torch.save({"model": private.state_dict(), "privacy": private.privacy_state_dict()}, path)
        state = torch.load(path, weights_only=True)
        assert list(state["model"]) == ["weight", "bias"]
        resumed = private_of()
        resumed.load_state_dict(state["model"])
        resumed.load_privacy_state_dict(state["privacy"])
        for each in (private, resumed):
            each(X, Y).backward()
        assert private.releases == resumed.releases == 3
        assert private.privacy_spent(1e-5) == resumed.privacy_spent(1e-5)

    def test_releases_are_not_forgotten(self) -> None:
        private = private_of()
        fresh = private.privacy_state_dict()
        private(X, Y).backward()
        with pytest.raises(fxdp.StepError, match="would forget"):
            private.load_privacy_state_dict(fresh)
        assert private.releases == 1

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"version": 1}, "version 2"),
            ({"ledger": {}}, "ledger"),
            ({"more": 1}, "must have a ledger"),
        ],
    )
    def test_malformed_state(self, change: dict[str, object], words: str) -> None:
        private = private_of()
        state = private.privacy_state_dict() | change
        with pytest.raises(ValueError, match=words):
            private.load_privacy_state_dict(state)
        assert private.releases == 0

    def test_state_of_another_accountant(self) -> None:
        other = private_of(accountant="pld")
        with pytest.raises(ValueError, match="accountant is 'pld'"):
            private_of().load_privacy_state_dict(other.privacy_state_dict())
