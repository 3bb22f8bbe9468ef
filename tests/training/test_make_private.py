"""One call from an ordinary loop to a private one."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import fxdp
from fxdp.data import FixedSizeSampler
from fxdp.privacy import FixedSize, Poisson
from tests.keywords import faster

N, BATCH, EPOCHS, DELTA = 60, 12, 2, 1e-5
DATA = TensorDataset(torch.randn(N, 4, generator=torch.manual_seed(0)), torch.arange(N) % 3)


def made(**options: Any) -> tuple[fxdp.PrivateModule, torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = options.pop("model", None) or nn.Linear(4, 3)
    optimizer = options.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.5)
    loader = options.pop("loader", None) or DataLoader(DATA, BATCH, shuffle=True)
    given = {
        "epsilon": 3.0, "delta": DELTA, "epochs": EPOCHS, "max_grad_norm": 1.0,
        "accountant": "rdp", "backend": "eager",
    }  # fmt: skip
    return fxdp.make_private(model, optimizer, loader, F.cross_entropy, **faster(given | options))


def trained(private: fxdp.PrivateModule, optimizer: Any, loader: Any, epochs: int) -> None:
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            private(x, y).backward()
            optimizer.step()


class TestGuarantees:
    """Each line of `make_private`'s docstring."""

    def test_all_steps_fit_the_budget_and_no_more(self) -> None:
        private, optimizer, loader = made()
        trained(private, optimizer, loader, EPOCHS)
        assert private.releases == EPOCHS * N // BATCH
        assert 2.99 < private.privacy_spent(DELTA) <= 3.0
        before = [p.clone() for p in private.parameters()]
        with pytest.raises(fxdp.BudgetExhausted):
            trained(private, optimizer, loader, 1)
        for p, was in zip(private.parameters(), before, strict=True):
            assert torch.equal(p, was)

    def test_a_noise_multiplier_refuses_nothing(self) -> None:
        private, optimizer, loader = made(epsilon=None, noise_multiplier=0.7)
        trained(private, optimizer, loader, EPOCHS + 1)
        assert private.noise_multiplier == 0.7
        assert private.privacy_spent(DELTA) > 3.0

    def test_what_the_sampler_says_is_what_is_accounted_for(self) -> None:
        private, _, loader = made()
        assert private.expected_batch_size == BATCH
        assert private._account.sampling == loader.batches.sampling == Poisson(BATCH / N)
        sampler = FixedSizeSampler(N, BATCH, steps=5)
        private, optimizer, loader = made(sampler=sampler, neighbours="replace-one")
        assert private._account.sampling == FixedSize(N, BATCH)
        trained(private, optimizer, loader, EPOCHS)
        assert private.privacy_spent(DELTA) <= 3.0

    @pytest.mark.parametrize("options", [{"noise_multiplier": 1.0}, {"epsilon": None}])
    def test_both_or_none(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="one of them, and not both"):
            made(**options)

    def test_a_parameter_that_the_optimizer_lacks(self) -> None:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD([model.bias], lr=1.0)
        with pytest.raises(ValueError, match="the optimizer lacks weight"):
            made(model=model, optimizer=optimizer)
        model.weight.requires_grad_(False)
        made(model=model, optimizer=optimizer)

    def test_a_parameter_of_another_model(self) -> None:
        optimizer = torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=1.0)
        with pytest.raises(ValueError, match="not the model's"):
            made(optimizer=optimizer)

    def test_a_loader_that_draws_in_its_own_way(self) -> None:
        loader = DataLoader(DATA, BATCH, sampler=RandomSampler(DATA, replacement=True))
        with pytest.raises(ValueError, match="RandomSampler"):
            made(loader=loader)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
        lambda ps: torch.optim.Adam(ps, lr=0.01, foreach=True),
        lambda ps: torch.optim.SGD([{"params": [p], "lr": 0.1 * i} for i, p in enumerate(ps)]),
    ],
    ids=["fused", "foreach", "groups"],
)
def test_any_optimizer_and_a_schedule(make: Any) -> None:
    model = nn.Linear(4, 3)
    optimizer = make(list(model.parameters()))
    private, optimizer, loader = made(model=model, optimizer=optimizer, microbatch_size=5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before = model.bias.clone()
    trained(private, optimizer, loader, 1)
    schedule.step()
    assert not torch.equal(before, model.bias)


def test_it_learns() -> None:
    """With a generous budget, what is easy is learnt."""
    torch.manual_seed(0)
    y = torch.arange(600) % 3
    data = TensorDataset(torch.eye(4)[y] * 2 + 0.1 * torch.randn(600, 4), y)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    parts = made(
        model=model, optimizer=optimizer, loader=DataLoader(data, 60), epsilon=8.0, epochs=3
    )
    trained(*parts, 3)
    assert (model(data.tensors[0]).argmax(1) == y).float().mean() > 0.9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs must be"),
        ({"delta": 0.0}, "delta must be"),
        ({"epsilon": -1.0}, "epsilon must be"),
        ({"loader": DATA}, "sample_rate must be given"),
    ],
)
def test_bad_input(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        made(**options)


def test_a_large_delta_is_warned_of() -> None:
    with pytest.warns(fxdp.privacy.DeltaWarning, match="one over the number of samples"):
        made(delta=0.1)
