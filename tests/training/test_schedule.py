"""Scales that change from step to step."""

import pytest
import torch
from torch import Tensor, nn

import fxdp
from tests.keywords import grouped


class Square(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().sum(1)


X = torch.randn(4, 3, generator=torch.manual_seed(0))


def private_of(**options: object) -> fxdp.PrivateModule:
    given = {"max_grad_norm": 2.0, "noise_multiplier": 4.0, "expected_batch_size": 4}
    return fxdp.compile(Square(3, 2), backend="eager", **grouped(given | options))


def halved(step: int) -> float:
    return 0.5**step


def test_clip_noise_and_ledger_move_together() -> None:
    private = private_of()
    scheduler = fxdp.ScaleScheduler(private, noise_multiplier=halved, max_grad_norm=lambda s: 1 + s)
    planned = scheduler.planned(3)
    for step in range(3):
        assert (private.max_grad_norm, private.noise_multiplier) == (
            2.0 * (1 + step),
            4.0 / 2**step,
        )
        private(X).backward()
        scheduler.step()
    scales = [(r.release.max_grad_norm, r.release.noise_multiplier) for r in private.ledger.runs]
    assert scales == [(2.0, 4.0), (4.0, 2.0), (6.0, 1.0)]
    assert planned.state_dict() == private.ledger.state_dict()
    assert planned.spent(1e-5) == private.privacy_spent(1e-5)


def test_the_noise_is_that_of_the_step() -> None:
    """2000 steps of 8 numbers at most; the standard error of the deviation is 2.5 %."""
    private = private_of()
    scheduler = fxdp.ScaleScheduler(private, noise_multiplier=lambda s: 0.25 if s >= 5 else 1.0)
    for _ in range(5):
        private(X).backward()
        scheduler.step()
    drawn = []
    for _ in range(100):
        private.zero_grad()
        private(X[:0]).backward()
        scheduler.step()
        drawn += [p.grad.flatten() for p in private.parameters()]
    assert torch.cat(drawn).std().item() == pytest.approx(1.0 * 2 / 4, rel=0.15)


def test_it_counts_releases_and_not_calls() -> None:
    private = private_of()
    scheduler = fxdp.ScaleScheduler(private, noise_multiplier=halved)
    for _ in range(3):
        scheduler.step()
    assert private.noise_multiplier == 4.0
    private(X).backward()
    private(X).backward()
    scheduler.step()
    assert private.noise_multiplier == 1.0


def test_a_logical_batch_keeps_its_scales() -> None:
    private = private_of()
    scheduler = fxdp.ScaleScheduler(private, max_grad_norm=lambda s: 1 / (1 + s))
    with private.accumulate():
        private(X).backward()
        scheduler.step()
        private(X).backward()
    scheduler.step()
    assert private.ledger.runs[0].release.max_grad_norm == 2.0
    assert private.max_grad_norm == 1.0


def test_a_factor_that_gives_no_scale() -> None:
    private = private_of()
    scheduler = fxdp.ScaleScheduler(private, max_grad_norm=lambda s: 1.0 - s)
    private(X).backward()
    with pytest.raises(ValueError, match="max_grad_norm must be above 0"):
        scheduler.step()
    assert private.max_grad_norm == 2.0


def test_a_bound_that_moves_by_itself() -> None:
    with pytest.raises(ValueError, match="clipping is adaptive"):
        fxdp.ScaleScheduler(private_of(clipping="adaptive"), max_grad_norm=halved)


def test_a_run_that_goes_on() -> None:
    """Made before the checkpoint is loaded it goes on; after, it would scale what is scaled."""
    first = private_of()
    scheduler = fxdp.ScaleScheduler(first, noise_multiplier=halved)
    first(X).backward()
    scheduler.step()
    again = private_of()
    scheduler = fxdp.ScaleScheduler(again, noise_multiplier=halved)
    again.load_privacy_state_dict(first.privacy_state_dict())
    scheduler.step()
    assert again.noise_multiplier == first.noise_multiplier == 2.0
    with pytest.raises(fxdp.StepError, match="before load_checkpoint"):
        fxdp.ScaleScheduler(again, noise_multiplier=halved)
