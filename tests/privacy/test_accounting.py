"""The account of a run: published values, and the two tables of edge cases line by line."""

import logging
import math

import dp_accounting
import pytest
from dp_accounting import pld

from fxdp.privacy.accounting import Accountant, epsilon, noise_multiplier_for

ACCOUNTANTS: list[Accountant] = ["pld", "rdp"]


def test_three_noisy_steps_against_dp_accountings_own_test() -> None:
    # Its test of the PLD accountant: Gaussian 0.5, Poisson 0.2, three times: delta 0.15594.
    assert epsilon(0.5, 0.2, 3, delta=0.15594, accountant="pld") == pytest.approx(1, abs=1e-3)


def test_a_long_run_against_jax_privacys_docstring() -> None:
    assert epsilon(3, 0.1, 512, delta=1e-6, accountant="pld") == pytest.approx(3.77, abs=5e-3)
    assert noise_multiplier_for(1, 1e-6, 0.1, 512, "pld") == pytest.approx(9.66, abs=5e-3)


def test_rdp_is_the_default_and_an_upper_bound_of_pld() -> None:
    tight = epsilon(3, 0.1, 512, 1e-6, accountant="pld")
    loose = epsilon(3, 0.1, 512, 1e-6, accountant="rdp")
    assert epsilon(3, 0.1, 512, 1e-6) == loose == pytest.approx(4.05097, abs=1e-4)
    assert tight < loose


# Not ("pld", 4.0): it holds too, and takes ten seconds.
@pytest.mark.parametrize(("accountant", "budget"), [("pld", 0.5), ("rdp", 0.5), ("rdp", 4.0)])
def test_calibrated_noise_stays_within_the_budget_and_wastes_none(
    accountant: Accountant, budget: float
) -> None:
    sigma = noise_multiplier_for(budget, 1e-5, 0.05, 100, accountant)
    assert epsilon(sigma, 0.05, 100, 1e-5, accountant) <= budget
    assert epsilon(sigma - 1e-3, 0.05, 100, 1e-5, accountant) > budget


def test_dp_accounting_does_not_log_the_orders_that_it_leaves_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    epsilon(1.0, 0.1, 10, 1e-5, "rdp")
    assert not caplog.records
    # Only that one message, and only while fxdp asks.
    dp_accounting.rdp.RdpAccountant().compose(
        dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0))
    )
    assert caplog.records
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
class TestEdgesOfEpsilon:
    def test_no_steps(self, accountant: Accountant) -> None:
        assert epsilon(1.0, 0.1, 0, 1e-5, accountant) == 0
        assert epsilon(0.0, 0.1, 0, 1e-5, accountant) == 0

    def test_no_noise(self, accountant: Accountant) -> None:
        assert epsilon(0.0, 0.1, 1, 1e-5, accountant) == math.inf

    def test_full_batch(self, accountant: Accountant) -> None:
        plain = pld.PLDAccountant()
        plain.compose(dp_accounting.GaussianDpEvent(2.0), 4)
        # Four Gaussians of 2 are one of 1; RDP pays at most a few tenths for its conversion.
        exact = plain.get_epsilon(1e-5)
        assert exact == pytest.approx(pld_of_one_gaussian(1.0), abs=1e-3)
        assert exact - 1e-3 <= epsilon(2.0, 1.0, 4, 1e-5, accountant) <= exact + 0.4


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
class TestEdgesOfNoiseMultiplierFor:
    def test_no_steps(self, accountant: Accountant) -> None:
        assert noise_multiplier_for(1.0, 1e-5, 0.1, 0, accountant) == 0

    def test_no_promise(self, accountant: Accountant) -> None:
        assert noise_multiplier_for(math.inf, 1e-5, 0.1, 10, accountant) == 0

    def test_full_batch(self, accountant: Accountant) -> None:
        sigma = noise_multiplier_for(pld_of_one_gaussian(4.0), 1e-5, 1.0, 4, accountant)
        assert 8.0 - 1e-2 <= sigma <= 9.0


def test_a_budget_out_of_reach() -> None:
    with pytest.raises(ValueError, match="epsilon is too small"):
        noise_multiplier_for(1e-12, 1e-12, 1.0, 100_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_multiplier", -0.1),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", math.nan),
        ("sample_rate", 0.0),
        ("sample_rate", 1.5),
        ("sample_rate", math.nan),
        ("steps", -1),
        ("steps", 1.5),
        ("delta", 0.0),
        ("delta", 1.0),
        ("delta", math.nan),
        ("accountant", "prv"),
    ],
)
def test_epsilon_names_the_argument_out_of_range(name: str, value: object) -> None:
    good = {"noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 1, "delta": 1e-5}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        epsilon(**(good | {name: value}))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epsilon", 0.0),
        ("epsilon", -1.0),
        ("epsilon", math.nan),
        ("delta", 1.0),
        ("sample_rate", 0.0),
        ("steps", -1),
        ("accountant", "gdp"),
    ],
)
def test_noise_multiplier_for_names_the_argument_out_of_range(name: str, value: object) -> None:
    good = {"epsilon": 1.0, "delta": 1e-5, "sample_rate": 0.1, "steps": 1}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        noise_multiplier_for(**(good | {name: value}))  # pyright: ignore[reportArgumentType]


def pld_of_one_gaussian(sigma: float) -> float:
    """Epsilon at delta 1e-5 of one Gaussian mechanism, without sampling."""
    account = pld.PLDAccountant()
    account.compose(dp_accounting.GaussianDpEvent(sigma))
    return account.get_epsilon(1e-5)
