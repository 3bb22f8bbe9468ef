"""Renyi divergences of releases: dp-accounting's, of each event computed once.

Divergences add up, so the account of many releases is a sum of those of one, and how many steps fit
a budget is found without computing any of them again. dp-accounting would, at every question.
"""

import functools
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import dp_accounting
import numpy as np
from dp_accounting import rdp

# The orders that dp-accounting chooses itself.
ORDERS: tuple[float, ...] = tuple(rdp.RdpAccountant().orders.tolist())
# Those of them that take no series: enough to come near an answer.
WHOLE_ORDERS = tuple(order for order in ORDERS if order.is_integer())


@dataclass(frozen=True)
class RenyiAccount:
    """Renyi divergences, order by order.

    Attributes:
        neighboring_relation: which data sets must not be distinguishable.
        orders: above 1.
        divergences: one for each order, of all that was composed; inf where there is no bound.
    """

    neighboring_relation: dp_accounting.NeighboringRelation
    orders: tuple[float, ...] = ORDERS
    divergences: Sequence[float] = ()

    def composed(self, event: dp_accounting.DpEvent, count: int) -> "RenyiAccount":
        """The account with an event in it, `count` > 0 times more."""
        one = divergences(event, self.neighboring_relation, self.orders)
        before = np.asarray(self.divergences or [0.0] * len(self.orders))
        return replace(self, divergences=tuple((before + count * np.asarray(one)).tolist()))

    def get_epsilon(self, delta: float) -> float:
        """The least epsilon at delta, in nats, over the orders; 0 of nothing."""
        if not self.divergences:
            return 0.0
        with no_report_of_skipped_orders():
            return float(rdp.compute_epsilon(self.orders, self.divergences, delta)[0])


@functools.lru_cache(maxsize=512)
def divergences(
    event: dp_accounting.DpEvent,
    relation: dp_accounting.NeighboringRelation,
    orders: tuple[float, ...],
) -> tuple[float, ...]:
    """Renyi divergences of one event."""
    account = rdp.RdpAccountant(orders, relation)
    with no_report_of_skipped_orders():
        account.compose(event)
    return tuple(account.rdp.tolist())


@contextmanager
def no_report_of_skipped_orders() -> Generator[None]:
    """Keeps dp-accounting from logging a line for every Renyi order that it leaves out.

    Epsilon is the least over the orders, so one order fewer makes it larger at worst: there is
    nothing for the reader of the log to do.
    """
    log = logging.getLogger("absl")

    def wanted(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in record.getMessage()

    log.addFilter(wanted)
    try:
        yield
    finally:
        log.removeFilter(wanted)
