"""The releases so far, what they cost, and whether one more fits the budget.

Equal releases in a row are kept as one run with a count, so a million steps take no more room
than one. Whether one more fits is asked of the accountant for many more steps than there were
in a row, and then counted down: a thousand equal steps ask it some ten times.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fxdp.arguments import require, require_delta, require_one_of, require_whole
from fxdp.privacy.accounting import (
    Composed,
    Tally,
    check_supported,
    compose,
    epsilon_of,
    epsilon_of_one,
    with_more,
)
from fxdp.privacy.budget import Budget, BudgetExhausted
from fxdp.privacy.release import Release, Run
from fxdp.privacy.sampling_rule import Accountant, Neighbours
from fxdp.privacy.search import most_steps
from fxdp.privacy.state import LedgerState
from fxdp.privacy.turns import Kind, Turns, kind_of, renumbered

AHEAD = 15  # times as many steps as there were in a row are asked for at once


class Ledger:
    """What has been released, in order.

    Guarantees:
        `spent(delta)` is an upper bound: the sequence of all releases that were recorded is
        (spent, delta)-differentially private for `neighbours`, under what `fxdp.privacy.epsilon`
        assumes of each. If `check` is asked before every release and `record` called for it, with
        one budget, then `spent(budget.delta)` never exceeds budget.epsilon.

    | edge case                          | what happens                                    |
    |------------------------------------|-------------------------------------------------|
    | nothing was recorded               | spent is 0                                      |
    | a release without noise            | spent is inf; `check` refuses it                |
    | a budget with epsilon = inf        | `check` refuses nothing                         |
    | a release that this accountant has no bound for | ValueError, and nothing is recorded |
    | count = 0                          | nothing is recorded                             |
    | ledgers added                      | composition: both ran on the same data          |
    | ... of other neighbours or another accountant | ValueError                           |
    | ... both with `BandedRelease`      | their streams are kept apart                    |
    | a stream of which the bands or the way to draw change | ValueError, nothing recorded |

    Args:
        accountant: "pld" or "rdp", as for `fxdp.privacy.epsilon`.
        neighbours: the relation of everything that the ledger says.

    Raises:
        ValueError: an argument is none of those.
    """

    def __init__(
        self, accountant: Accountant = "pld", neighbours: Neighbours = "add-or-remove-one"
    ) -> None:
        require_one_of(Accountant, "accountant", accountant)
        require_one_of(Neighbours, "neighbours", neighbours)
        self.accountant: Accountant = accountant
        self.neighbours: Neighbours = neighbours
        self._runs = list[Run]()
        self._turns = Turns()
        self._count = 0
        self._unprotected = 0
        self._forget()

    @property
    def runs(self) -> tuple[Run, ...]:
        """All releases in order, equal neighbours merged."""
        return tuple(self._runs)

    @property
    def tally(self) -> Tally:
        """How often each mechanism was used, in whatever order; where the data have turns, on
        the samples of the part that had most."""
        return dict(self._turns.tally)

    @property
    def releases(self) -> int:
        """How many releases were recorded."""
        return self._count

    @property
    def unprotected(self) -> int:
        """How many times the model was let run with plain gradients, on data taken as public."""
        return self._unprotected

    def note_unprotected(self, count: int = 1) -> None:
        """Notes that plain gradients were asked for; they cost nothing if the data are public."""
        self._unprotected += require_whole("count", count, 0)

    def record(self, release: Release, count: int = 1) -> None:
        """Adds a release that happens now, `count` times, as fast as once.

        Raises:
            ValueError: the accountant has no bound for it, its stream was another, or `count` is
                no whole number >= 0.
        """
        count = require_whole("count", count, 0)
        check_supported(release.sampling, self.accountant, self.neighbours)
        turns = self._turns.after(release, count)
        if count == 0:
            return
        if self._runs and self._runs[-1].release == release:
            self._runs[-1] = Run(release, self._runs[-1].count + count)
        else:
            self._runs.append(Run(release, count))
        self._turns = turns
        self._count += count
        grant = self._grant
        same = grant is not None and grant.kind == kind_of(release)
        self._grant = replace(grant, left=grant.left - count) if same and grant else None

    def spent(self, delta: float) -> float:
        """Epsilon of everything recorded, in nats, at `delta` in (0, 1); inf without noise."""
        delta = require_delta(delta)
        if not self._runs:
            return 0.0
        at = (delta, self.releases)
        if at not in self._asked:
            self._asked = {at: self._after(self._runs[-1].release, 0, delta)}
        return self._asked[at]

    def would_exceed(self, release: Release, budget: Budget) -> bool:
        """Whether `release`, once more, would spend more than `budget`; nothing is recorded.

        Raises:
            ValueError: the accountant has no bound for it.
        """
        check_supported(release.sampling, self.accountant, self.neighbours)
        if budget.epsilon == math.inf:
            return False
        grant = self._grant
        known = grant is not None and grant.kind == kind_of(release) and grant.budget == budget
        if grant is None or not known or (grant.left < 1 and not grant.final):
            grant = self._grant = self._searched(release, budget)
        return grant.left < 1

    def check(self, release: Release, budget: Budget) -> None:
        """Raises BudgetExhausted if `release` would exceed `budget`. Ask before releasing."""
        if self.would_exceed(release, budget):
            wanted = self._after(release, 1, budget.delta)
            raise BudgetExhausted(budget, self.spent(budget.delta), wanted, self.releases)

    def __repr__(self) -> str:
        return f"Ledger({self.releases} releases, {self.accountant!r}, {self.neighbours!r})"

    def __add__(self, other: "Ledger") -> "Ledger":
        """The ledger of both, one after the other, on the same data."""
        same = other.neighbours == self.neighbours
        require(same, "neighbours of the other ledger", other.neighbours, repr(self.neighbours))
        same = other.accountant == self.accountant
        require(same, "accountant of the other ledger", other.accountant, repr(self.accountant))
        both = Ledger(self.accountant, self.neighbours)
        both._unprotected = self._unprotected + other._unprotected
        both._take(self._runs)
        streams = 1 + max(self._turns.streams, default=-1)
        both._take(Run(renumbered(run.release, streams), run.count) for run in other._runs)
        return both

    def state_dict(self) -> dict[str, Any]:
        """The ledger in plain types, for JSON or torch.save and torch.load(weights_only=True)."""
        state = LedgerState(self.accountant, self.neighbours, self.runs, self._unprotected)
        return state.to_plain()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Becomes the ledger that gave `state`, with its accountant and neighbours.

        Raises:
            ValueError: the state is malformed; what was there before stays.
        """
        read = LedgerState.from_plain(state)
        for run in read.runs:
            check_supported(run.release.sampling, read.accountant, read.neighbours)
        turns = Turns()
        for run in read.runs:
            turns = turns.after(run.release, run.count)
        self.accountant, self.neighbours = read.accountant, read.neighbours
        self._runs, self._turns, self._count = list[Run](), Turns(), 0
        self._unprotected = read.unprotected
        self._forget()
        self._take(read.runs)

    def _take(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self.record(run.release, run.count)

    def _forget(self) -> None:
        """Drops what is kept only for speed."""
        self._grant: _Grant | None = None
        self._asked = dict[tuple[float, int], float]()  # the last answer of `spent`
        self._rest = _Rest({}, compose({}, self.accountant, self.neighbours))

    def _searched(self, release: Release, budget: Budget) -> "_Grant":
        @cache
        def after(more: int) -> float:
            return self._after(release, more, budget.delta)

        kind = kind_of(release)
        last = self._runs[-1] if self._runs else None
        in_a_row = last.count if last and kind_of(last.release) == kind else 0
        # Few questions where releases are equal, and one each where every one is new.
        wanted = max(1, AHEAD * in_a_row)
        if after(wanted) <= budget.epsilon:
            return _Grant(kind, budget, wanted, final=False)
        fits = most_steps(after, budget.epsilon, guess=wanted)
        return _Grant(kind, budget, fits, final=True)

    def _after(self, release: Release, more: int, delta: float) -> float:
        """Epsilon of the ledger with `release` in it so many times more."""
        tally = self._turns.after(release, more).tally
        mechanism = release.mechanism.uses(1)[0]
        rest = {used: count for used, count in tally.items() if used != mechanism}
        count = tally.get(mechanism, 0)
        if not rest:
            return epsilon_of_one(mechanism, count, self.accountant, self.neighbours, delta)
        if not self._rest.tally.items() <= rest.items():
            self._rest = _Rest({}, compose({}, self.accountant, self.neighbours))
        if new := dict(rest.items() - self._rest.tally.items()):
            self._rest = _Rest(rest, with_more(self._rest.account, new))
        return epsilon_of(with_more(self._rest.account, {mechanism: count}), delta)


@dataclass(frozen=True)
class _Grant:
    """`left` more releases of a kind were found to fit `budget`, and, if `final`, no more."""

    kind: Kind
    budget: Budget
    left: int
    final: bool


@dataclass(frozen=True)
class _Rest:
    """A tally with its account: what is in the ledger apart from the mechanism in use."""

    tally: Tally
    account: Composed
