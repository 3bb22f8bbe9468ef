"""What releases cost: published values, both relations, and the table of edge cases by line."""

import logging
import math
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from fxdp.privacy import DeltaWarning, FixedSize, Poisson, TruncatedPoisson, epsilon
from fxdp.privacy.accounting import (
    Accountant,
    Neighbours,
    compose,
    epsilon_of,
    epsilon_of_known_batches,
    with_more,
)
from fxdp.privacy.release import Mechanism
from fxdp.privacy.renyi import RenyiAccount

ACCOUNTANTS: list[Accountant] = ["pld", "rdp"]
NEIGHBOURS: list[Neighbours] = ["add-or-remove-one", "replace-one"]


class TestPublishedValues:
    def test_three_noisy_steps_by_pld(self) -> None:
        # dp-accounting's own test: Gaussian 0.5, Poisson 0.2, three times, epsilon 1.
        assert epsilon(0.5, 0.2, 3, delta=0.15594) == pytest.approx(1, abs=1e-4)

    def test_three_steps_without_sampling_by_pld(self) -> None:
        # The same three times with sqrt(3), which is one Gaussian of 1: delta 0.126936.
        assert epsilon(3**0.5, None, 3, delta=0.126936) == pytest.approx(1, abs=1e-4)

    def test_renyi_divergences(self) -> None:
        # dp-accounting's own test: q = 0.01, sigma = 2.5, 50 steps.
        orders = (1.5, 2.5, 5.0, 50.0, 100.0)
        account = compose(
            {Mechanism(2.5, Poisson(0.01)): 50}, "rdp", "add-or-remove-one", orders
        ).account
        published = [6.70579741e-4, 1.08548710e-3, 2.18075656e-3, 2.38460375e-2, 167.416308]
        assert isinstance(account, RenyiAccount)
        assert np.allclose(account.divergences, published, rtol=1e-5)

    def test_a_long_run_of_jax_privacys_docstring(self) -> None:
        assert epsilon(3, 0.1, 512, delta=1e-6) == pytest.approx(3.77, abs=5e-3)


def test_pld_is_the_default_and_tighter_than_rdp() -> None:
    tight = epsilon(3, 0.1, 512, 1e-6, accountant="pld")
    loose = epsilon(3, 0.1, 512, 1e-6, accountant="rdp")
    assert epsilon(3, 0.1, 512, 1e-6) == tight < loose == pytest.approx(4.05097, abs=1e-4)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sigma=st.floats(0.7, 20), rate=st.sampled_from([1e-3, 0.01, 0.1, 1.0]), steps=st.integers(1, 99)
)
def test_pld_is_not_above_rdp(sigma: float, rate: float, steps: int) -> None:
    # The tolerance is for PLD's discretisation: 1e-4 in the loss, rounded up.
    assert epsilon(sigma, rate, steps, 1e-5) <= epsilon(sigma, rate, steps, 1e-5, "rdp") + 1e-3


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    sigma=st.floats(0.5, 20),
    rate=st.floats(1e-4, 0.5),
    steps=st.integers(1, 2000),
    delta=st.floats(1e-9, 1e-3),
    by=st.floats(1.01, 2),
)
def test_epsilon_moves_the_right_way(
    sigma: float, rate: float, steps: int, delta: float, by: float
) -> None:
    here = epsilon(sigma, rate, steps, delta, "rdp")
    assert epsilon(sigma * by, rate, steps, delta, "rdp") <= here
    assert epsilon(sigma, rate * by, steps, delta, "rdp") >= here
    assert epsilon(sigma, rate, steps + 1, delta, "rdp") >= here
    assert epsilon(sigma, rate, steps, delta * by, "rdp") <= here


