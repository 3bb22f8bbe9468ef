"""Little noise: epsilon is large, is still an upper bound, and no grid grows out of the memory."""

import math
from collections import Counter

import dp_accounting
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from fxdp.privacy import Ledger, Poisson, TruncatedPoisson, epsilon, statement
from fxdp.privacy.accounting import (
    NEGLIGIBLE,
    Accountant,
    Neighbours,
    compose,
    epsilon_of,
    epsilon_of_known_batches,
    with_more,
)
from fxdp.privacy.grid import COARSEST, FINEST, interval
from fxdp.privacy.release import GaussianRelease, Mechanism
from fxdp.privacy.sampling_rule import Sampling

DELTA = 1e-5


def exactly(sigma: float, rate: float) -> float:
    """Epsilon of one Gaussian on a Poisson batch, in closed form.

    If removal mixes N(1) with N(0), the larger of both directions, then delta(epsilon) is
    rate * delta of the Gaussian at log(1 + (exp(epsilon) - 1) / rate) (Li, Qardaji, Su 2012).
    """
    if rate <= DELTA:
        return 0.0
    whole = dp_accounting.get_epsilon_gaussian(sigma, DELTA / rate)
    if whole > 600:  # the exponential would overflow, and what is left out is below 1e-200
        return whole + math.log(rate)
    return math.log1p(rate * math.expm1(whole))


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.01, 1e-4])
@pytest.mark.parametrize("sigma", [0.7, 0.1, 0.02, 0.003, 0.001, 1e-5])
def test_one_step_is_bounded_from_above_and_closely(sigma: float, rate: float) -> None:
    exact = exactly(sigma, rate)
    # Above 700 dp-accounting bounds delta by the probability of a larger loss: 1 more or so.
    assert exact <= epsilon(sigma, rate, 1, DELTA) <= exact * (1 + 1e-3) + 1e-3


@pytest.mark.parametrize("sigma", [0.1, 0.001, 1e-5])
@pytest.mark.parametrize("steps", [1, 10_000])
def test_no_sampling_is_the_gaussian_mechanism(sigma: float, steps: int) -> None:
    exact = dp_accounting.get_epsilon_gaussian(sigma / math.sqrt(steps), DELTA)
    for rate in (None, 1.0):
        found = epsilon(sigma, rate, steps, DELTA)
        assert exact <= found <= exact * (1 + 1e-3)
    replaced = epsilon(2 * sigma, None, steps, DELTA, neighbours="replace-one")
    assert exact <= replaced <= exact * (1 + 1e-3)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(0.05, 0.01, 10_000), (0.2, 0.1, 300)])
def test_many_steps_lie_above_an_estimate_from_below(sigma: float, rate: float, steps: int) -> None:
    # The same composition with losses rounded down, which is a lower bound of the truth.
    below = pld.from_gaussian_mechanism(
        sigma, value_discretization_interval=0.02, sampling_prob=rate, pessimistic_estimate=False
    ).self_compose(steps)
    found = epsilon(sigma, rate, steps, DELTA)
    assert below.get_epsilon_for_delta(DELTA) <= found
    assert found <= epsilon(sigma, rate, steps, DELTA, "rdp")


@pytest.mark.parametrize(
    ("sampling", "neighbours"),
    [
        (TruncatedPoisson(0.1, 1000, 120), "add-or-remove-one"),
        (TruncatedPoisson(0.1, 1000, 120), "replace-one"),
        (Poisson(0.1), "replace-one"),
        (None, "replace-one"),
    ],
)
@pytest.mark.parametrize("sigma", [0.05, 0.001, 1e-5])
def test_other_ways_to_draw(sampling: Sampling, neighbours: Neighbours, sigma: float) -> None:
    spent = epsilon(sigma, sampling, 100, DELTA, neighbours=neighbours)
    known = epsilon_of_known_batches({Mechanism(sigma, sampling): 100}, DELTA, neighbours)
    assert 100 < spent <= known * (1 + 1e-3)
    assert spent <= epsilon(sigma / 2, sampling, 100, DELTA, neighbours=neighbours)


@pytest.mark.parametrize("rate", [None, 0.3, 0.01])
def test_less_noise_and_more_steps_cost_more_from_grid_to_grid(rate: float | None) -> None:
    noise = [2.0**-k for k in range(0, 18, 4)]
    spent = [epsilon(sigma, rate, 5, DELTA) for sigma in noise]
    assert spent == sorted(spent)
    tallies = [{Mechanism(sigma, rate and Poisson(rate)): 5} for sigma in noise]
    grids = [interval(tally, "add-or-remove-one") for tally in tallies]
    assert grids == sorted(grids)
    assert grids[0] == FINEST
    counts = [epsilon(0.2, rate, 10**k, DELTA) for k in range(0, 7, 3)]
    assert counts == sorted(counts)


def test_the_usual_is_as_it_was() -> None:
    for sigma, rate, steps in ((1.0, 0.01, 10_000), (2.5, 0.17, 240), (0.7, 0.1, 100)):
        assert interval({Mechanism(sigma, Poisson(rate)): steps}, "add-or-remove-one") == FINEST


def test_parts_meet_on_the_grid_of_the_whole() -> None:
    quiet, loud = Mechanism(2.0, Poisson(0.05)), Mechanism(0.01, Poisson(0.05))
    for first, second in ((quiet, loud), (loud, quiet)):
        whole = compose({quiet: 20, loud: 2}, "pld", "add-or-remove-one")
        part = compose({first: 20 if first == quiet else 2}, "pld", "add-or-remove-one")
        before = epsilon_of(part, DELTA)
        parts = with_more(part, {second: 20 if second == quiet else 2})
        assert epsilon_of(parts, DELTA) == pytest.approx(epsilon_of(whole, DELTA), rel=1e-6)
        assert epsilon_of(part, DELTA) == before


def test_beyond_every_grid_the_bound_is_that_of_known_batches_and_a_little() -> None:
    tally = Counter({Mechanism(1e-5, Poisson(0.5)): 10_000, Mechanism(1.0, None): 3})
    assert interval(tally, "add-or-remove-one") > COARSEST
    found = epsilon_of(compose(tally, "pld", "add-or-remove-one"), DELTA)
    known = epsilon_of_known_batches(tally, DELTA, "add-or-remove-one")
    assert known <= found <= known * (1 + 1e-3)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("sigma", [NEGLIGIBLE / 2, 1e-160, 5e-324])
def test_noise_below_all_measure_is_none(accountant: Accountant, sigma: float) -> None:
    # By RDP, epsilon of 1e-160 came out as 0: infinity less infinity was taken for nothing.
    for rate in (None, 0.01):
        assert epsilon(sigma, rate, 10, DELTA, accountant) == math.inf
        assert epsilon(sigma, rate, 0, DELTA, accountant) == 0
    assert epsilon_of_known_batches({Mechanism(sigma, None): 1}, 0.1, "replace-one") == math.inf
    ledger = Ledger(accountant)
    ledger.record(GaussianRelease(sigma, Poisson(0.01), 1.0))
    assert "epsilon = inf" in statement(ledger, DELTA)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_least_noise_that_counts(accountant: Accountant) -> None:
    for rate in (None, 0.01):
        found = epsilon(NEGLIGIBLE, rate, 2**31, DELTA, accountant)
        assert dp_accounting.get_epsilon_gaussian(NEGLIGIBLE, 0.5) < found < math.inf
