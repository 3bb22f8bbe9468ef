"""A privacy budget, and the refusal to go beyond it."""

import math
from dataclasses import dataclass

from fxdp.arguments import plain, require_delta, require_epsilon


@dataclass(frozen=True)
class Budget:
    """At most `epsilon` at `delta`.

    Attributes:
        epsilon: in nats; in (0, inf]. With inf nothing is ever refused.
        delta: in (0, 1).

    Raises:
        ValueError: an attribute is out of its range.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        plain(self)
        require_epsilon(self.epsilon)
        require_delta(self.delta)


class BudgetExhausted(RuntimeError):
    """The next release would exceed the budget; it has not happened.

    Attributes:
        budget: what may be spent.
        spent: epsilon of the releases so far, at the budget's delta.
        wanted: what epsilon would be after the next one.
        releases: how many there were so far.
    """

    def __init__(self, budget: Budget, spent: float, wanted: float, releases: int) -> None:
        super().__init__(
            f"one more release would spend epsilon {_up(wanted)} at delta {budget.delta:g}, and "
            f"the budget is {budget.epsilon:g} (spent so far: {_up(spent)} in {releases} "
            "releases); nothing was released. Stop here, raise the budget, or release with more "
            "noise"
        )
        self.budget = budget
        self.spent = spent
        self.wanted = wanted
        self.releases = releases


def _up(epsilon: float) -> str:
    return rounded_up(epsilon, 4)


def rounded_up(epsilon: float, decimals: int) -> str:
    """Epsilon as text, never below what it is; "inf" for infinity."""
    if epsilon == math.inf:
        return "inf"
    scale = 10**decimals
    return f"{math.ceil(epsilon * scale) / scale:.{decimals}f}"