class TestBothRelations:
    def test_replacing_is_twice_as_far_as_removing(self) -> None:
        for accountant in ACCOUNTANTS:
            removed = epsilon(2.0, None, 3, 1e-5, accountant)
            replaced = epsilon(4.0, None, 3, 1e-5, accountant, "replace-one")
            assert replaced == pytest.approx(removed, rel=1e-3)

    def test_a_subset_that_is_everything_is_the_gaussian_mechanism(self) -> None:
        everything = epsilon(4.0, FixedSize(50, 50), 3, 1e-5, "rdp", "replace-one")
        assert everything == epsilon(4.0, None, 3, 1e-5, "rdp", "replace-one")

    def test_fixed_size_by_the_bound_itself(self) -> None:
        # dp-accounting counts noise in units of the distance of two sums here, which is 2 C.
        account = rdp.RdpAccountant(
            neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
        )
        half = dp_accounting.GaussianDpEvent(0.75)
        account.compose(dp_accounting.SampledWithoutReplacementDpEvent(1000, 10, half), 100)
        ours = epsilon(1.5, FixedSize(1000, 10), 100, 1e-5, "rdp", "replace-one")
        assert ours == account.get_epsilon(1e-5)

    def test_fixed_size_is_no_better_than_poisson_for_replaced_samples(self) -> None:
        fixed = epsilon(1.5, FixedSize(1000, 10), 100, 1e-5, "rdp", "replace-one")
        assert fixed >= epsilon(1.5, 0.01, 100, 1e-5, "pld", "replace-one")

    def test_truncation_costs_the_more_the_more_often_it_happens(self) -> None:
        free = epsilon(3.0, 0.01, 10, 1e-5)
        rare, often = (
            epsilon(3.0, TruncatedPoisson(0.01, 1000, most), 10, 1e-5) for most in (20, 12)
        )
        never = epsilon(3.0, TruncatedPoisson(0.01, 1000, 1000), 10, 1e-5)
        assert never == free < rare < often

    def test_known_batches_cost_what_full_batches_cost(self) -> None:
        for neighbours in NEIGHBOURS:
            known = epsilon_of_known_batches({Mechanism(8.0, Poisson(0.01)): 9}, 1e-5, neighbours)
            full = epsilon(8.0, None, 9, 1e-5, neighbours=neighbours)
            assert known == pytest.approx(full, abs=2e-3)

    def test_known_truncated_batches_move_by_two(self) -> None:
        truncated = {Mechanism(8.0, TruncatedPoisson(0.1, 100, 12)): 9}
        removed = epsilon_of_known_batches(truncated, 1e-5, "add-or-remove-one")
        replaced = epsilon_of_known_batches({Mechanism(8.0, None): 9}, 1e-5, "replace-one")
        assert removed == replaced


def test_composition_is_in_any_order_and_in_parts() -> None:
    one, other = Mechanism(2.0, Poisson(0.05)), Mechanism(3.0, None)
    for accountant in ACCOUNTANTS:
        whole = compose({one: 20, other: 2}, accountant, "add-or-remove-one")
        part = compose({other: 2}, accountant, "add-or-remove-one")
        before = epsilon_of(part, 1e-5)
        parts = with_more(part, {one: 20})
        assert epsilon_of(parts, 1e-5) == pytest.approx(epsilon_of(whole, 1e-5), abs=1e-6)
        assert epsilon_of(part, 1e-5) == before


def test_dp_accounting_does_not_log_the_orders_that_it_leaves_out() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger().addHandler(handler)
    try:
        epsilon(1.0, 0.1, 10, 1e-5, "rdp")
        assert not records
        # Only that one message, and only while fxdp asks.
        rdp.RdpAccountant().compose(
            dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0))
        )
    finally:
        logging.getLogger().removeHandler(handler)
    assert records
    assert all(record.levelno == logging.WARNING for record in records)


