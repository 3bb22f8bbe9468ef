"""Uses of one sample where parts take turns: never fewer than the worst part has."""

import json
import math
from collections import Counter
from typing import Any

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from fxdp.privacy import (
    BandedRelease,
    Budget,
    BudgetExhausted,
    CountedRelease,
    CyclicPoisson,
    FixedSize,
    GaussianRelease,
    Ledger,
    Poisson,
    Release,
    calibrate,
    epsilon,
    statement,
    steps_within,
)
from fxdp.privacy.release import Mechanism
from fxdp.privacy.turns import Turns

DELTA = 1e-5
PARTS = 4
TURNS = CyclicPoisson(0.25, PARTS)
STEP = BandedRelease(2.0, 3, TURNS, 1.0)
OTHER = GaussianRelease(3.0, Poisson(0.05), 1.0)
NOISES = (1.0, 2.0, 5.0)


def banded(sigma: float, stream: int = 0) -> BandedRelease:
    return BandedRelease(sigma, 3, TURNS, 1.0, stream)


def independently(sigma: float, rate: float, steps: int, accountant: Any) -> float:
    """By dp-accounting's own events."""
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    return accountant.compose(event, steps).get_epsilon(DELTA)


class TestClosedForms:
    @pytest.mark.parametrize(("steps", "uses"), [(1, 1), (4, 1), (5, 2), (8, 2), (401, 101)])
    def test_epsilon_is_that_of_the_turns(self, steps: int, uses: int) -> None:
        """arXiv 2306.08153, theorem 4."""
        for accountant, fresh in (("pld", pld.PLDAccountant), ("rdp", rdp.RdpAccountant)):
            wanted = independently(2.0, 0.25, uses, fresh())
            assert epsilon(2.0, TURNS, steps, DELTA, accountant) == pytest.approx(wanted, rel=1e-9)
            ledger = Ledger(accountant)
            ledger.record(STEP, steps)
            assert ledger.spent(DELTA) == pytest.approx(wanted, rel=1e-9)
            assert ledger.releases == steps

    def test_without_amplification_it_is_one_gaussian(self) -> None:
        """k turns are one release of noise sigma / sqrt(k): sensitivity sqrt(k)."""
        way = CyclicPoisson(1.0, PARTS)
        wanted = dp_accounting.get_epsilon_gaussian(2.0 / math.sqrt(3), DELTA)
        for neighbours, distance in (("add-or-remove-one", 1), ("replace-one", 2)):
            found = epsilon(2.0 * distance, way, 12, DELTA, neighbours=neighbours)
            assert wanted <= found <= wanted * 1.001

    def test_one_part_is_poisson(self) -> None:
        for steps in (1, 7):
            assert epsilon(2.0, CyclicPoisson(0.1, 1), steps, DELTA, "rdp") == epsilon(
                2.0, 0.1, steps, DELTA, "rdp"
            )

    @pytest.mark.parametrize("parts", [1, 8])
    def test_known_value(self, parts: int) -> None:
        """JAX-Privacy's: sigma 3, 512 turns, q 0.1, delta 1e-6 give 3.77; 1.0 needs 9.66."""
        way = CyclicPoisson(0.1, parts)
        assert epsilon(3.0, way, 512 * parts, 1e-6) == pytest.approx(3.77, abs=0.01)
        assert steps_within(2.0, 1e-6, way, 3.0) == 155 * parts
        found = calibrate(1.0, 1e-6, way, 512 * parts, "rdp")
        assert found == calibrate(1.0, 1e-6, 0.1, 512, "rdp")

    def test_replaced_samples(self) -> None:
        found = epsilon(2.0, TURNS, 8, DELTA, neighbours="replace-one")
        assert found == epsilon(2.0, 0.25, 2, DELTA, neighbours="replace-one")
        with pytest.raises(ValueError, match="pass accountant='pld'"):
            epsilon(2.0, TURNS, 8, DELTA, "rdp", "replace-one")
        # Where the search for noise begins: RDP has a bound without amplification alone.
        assert TURNS.for_rdp("replace-one") == CyclicPoisson(1.0, PARTS)
        assert TURNS.for_rdp("add-or-remove-one") == TURNS


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from([*map(banded, NOISES), OTHER]), st.integers(1, 11)), max_size=12
    )
)
def test_no_part_has_more(runs: list[tuple[Release, int]]) -> None:
    """Any part, at any noise: as many uses of that noise or less are in the tally, or more."""
    turns, in_ones = Turns(), Turns()
    uses = [Counter[float]() for _ in range(PARTS)]
    step = 0
    for release, count in runs:
        turns = turns.after(release, count)
        for _ in range(count):
            in_ones = in_ones.after(release, 1)
            if isinstance(release, BandedRelease):
                uses[step % PARTS][release.noise_multiplier] += 1
                step += 1
    assert turns == in_ones
    others = sum(count for release, count in runs if release == OTHER)
    assert turns.tally.get(OTHER.mechanism, 0) == others
    assert all(count > 0 for count in turns.tally.values())
    told = {s: turns.tally.get(Mechanism(s, Poisson(0.25)), 0) for s in NOISES}
    assert sum(told.values()) == math.ceil(step / PARTS)
    for part in uses:
        for sigma in NOISES:  # with at most so much noise
            at_most = sum(n for s, n in told.items() if s <= sigma)
            assert sum(n for s, n in part.items() if s <= sigma) <= at_most


