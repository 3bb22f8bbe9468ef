"""Divergences that are computed once and added up are those that dp-accounting composes."""

import math

import dp_accounting
import pytest
from dp_accounting import rdp

from fxdp.privacy.renyi import ORDERS, WHOLE_ORDERS, RenyiAccount, divergences

REMOVED = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACED = dp_accounting.NeighboringRelation.REPLACE_ONE
GAUSSIAN = dp_accounting.GaussianDpEvent(1.3)
EVENTS = [
    (dp_accounting.PoissonSampledDpEvent(0.1, GAUSSIAN), REMOVED),
    (GAUSSIAN, REMOVED),
    (dp_accounting.SampledWithoutReplacementDpEvent(50, 5, GAUSSIAN), REPLACED),
]


@pytest.mark.parametrize(("event", "relation"), EVENTS)
def test_epsilon_is_dp_accountings_to_the_bit(
    event: dp_accounting.DpEvent, relation: dp_accounting.NeighboringRelation
) -> None:
    theirs = rdp.RdpAccountant(neighboring_relation=relation)
    ours = RenyiAccount(relation)
    for again, count in ((event, 3), (GAUSSIAN, 1), (event, 2000)):
        theirs.compose(again, count)
        ours = ours.composed(again, count)
        for delta in (1e-6, 0.01):
            assert ours.get_epsilon(delta) == theirs.get_epsilon(delta)


def test_an_event_is_computed_once() -> None:
    event = dp_accounting.PoissonSampledDpEvent(0.0123, GAUSSIAN)
    before = divergences.cache_info()
    account = RenyiAccount(REMOVED, WHOLE_ORDERS)
    for count in (1, 10, 100):
        account.composed(event, count).get_epsilon(1e-5)
    after = divergences.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


def test_fewer_orders_bound_it_from_above() -> None:
    event = EVENTS[0][0]
    few, all_of_them = (RenyiAccount(REMOVED, o).composed(event, 9) for o in (WHOLE_ORDERS, ORDERS))
    assert len(WHOLE_ORDERS) < len(ORDERS)
    assert few.get_epsilon(1e-5) >= all_of_them.get_epsilon(1e-5) > 0


def test_nothing_and_no_noise() -> None:
    nothing = RenyiAccount(REMOVED)
    assert nothing.get_epsilon(1e-5) == 0
    bare = nothing.composed(dp_accounting.NonPrivateDpEvent(), 1)
    assert bare.get_epsilon(1e-5) == bare.composed(GAUSSIAN, 1).get_epsilon(1e-5) == math.inf