class TestEdgesOfEpsilon:
    @pytest.mark.parametrize("accountant", ACCOUNTANTS)
    def test_no_steps(self, accountant: Accountant) -> None:
        assert epsilon(1.0, 0.1, 0, 1e-5, accountant) == 0
        assert epsilon(0.0, 0.1, 0, 1e-5, accountant) == 0

    @pytest.mark.parametrize("accountant", ACCOUNTANTS)
    def test_no_noise(self, accountant: Accountant) -> None:
        assert epsilon(0.0, 0.1, 1, 1e-5, accountant) == math.inf
        assert epsilon(0.0, None, 1, 1e-5, accountant) == math.inf

    @pytest.mark.parametrize("accountant", ACCOUNTANTS)
    def test_sampling_that_hides_nothing(self, accountant: Accountant) -> None:
        # Four Gaussians of 2 are one of 1; RDP pays at most a few tenths for its conversion.
        exact = dp_accounting.get_epsilon_gaussian(1.0, 1e-5)
        for rate in (1.0, 1, None):
            assert exact - 1e-3 <= epsilon(2.0, rate, 4, 1e-5, accountant) <= exact + 0.4

    def test_fixed_size(self) -> None:
        draw = FixedSize(100, 10)
        with pytest.raises(ValueError, match="FixedSize by 'pld': pass accountant='rdp', neigh"):
            epsilon(1.0, draw, 1, 1e-5, "pld", "replace-one")
        with pytest.raises(ValueError, match="pass neighbours='replace-one'"):
            epsilon(1.0, draw, 1, 1e-5, "rdp")
        assert epsilon(1.0, draw, 1, 1e-5, "rdp", "replace-one") > 0

    def test_truncated_poisson(self) -> None:
        with pytest.raises(ValueError, match="TruncatedPoisson by 'rdp': pass accountant='pld'"):
            epsilon(1.0, TruncatedPoisson(0.1, 100, 20), 1, 1e-5, "rdp")

    def test_poisson_for_replace_one(self) -> None:
        with pytest.raises(ValueError, match="pass accountant='pld'"):
            epsilon(1.0, 0.1, 1, 1e-5, "rdp", "replace-one")
        assert epsilon(1.0, 0.1, 1, 1e-5, "pld", "replace-one") > epsilon(1.0, 0.1, 1, 1e-5)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("noise_multiplier", -0.1),
            ("noise_multiplier", math.inf),
            ("noise_multiplier", math.nan),
            ("sample_rate", 0.0),
            ("sample_rate", 1.5),
            ("sample_rate", math.nan),
            ("sample_rate", "0.1"),
            ("steps", -1),
            ("steps", 1.5),
            ("steps", math.inf),
            ("delta", 0.0),
            ("delta", 1.0),
            ("delta", math.nan),
            ("accountant", "prv"),
            ("neighbours", "zero-out"),
            ("num_samples", -5),
        ],
    )
    def test_an_argument_out_of_range(self, name: str, value: object) -> None:
        good: dict[str, Any] = {
            "noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 1, "delta": 1e-5
        }  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name} must be"):
            epsilon(**(good | {name: value}))

    def test_a_large_delta(self) -> None:
        with pytest.warns(DeltaWarning, match="not below 1 / 1000"):
            assert epsilon(1.0, 0.1, 1, 1e-3, num_samples=1000) == epsilon(1.0, 0.1, 1, 1e-3)
        with pytest.warns(DeltaWarning):
            epsilon(1.0, FixedSize(100, 10), 1, 0.01, "rdp", "replace-one")
        epsilon(1.0, 0.1, 1, 9e-4, num_samples=1000)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Poisson, (0.0,)),
        (Poisson, (math.nan,)),
        (TruncatedPoisson, (1.1, 10, 5)),
        (TruncatedPoisson, (0.1, 10, 11)),
        (TruncatedPoisson, (0.1, 0, 1)),
        (FixedSize, (10, 0)),
        (FixedSize, (10, 11)),
        (FixedSize, (10, 2.5)),
    ],
)
def test_a_way_to_draw_that_cannot_be(kind: Any, arguments: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        kind(*arguments)