class TestTable:
    """Each line of the table in `Turns`."""

    def test_equal_releases(self) -> None:
        assert Turns().after(STEP, 9).tally == {Mechanism(2.0, Poisson(0.25)): 3}

    def test_more_noise_in_a_block(self) -> None:
        turns = Turns().after(banded(1.0), 1).after(banded(5.0), 3)
        assert turns.tally == {Mechanism(1.0, Poisson(0.25)): 1}

    def test_less_noise_in_a_block(self) -> None:
        turns = Turns().after(banded(5.0), 1).after(banded(1.0), 1).after(banded(2.0), 2)
        assert turns.tally == {Mechanism(1.0, Poisson(0.25)): 1}

    @pytest.mark.parametrize(
        "other",
        [BandedRelease(2.0, 2, TURNS, 1.0), BandedRelease(2.0, 3, CyclicPoisson(0.2, 4), 1.0)],
    )
    def test_a_stream_that_changes(self, other: BandedRelease) -> None:
        ledger = Ledger("rdp")
        ledger.record(STEP)
        for ask in (ledger.record, lambda r: ledger.check(r, Budget(9.0, DELTA))):
            with pytest.raises(ValueError, match="the parts would not be the same"):
                ask(other)
        assert ledger.releases == 1
        state = ledger.state_dict()
        state["runs"].append({"count": 1, "release": dict(state["runs"][0]["release"], bands=2)})
        with pytest.raises(ValueError, match="the parts would not be the same"):
            Ledger().load_state_dict(state)


class TestLedger:
    def test_beside_others(self) -> None:
        ledger = Ledger("rdp")
        for release, count in ((STEP, 3), (OTHER, 5), (STEP, 2), (OTHER, 1)):
            ledger.record(release, count)
        assert ledger.tally == {Mechanism(2.0, Poisson(0.25)): 2, OTHER.mechanism: 6}
        assert ledger.releases == 11
        by = rdp.RdpAccountant()
        independently(2.0, 0.25, 2, by)
        assert ledger.spent(DELTA) == pytest.approx(independently(3.0, 0.05, 6, by), rel=1e-9)

    def test_bounds_of_the_clipping_cancel_out(self) -> None:
        ledger = Ledger("rdp")
        for step in range(8):
            ledger.record(BandedRelease(2.0, 3, TURNS, 1.0 + step))
        assert len(ledger.runs) == 8
        assert ledger.spent(DELTA) == epsilon(2.0, TURNS, 8, DELTA, "rdp")

    def test_ledgers_that_are_added_keep_their_streams(self) -> None:
        """Three steps each: a part may have had two turns in both."""
        one = Ledger("rdp")
        one.record(STEP, 5)
        both = one + one + one
        assert both.tally == {Mechanism(2.0, Poisson(0.25)): 6}
        assert [run.release.stream for run in both.runs] == [0, 1, 2]  # type: ignore[union-attr]
        again = Ledger()
        again.load_state_dict(json.loads(json.dumps(both.state_dict())))
        assert (again.runs, again.tally) == (both.runs, both.tally)
        assert again.spent(DELTA) == both.spent(DELTA)

    def test_a_budget_is_used_up_and_not_exceeded(self) -> None:
        budget = Budget(epsilon(2.0, TURNS, 10, DELTA, "rdp"), DELTA)
        ledger = Ledger("rdp")
        for _ in range(12):  # three turns of four parts
            ledger.check(STEP, budget)
            ledger.record(STEP)
        assert ledger.spent(DELTA) == budget.epsilon
        with pytest.raises(BudgetExhausted) as caught:
            ledger.check(STEP, budget)
        assert caught.value.wanted == epsilon(2.0, TURNS, 13, DELTA, "rdp")
        ledger = Ledger("rdp")
        ledger.record(STEP, 9)
        ledger.record(banded(5.0))
        assert not ledger.would_exceed(STEP, budget)
        assert ledger.would_exceed(banded(1.0), budget)  # the open block would be dearer
        ledger.record(STEP, 2)
        assert ledger.would_exceed(STEP, budget)
        assert ledger.would_exceed(banded(5.0), budget)

    def test_state(self) -> None:
        ledger = Ledger("rdp")
        ledger.record(STEP, 5)
        state = json.loads(json.dumps(ledger.state_dict()))
        assert state["runs"][0]["release"] == {
            "kind": "banded-gaussian", "noise_multiplier": 2.0, "bands": 3, "max_grad_norm": 1.0,
            "stream": 0, "sampling": {"kind": "cyclic-poisson", "rate": 0.25, "parts": 4},
        }  # fmt: skip
        again = Ledger()
        again.load_state_dict(state)
        again.record(STEP, 3)  # the stream goes on in the block that is open
        assert again.tally == {Mechanism(2.0, Poisson(0.25)): 2}
        for name, value in (("bands", 2.5), ("bands", 5), ("stream", -1), ("sampling", None)):
            bad = json.loads(json.dumps(state))
            bad["runs"][0]["release"][name] = value
            with pytest.raises(ValueError, match="ledger state: run 0"):
                again.load_state_dict(bad)
        assert again.releases == 8


