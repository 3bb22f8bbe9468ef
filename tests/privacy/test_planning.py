"""Plans: what is calibrated fits, wastes nothing, and the tables of edge cases by line."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxdp.privacy import (
    DeltaWarning,
    FixedSize,
    Sampling,
    TruncatedPoisson,
    calibrate,
    epsilon,
    steps_within,
)
from fxdp.privacy.sampling_rule import Accountant, Neighbours
from fxdp.privacy.search import MOST_STEPS, most_steps

ACCOUNTANTS: list[Accountant] = ["pld", "rdp"]


class TestPublishedValues:
    def test_noise_of_jax_privacys_docstring(self) -> None:
        assert calibrate(1, 1e-6, 0.1, 512) == pytest.approx(9.66, abs=5e-3)

    def test_steps_of_jax_privacys_docstring(self) -> None:
        assert steps_within(2, 1e-6, 0.1, 3) == 155


@pytest.mark.parametrize(
    ("budget", "draw", "accountant", "neighbours"),
    [
        (0.5, 0.05, "pld", "add-or-remove-one"),
        (0.5, 0.05, "rdp", "add-or-remove-one"),
        (4.0, 0.05, "rdp", "add-or-remove-one"),
        (2.0, None, "pld", "replace-one"),
        (1.0, 0.05, "pld", "replace-one"),
        (2.0, FixedSize(1000, 50), "rdp", "replace-one"),
    ],
)
def test_calibrated_noise_stays_within_the_budget_and_wastes_none(
    budget: float,
    draw: float | Sampling | None,
    accountant: Accountant,
    neighbours: Neighbours,
) -> None:
    sigma = calibrate(budget, 1e-5, draw, 100, accountant, neighbours)
    assert epsilon(sigma, draw, 100, 1e-5, accountant, neighbours) <= budget
    # One step of the search below it would be too little; for PLD its own grid blurs that.
    less = 1e-6 if accountant == "rdp" else 1e-4
    assert epsilon(sigma - less, draw, 100, 1e-5, accountant, neighbours) > budget


def test_calibrated_noise_of_truncated_batches() -> None:
    draw = TruncatedPoisson(0.05, 200, 20)
    sigma = calibrate(0.05, 1e-4, draw, 2)
    assert epsilon(sigma, draw, 2, 1e-4) <= 0.05 < epsilon(sigma - 1e-3, draw, 2, 1e-4)
    assert sigma > calibrate(0.05, 1e-4, 0.05, 2)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    budget=st.floats(0.1, 20),
    rate=st.sampled_from([1e-3, 0.02, 0.3, 1.0]),
    steps=st.integers(1, 5000),
    delta=st.sampled_from([1e-3, 1e-6, 1e-9]),
)
def test_no_budget_is_exceeded(budget: float, rate: float, steps: int, delta: float) -> None:
    sigma = calibrate(budget, delta, rate, steps, "rdp")
    assert epsilon(sigma, rate, steps, delta, "rdp") <= budget
    assert steps_within(budget, delta, rate, sigma, "rdp") >= steps


class TestEdgesOfCalibrate:
    @pytest.mark.parametrize("accountant", ACCOUNTANTS)
    def test_no_steps(self, accountant: Accountant) -> None:
        assert calibrate(1.0, 1e-5, 0.1, 0, accountant) == 0

    @pytest.mark.parametrize("accountant", ACCOUNTANTS)
    def test_no_promise(self, accountant: Accountant) -> None:
        assert calibrate(math.inf, 1e-5, 0.1, 10, accountant) == 0

    @pytest.mark.parametrize("accountant", ACCOUNTANTS)
    @pytest.mark.parametrize("rate", [1.0, None])
    def test_sampling_that_hides_nothing(self, accountant: Accountant, rate: float | None) -> None:
        one = epsilon(4.0, None, 1, 1e-5)
        assert 8.0 - 1e-2 <= calibrate(one, 1e-5, rate, 4, accountant) <= 9.0

    def test_out_of_reach(self) -> None:
        with pytest.raises(ValueError, match="epsilon is too small for 100000 steps"):
            calibrate(1e-12, 1e-12, 1.0, 100_000, "rdp")

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
            ("neighbours", "none"),
        ],
    )
    def test_an_argument_out_of_range(self, name: str, value: object) -> None:
        good: dict[str, Any] = {"epsilon": 1.0, "delta": 1e-5, "sample_rate": 0.1, "steps": 1}
        with pytest.raises(ValueError, match=f"^{name} must be"):
            calibrate(**(good | {name: value}))

    def test_no_bound(self) -> None:
        with pytest.raises(ValueError, match="no bound for FixedSize"):
            calibrate(1.0, 1e-5, FixedSize(100, 10), 10)

    def test_a_large_delta(self) -> None:
        with pytest.warns(DeltaWarning):
            calibrate(1.0, 0.1, 0.1, 1, "rdp", num_samples=10)


class TestEdgesOfStepsWithin:
    def test_no_noise(self) -> None:
        assert steps_within(1.0, 1e-5, 0.1, 0.0) == 0

    def test_one_step_is_too_much(self) -> None:
        assert steps_within(0.01, 1e-5, None, 1.0) == 0

    def test_more_than_anybody_takes(self) -> None:
        assert steps_within(1.0, 1e-5, None, 1e9, "rdp") == MOST_STEPS

    @pytest.mark.parametrize("accountant", ACCOUNTANTS)
    def test_the_last_that_fits(self, accountant: Accountant) -> None:
        fits = steps_within(1.0, 1e-5, 0.01, 1.5, accountant)
        assert epsilon(1.5, 0.01, fits, 1e-5, accountant) <= 1.0
        assert epsilon(1.5, 0.01, fits + 1, 1e-5, accountant) > 1.0

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("epsilon", 0.0),
            ("epsilon", math.inf),
            ("delta", 0.0),
            ("sample_rate", 2.0),
            ("noise_multiplier", math.nan),
            ("accountant", "gdp"),
        ],
    )
    def test_an_argument_out_of_range(self, name: str, value: object) -> None:
        good: dict[str, Any] = {
            "epsilon": 1.0, "delta": 1e-5, "sample_rate": 0.1, "noise_multiplier": 1.0
        }  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name} must be"):
            steps_within(**(good | {name: value}))

    def test_no_bound(self) -> None:
        with pytest.raises(ValueError, match="no bound for TruncatedPoisson"):
            steps_within(1.0, 1e-5, TruncatedPoisson(0.1, 100, 20), 1.0, "rdp")

    def test_a_large_delta(self) -> None:
        with pytest.warns(DeltaWarning):
            steps_within(1.0, 0.1, 0.1, 5.0, "rdp", num_samples=10)


@settings(max_examples=300, derandomize=True)
@given(
    answer=st.integers(0, 10**6),
    guess=st.integers(1, 2 * 10**6),
    power=st.floats(0.3, 1.5),
    base=st.floats(0, 0.9),
)
def test_the_search_finds_the_last_count_that_fits(
    answer: int, guess: int, power: float, base: float
) -> None:
    asked: list[int] = []

    def epsilon_after(steps: int) -> float:
        asked.append(steps)
        return base + (1 - base) * (steps / (answer + 0.5)) ** power

    assert most_steps(epsilon_after, 1.0, guess) == answer
    assert len(asked) < 80


def test_the_search_bears_epsilons_that_are_infinite_or_zero() -> None:
    assert most_steps(lambda steps: math.inf if steps > 41 else 0.0, 1.0) == 41
    assert most_steps(lambda steps: 0.0, 1.0) == MOST_STEPS
    assert most_steps(lambda steps: math.inf, 1.0) == 0
