"""What a way to draw says of itself is what the ledger, the statement and checkpoints go by."""

from dataclasses import fields
from typing import get_args

import pytest

from fxdp.privacy import (
    Accountant,
    BandedRelease,
    CyclicPoisson,
    FixedSize,
    GaussianRelease,
    Ledger,
    Neighbours,
    Poisson,
    Sampling,
    TruncatedPoisson,
    epsilon,
    statement,
)
from fxdp.privacy.accounting import as_sampling
from fxdp.privacy.sampling import SAMPLINGS
from fxdp.privacy.sampling_rule import Unamplified, stated
from fxdp.privacy.state import sampling_from_plain, sampling_to_plain

WAYS = (
    Poisson(0.1),
    Poisson(1),
    TruncatedPoisson(0.1, 50, 9),
    FixedSize(50, 5),
    CyclicPoisson(0.25, 4),
    CyclicPoisson(1, 4),
    None,
)


def test_all_of_the_table_are_here() -> None:
    assert {type(way) for way in WAYS if way is not None} == set(SAMPLINGS.values())


@pytest.mark.parametrize("kind", SAMPLINGS.values())
def test_fields_are_numbers_that_a_state_can_hold(kind: type) -> None:
    assert {field.type for field in fields(kind)} <= {int, float}


@pytest.mark.parametrize("way", WAYS, ids=repr)
@pytest.mark.parametrize("neighbours", get_args(Neighbours))
@pytest.mark.parametrize("accountant", get_args(Accountant))
def test_what_is_said_is_what_is_done(
    way: Sampling | None, neighbours: Neighbours, accountant: Accountant
) -> None:
    asked = stated(way)
    assert 0 < asked.probability <= 1
    assert sampling_from_plain(sampling_to_plain(way), "here") == way
    if (lacking := asked.lacks(accountant, neighbours)) is not None:
        with pytest.raises(ValueError, match="dp-accounting has no bound") as error:
            epsilon(2.0, way, 3, 1e-5, accountant, neighbours)
        assert lacking in str(error.value)
        return
    ledger = Ledger(accountant, neighbours)
    kind = BandedRelease(2.0, asked.turns, way, 1.0) if way and way.takes_turns else None
    ledger.record(kind or GaussianRelease(2.0, way, 1.0), 3)
    assert asked.sentence in statement(ledger, 1e-5)
    assert ("kept secret" in statement(ledger, 1e-5)) == asked.by_chance
    found = epsilon(2.0, way, 3, 1e-5, accountant, neighbours)
    assert ledger.spent(1e-5) == pytest.approx(found)
    # What the search for noise begins with.
    begin = stated(asked.for_rdp(neighbours)).in_turn()
    assert stated(begin).lacks("rdp", neighbours) is None


def test_distances() -> None:
    told = [
        (stated(w).distance("add-or-remove-one"), stated(w).distance("replace-one")) for w in WAYS
    ]
    assert told == [(2.0, 2.0) if isinstance(w, TruncatedPoisson) else (1.0, 2.0) for w in WAYS]


def test_nothing_is_taken_at_its_word_that_is_not_in_the_table() -> None:
    with pytest.raises(ValueError, match="sample_rate must be"):
        as_sampling(Unamplified())
