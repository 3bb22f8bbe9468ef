"""The ledger: merging, budgets that are never exceeded, state, and the table of edge cases."""

import io
import json
import math
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxdp.privacy import (
    Budget,
    BudgetExhausted,
    CountedRelease,
    FixedSize,
    GaussianRelease,
    Ledger,
    Poisson,
    Release,
    TruncatedPoisson,
    epsilon,
    steps_within,
)
from fxdp.privacy.release import Run

DELTA = 1e-5
ONE = GaussianRelease(2.0, Poisson(0.05), 1.0)
RELEASES: list[Release] = [
    ONE,
    GaussianRelease(2.0, Poisson(0.05), 0.5),
    GaussianRelease(3.0, None, 1.0),
    CountedRelease(2.0, 10.0, Poisson(0.05), 1.0),
]


def ledger_of(*releases: Release, accountant: Any = "rdp") -> Ledger:
    ledger = Ledger(accountant)
    for release in releases:
        ledger.record(release)
    return ledger


def train(ledger: Ledger, budget: Budget, steps: int) -> None:
    for _ in range(steps):
        ledger.check(ONE, budget)
        ledger.record(ONE)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(RELEASES), min_size=1, max_size=40))
def test_merged_runs_are_the_releases_one_by_one(releases: list[Release]) -> None:
    ledger = ledger_of(*releases)
    assert [run.release for run in ledger.runs for _ in range(run.count)] == releases
    assert all(
        one.release != two.release
        for one, two in zip(ledger.runs[:-1], ledger.runs[1:], strict=True)
    )
    assert ledger.releases == len(releases)
    each = Ledger("rdp")
    for release in releases:
        each = each + ledger_of(release)
    in_runs = Ledger("rdp")
    for run in ledger.runs:
        in_runs.record(run.release, run.count)
    assert each.runs == in_runs.runs == ledger.runs
    assert each.spent(DELTA) == pytest.approx(ledger.spent(DELTA), rel=1e-12)


def test_a_million_steps_are_one_run() -> None:
    ledger = Ledger("rdp")
    for _ in range(1000):
        ledger.record(ONE)
    ledger.record(ONE, 999_000)
    assert ledger.runs == (Run(ONE, 1_000_000),)
    assert len(json.dumps(ledger.state_dict())) < 400


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_spent_is_epsilon(accountant: Any) -> None:
    ledger = Ledger(accountant)
    ledger.record(ONE, 100)
    assert ledger.spent(DELTA) == epsilon(2.0, 0.05, 100, DELTA, accountant)
    # Other bounds of the same mechanism cost the same, and come to one tally.
    ledger.record(GaussianRelease(2.0, Poisson(0.05), 0.1), 50)
    assert ledger.spent(DELTA) == epsilon(2.0, 0.05, 150, DELTA, accountant)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_exactly_as_many_steps_as_fit_are_let_through(accountant: Any) -> None:
    budget = Budget(1.0, DELTA)
    ledger = Ledger(accountant)
    with pytest.raises(BudgetExhausted, match="nothing was released") as caught:
        train(ledger, budget, 10_000)
    assert ledger.releases == steps_within(1.0, DELTA, 0.05, 2.0, accountant)
    assert ledger.spent(DELTA) <= 1.0 < caught.value.wanted
    assert (caught.value.budget, caught.value.releases) == (budget, ledger.releases)
    assert caught.value.spent == ledger.spent(DELTA)
    assert ledger.would_exceed(ONE, budget)
    assert not ledger.would_exceed(ONE, Budget(1.1, DELTA))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(RELEASES), st.integers(1, 30)), min_size=1, max_size=6),
    st.floats(0.3, 3),
)
def test_no_order_of_releases_exceeds_the_budget(
    plan: list[tuple[Release, int]], most: float
) -> None:
    ledger, budget = Ledger("rdp"), Budget(most, DELTA)
    for release, count in plan:
        for _ in range(count):
            fits = not ledger.would_exceed(release, budget)
            assert fits == ((ledger + ledger_of(release)).spent(DELTA) <= most)
            if fits:
                ledger.record(release)
    assert ledger.spent(DELTA) <= most