class TestRefused:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: CyclicPoisson(0.0, 4), "rate must be"),
            (lambda: CyclicPoisson(1.5, 4), "rate must be"),
            (lambda: CyclicPoisson(0.5, 0), "parts must be"),
            (lambda: CyclicPoisson(0.5, 1.5), "parts must be"),  # type: ignore[arg-type]
            (lambda: BandedRelease(2.0, 5, TURNS, 1.0), "at most parts = 4"),
            (lambda: BandedRelease(2.0, 0, TURNS, 1.0), "bands must be"),
            (lambda: BandedRelease(2.0, 2, TURNS, 1.0, -1), "stream must be"),
            (lambda: BandedRelease(2.0, 2, Poisson(0.5), 1.0), "CyclicPoisson"),  # type: ignore[arg-type]
            (lambda: BandedRelease(2.0, 2, None, 1.0), "CyclicPoisson"),  # type: ignore[arg-type]
            (lambda: BandedRelease(2.0, 2, FixedSize(9, 3), 1.0), "CyclicPoisson"),  # type: ignore[arg-type]
            (lambda: BandedRelease(-1.0, 2, TURNS, 1.0), "noise_multiplier"),
            (lambda: BandedRelease(1.0, 2, TURNS, 0.0), "max_grad_norm"),
            (lambda: GaussianRelease(2.0, TURNS, 1.0), "needs a BandedRelease"),
            (lambda: CountedRelease(2.0, 3.0, TURNS, 1.0), "needs a BandedRelease"),
        ],
    )
    def test_values(self, make: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            make()

    def test_no_noise(self) -> None:
        ledger = Ledger("rdp")
        ledger.record(BandedRelease(0.0, 3, TURNS, 1.0))
        assert ledger.spent(DELTA) == math.inf


class TestStatement:
    def test_in_turns(self) -> None:
        ledger = Ledger("rdp")
        ledger.record(STEP, 8)
        text = statement(ledger, DELTA)
        assert "matrix of 3 bands" in text
        assert "split into 4 parts once" in text
        assert "probability 0.25" in text
        assert "the parts took turns as described, and no turn was left out" in text
        known = dp_accounting.get_epsilon_gaussian(2.0 / math.sqrt(2), DELTA)
        assert f"epsilon = {math.ceil(known * 1000) / 1000:.3f} at the same delta" in text

    def test_without_chance(self) -> None:
        ledger = Ledger("rdp")
        ledger.record(BandedRelease(2.0, 1, CyclicPoisson(1.0, 4), 1.0), 8)
        text = statement(ledger, DELTA)
        assert "No sample was in two of any 4 batches in a row" in text
        assert "kept secret" not in text
        assert "bands" not in text

    def test_many_kinds(self) -> None:
        ledger = Ledger("rdp")
        for step in range(6):
            ledger.record(BandedRelease(2.0, 3, TURNS, 1.0 + step))
        text = statement(ledger, DELTA)
        assert "matrix of 3 bands" in text
        assert "C between 1 and 6" in text
