"""Adaptive clipping: the bound follows a quantile, and the count is paid for."""

import math

import pytest
import torch
from torch import Tensor, nn

import fxdp
from fxdp.mechanism.clipping import Adaptive
from fxdp.privacy.release import CountedRelease, together
from tests.keywords import grouped


class Square(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().sum(1)


X = torch.randn(64, 3, generator=torch.manual_seed(0))


def private_of(clipping: Adaptive, sigma: float = 1.0, **options: object) -> fxdp.PrivateModule:
    torch.manual_seed(0)
    return fxdp.compile(
        Square(3, 2),
        max_grad_norm=0.1,
        noise_multiplier=sigma,
        expected_batch_size=64,
        backend="eager",
        clipping=clipping,
        **grouped(options),
    )


def step(private: fxdp.PrivateModule, x: Tensor = X) -> float:
    private(x).backward()
    return private.max_grad_norm


def test_without_noise_it_is_the_rule_of_the_paper() -> None:
    """C <- C exp(-eta (share below C - gamma)), the share being one of the expected size."""
    private = private_of(Adaptive(0.7, 0.3), sigma=0.0)
    for rows in (64, 10, 0, 1):
        norms, bound = private.per_sample_norms(X[:rows]), private.max_grad_norm
        share = float((norms <= bound).sum() - rows / 2) / 64 + 0.5
        assert step(private, X[:rows]) == pytest.approx(bound * math.exp(-0.3 * (share - 0.7)))


def test_the_bound_finds_the_quantile() -> None:
    private = private_of(Adaptive(0.5, 0.3, unclipped_num_std=1.0))
    for _ in range(60):
        step(private)
    median = float(private.per_sample_norms(X).median())
    assert private.max_grad_norm == pytest.approx(median, rel=0.2)


@pytest.mark.parametrize("secure", [False, True])
def test_the_count_has_the_noise_that_is_paid_for(secure: bool) -> None:
    """Of 400 counts of empty batches; the standard error of their deviation is 3.5 %."""
    private = private_of(Adaptive(0.5, 1.0, unclipped_num_std=6.0), secure=secure)
    moved = []
    for _ in range(400):
        private.max_grad_norm = 1.0
        moved.append(-math.log(step(private, X[:0])) * 64)
    assert torch.tensor(moved).std().item() == pytest.approx(6.0, rel=0.25)
    assert abs(sum(moved) / 400) < 6.0 * 5 / 20


def test_sum_and_count_together_have_the_noise_that_was_asked_for() -> None:
    private = private_of(Adaptive(unclipped_num_std=4.0), sigma=1.5)
    step(private)
    (run,) = private.ledger.runs
    assert isinstance(run.release, CountedRelease)
    assert run.release.count_noise == 4.0
    assert run.release.max_grad_norm == 0.1
    assert run.release.noise_multiplier > 1.5
    assert together(run.release.noise_multiplier, 4.0) == pytest.approx(1.5, rel=1e-12)
    assert private.privacy_spent(1e-5) == pytest.approx(
        fxdp.privacy.epsilon(1.5, None, 1, 1e-5), rel=1e-3
    )


def test_the_sum_has_the_noise_that_is_recorded() -> None:
    """A count with little noise leaves more of it for the sum: 1 / sqrt(1 - 1 / 1.1^2) = 2.4."""
    private = private_of(Adaptive(unclipped_num_std=0.55))
    drawn = []
    for _ in range(200):
        private.zero_grad()
        private.max_grad_norm = 0.1
        step(private, X[:0])
        drawn += [p.grad.flatten() for p in private.parameters()]
    wanted = 0.1 / 64 / math.sqrt(1 - 1 / 1.1**2)
    # 1600 numbers: the standard error of their deviation is 1.8 %.
    assert torch.cat(drawn).std().item() == pytest.approx(wanted, rel=0.1)


def test_the_default_noise_of_the_count() -> None:
    """A twentieth of the expected batch size."""
    assert Adaptive().count_noise(64) == 3.2


def test_the_bound_stays_in_its_range() -> None:
    high = private_of(Adaptive(1.0, 5.0, max_clipbound=0.2), sigma=0.0)
    assert [step(high, X[:0]) for _ in range(2)] == [0.2, 0.2]
    low = private_of(Adaptive(0.0, 5.0, min_clipbound=0.05), sigma=0.0)
    assert [step(low, X[:0]) for _ in range(2)] == [0.05, 0.05]


def test_an_infinite_gradient_counts_as_clipped() -> None:
    x = X[:4].clone()
    x[0] = math.inf
    private = private_of(Adaptive(0.5, 1.0, max_clipbound=1e8), sigma=0.0)
    private.max_grad_norm = 1e6
    assert step(private, x) == pytest.approx(1e6 * math.exp(-((3 - 1) / 2 / 64)))


def test_pieces_count_as_one() -> None:
    whole, pieces, calls = (private_of(Adaptive(), sigma=0.0) for _ in range(3))
    pieces.microbatch_size = 24
    wanted = step(whole)
    assert step(pieces) == wanted
    with calls.accumulate():
        for part in X.split(24):
            calls(part).backward()
            assert calls.max_grad_norm == 0.1
    assert calls.max_grad_norm == wanted


def test_a_step_that_is_refused_moves_nothing() -> None:
    private = private_of(Adaptive(), budget=(0.1, 1e-5))
    with pytest.raises(fxdp.BudgetExhausted):
        step(private)
    assert private.max_grad_norm == 0.1


def test_a_count_that_costs_more_than_both_may() -> None:
    with pytest.raises(
        ValueError, match=r"unclipped_num_std .* must be above noise_multiplier / 2"
    ):
        step(private_of(Adaptive(unclipped_num_std=0.4)))


def test_the_other_door() -> None:
    options = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "expected_batch_size": 8}
    with pytest.raises(ValueError, match=r"needs fxdp\.compile"):
        torch.compile(Square(3, 2), backend="fxdp", options=options | {"clipping": "adaptive"})