def test_the_accountant_is_asked_seldom() -> None:
    ledger, budget = Ledger("rdp"), Budget(8.0, DELTA)
    with patch("fxdp.privacy.ledger.epsilon_of_one", side_effect=lambda *_: 0.0) as asked:
        train(ledger, budget, 100_000)
    assert asked.call_count < 10


def test_a_search_goes_on_where_a_release_was_not_checked() -> None:
    budget = Budget(1.0, DELTA)
    ledger = Ledger("rdp")
    ledger.check(ONE, budget)
    ledger.record(ONE, steps_within(1.0, DELTA, 0.05, 2.0, "rdp"))
    assert ledger.would_exceed(ONE, budget)


class TestEdgesOfTheLedger:
    def test_nothing_recorded(self) -> None:
        assert Ledger().spent(DELTA) == 0
        assert Ledger().runs == ()

    def test_no_noise(self) -> None:
        bare = GaussianRelease(0.0, None, math.inf)
        assert ledger_of(bare).spent(DELTA) == math.inf
        with pytest.raises(BudgetExhausted, match="would spend epsilon inf"):
            Ledger().check(bare, Budget(1e9, DELTA))

    def test_a_budget_without_end(self) -> None:
        Ledger().check(GaussianRelease(0.0, None, math.inf), Budget(math.inf, DELTA))

    def test_no_bound(self) -> None:
        ledger, fixed = Ledger("pld", "replace-one"), GaussianRelease(1.0, FixedSize(9, 3), 1.0)
        for refuse in (ledger.record, lambda r: ledger.check(r, Budget(1.0, DELTA))):
            with pytest.raises(ValueError, match="no bound for FixedSize"):
                refuse(fixed)
        assert ledger.releases == 0

    def test_count_of_zero(self) -> None:
        ledger = Ledger()
        ledger.record(ONE, 0)
        assert ledger.runs == ()
        for count in (-1, 1.5, math.nan):
            with pytest.raises(ValueError, match="^count must be"):
                ledger.record(ONE, count)  # pyright: ignore[reportArgumentType]

    def test_added(self) -> None:
        both = ledger_of(ONE, ONE) + ledger_of(ONE, RELEASES[2])
        assert both.runs == (Run(ONE, 3), Run(RELEASES[2], 1))

    def test_added_with_others(self) -> None:
        with pytest.raises(ValueError, match="^neighbours of the other ledger must be"):
            Ledger() + Ledger(neighbours="replace-one")
        with pytest.raises(ValueError, match="^accountant of the other ledger must be"):
            Ledger("pld") + Ledger("rdp")

    def test_arguments_that_are_none_of_those(self) -> None:
        with pytest.raises(ValueError, match="^accountant must be"):
            Ledger("prv")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="^neighbours must be"):
            Ledger("pld", "zero")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0.0, 1e-5), (-1.0, 1e-5), (math.nan, 1e-5), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)],
)
def test_a_budget_that_cannot_be(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Budget(epsilon, delta)


class TestState:
    @pytest.mark.parametrize("through", ["json", "torch"])
    def test_round_trip(self, through: str) -> None:
        ledger = ledger_of(*RELEASES, RELEASES[-1], GaussianRelease(0.0, None, math.inf))
        state = ledger.state_dict()
        if through == "json":
            state = json.loads(json.dumps(state))
        else:
            torch.save(state, file := io.BytesIO())
            state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        other = Ledger()
        other.load_state_dict(state)
        assert (other.accountant, other.neighbours) == (ledger.accountant, ledger.neighbours)
        assert (other.runs, other.tally) == (ledger.runs, ledger.tally)

    @pytest.mark.parametrize(
        "sampling", [None, Poisson(0.1), TruncatedPoisson(0.1, 99, 20), FixedSize(100, 5)]
    )
    def test_every_way_to_draw(self, sampling: Any) -> None:
        fixed = isinstance(sampling, FixedSize)
        ledger = Ledger("rdp" if fixed else "pld", "replace-one")
        ledger.record(GaussianRelease(1.5, sampling, 0.7), 3)
        other = Ledger()
        other.load_state_dict(ledger.state_dict())
        assert other.runs == ledger.runs

    def test_numbers_of_numpys_become_plain(self) -> None:
        ledger = Ledger("pld")
        sampling = TruncatedPoisson(np.float64(0.1), np.int64(99), 20)  # pyright: ignore
        ledger.record(GaussianRelease(np.float64(1.5), sampling, np.float32(0.5)), np.int64(3))  # pyright: ignore
        torch.save(ledger.state_dict(), file := io.BytesIO())
        other = Ledger()
        other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        assert other.runs == ledger.runs

    def test_a_loaded_ledger_goes_on(self) -> None:
        budget = Budget(1.0, DELTA)
        ledger = Ledger("rdp")
        fits = steps_within(1.0, DELTA, 0.05, 2.0, "rdp")
        ledger.record(ONE, fits - 1)
        other = Ledger()
        other.check(ONE, budget)
        other.load_state_dict(ledger.state_dict())
        other.check(ONE, budget)
        other.record(ONE)
        assert other.would_exceed(ONE, budget)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"version": 2}, "version 2"),
            ({"accountant": "prv"}, "accountant must be"),
            ({"neighbours": None}, "neighbours must be"),
            ({"runs": {}}, "runs must be a list"),
            ({"runs": [3]}, "run 0: must be a mapping"),
            ({"runs": [{"count": 1}]}, "run 0: must be a mapping"),
            ({"extra": 1}, "must be a mapping"),
            ({"runs": [{"count": 0, "release": {}}]}, "run 0: count must be"),
            ({"runs": [{"count": True, "release": {}}]}, "count must be a whole number"),
            ({"runs": [{"count": 1.0, "release": {}}]}, "count must be a whole number"),
            ({"runs": [{"count": 1, "release": {"kind": "laplace"}}]}, "kind must be one of"),
            ({"runs": [{"count": 1, "release": {"kind": "gaussian"}}]}, "must be a mapping of"),
        ],
    )
    def test_malformed(self, change: dict[str, Any], match: str) -> None:
        ledger = ledger_of(ONE)
        with pytest.raises(ValueError, match=match):
            ledger.load_state_dict(ledger.state_dict() | change)
        assert ledger.runs == (Run(ONE, 1),)

    @pytest.mark.parametrize(
        ("name", "value", "match"),
        [
            ("noise_multiplier", -1.0, "run 0: release: noise_multiplier must be"),
            ("noise_multiplier", math.nan, "noise_multiplier must be"),
            ("noise_multiplier", "1", "noise_multiplier must be a number"),
            ("max_grad_norm", None, "max_grad_norm must be a number"),
            ("sampling", {"kind": "poisson", "rate": 2.0}, "sampling: rate must be"),
            ("sampling", {"kind": "shuffle"}, "sampling: kind must be one of"),
            (
                "sampling",
                {"kind": "fixed-size", "num_samples": 10, "batch_size": 2.0},
                "batch_size must be a whole number",
            ),
            (
                "sampling",
                {"kind": "fixed-size", "num_samples": 10, "batch_size": 2},
                "no bound for FixedSize",
            ),
        ],
    )
    def test_a_malformed_release(self, name: str, value: Any, match: str) -> None:
        ledger = ledger_of(ONE)
        state = ledger.state_dict()
        state["runs"][0]["release"][name] = value
        with pytest.raises(ValueError, match=match):
            ledger.load_state_dict(state)
        assert ledger.spent(DELTA) == ledger_of(ONE).spent(DELTA)

    def test_what_is_no_mapping(self) -> None:
        with pytest.raises(ValueError, match="ledger: must be a mapping"):
            Ledger().load_state_dict([])  # pyright: ignore[reportArgumentType]
