"""What a private module has released, and whether it may release more.

The step itself counts: what releases a gradient asks the ledger before, and tells it after.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxdp.privacy.accounting import check_supported
from fxdp.privacy.budget import Budget
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.release import CountedRelease, GaussianRelease, Release
from fxdp.privacy.sampling import Sampling

VERSION = 1  # of the state


class StepError(RuntimeError):
    """Steps that do not follow one another: nothing was released, and nothing was counted."""


@dataclass
class Account:
    """The releases of one module.

    Guarantees:
        Each backward pass through a watched loss is one release: it is checked before anything
        is computed, and recorded once it is computed and before it reaches a parameter.

    ================================  ==========================================
    case                              what happens
    ================================  ==========================================
    the budget does not allow it      BudgetExhausted; no gradient, no record
    the backward pass fails           no gradient, no record
    a loss without a backward pass    no record; an error at the next step if it
                                      is still there
    retain_graph, for a second pass   RuntimeError of torch's; no record
    ================================  ==========================================

    Attributes:
        ledger: the releases.
        sampling: how batches are drawn; None if nothing is to be amplified.
        budget: what may be spent; None if nothing is refused.
    """

    ledger: Ledger
    sampling: Sampling | None = None
    budget: Budget | None = None
    _open: "weakref.ref[Tensor] | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_supported(self.sampling, self.ledger.accountant, self.ledger.neighbours)

    def begin(self) -> None:
        """Refuse a step while the loss of the one before waits for its backward pass.

        Raises:
            StepError: it waits.
        """
        if self._open is not None and self._open() is not None:
            raise StepError(
                "the last step's loss is still there, and loss.backward() was not called: call "
                "it, or delete the loss, before the next step"
            )

    def watch(self, loss: Tensor, release: Release, then: Callable[[], None]) -> None:
        """Check and record the release that a loss's backward pass is.

        Args:
            then: called once it is recorded.

        Raises:
            BudgetExhausted: in that pass.
        """
        if loss.grad_fn is None:
            return

        def done(*_: object) -> None:
            self.count(release)
            then()

        loss.grad_fn.register_prehook(lambda _: self.ask(release))
        loss.grad_fn.register_hook(done)
        self._open = weakref.ref(loss)

    def release(
        self, noise_multiplier: float, max_grad_norm: float, count_noise: float | None = None
    ) -> Release:
        """A release at these scales, as a value; with a count beside the sum if that has noise."""
        if count_noise is None:
            return GaussianRelease(noise_multiplier, self.sampling, max_grad_norm)
        return CountedRelease(noise_multiplier, count_noise, self.sampling, max_grad_norm)

    def ask(self, release: Release) -> None:
        """Check a release that is about to happen.

        Raises:
            BudgetExhausted: it would exceed the budget.
        """
        if self.budget is not None:
            self.ledger.check(release, self.budget)

    def count(self, release: Release) -> None:
        """Record a release that has happened."""
        self.ledger.record(release)
        self._open = None

    def state_dict(self) -> dict[str, Any]:
        """The ledger in plain types; what was spent must not be lost with the process."""
        return {"version": VERSION, "ledger": self.ledger.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what another run has spent.

        Raises:
            StepError: releases were counted here, which would be forgotten.
            ValueError: the state is malformed, or of another accountant or relation; nothing has
                changed then.
        """
        if self.ledger.releases:
            raise StepError(
                f"{self.ledger.releases} releases were counted here already, which loading would "
                "forget: load before the first step"
            )
        if set(state) != {"version", "ledger"} or state["version"] != VERSION:
            raise ValueError(
                f"privacy state: must have a ledger and version {VERSION}, got {sorted(state)}"
            )
        read = Ledger()
        read.load_state_dict(state["ledger"])
        for name in ("accountant", "neighbours"):
            theirs, own = getattr(read, name), getattr(self.ledger, name)
            if theirs != own:
                raise ValueError(f"privacy state: {name} is {theirs!r}, and here {own!r}")
        self.ledger = read

    def __deepcopy__(self, memo: dict[int, Any]) -> "Account":
        """The same account of a copy: what was learnt from the data was paid for once."""
        ledger = Ledger()
        ledger.load_state_dict(self.ledger.state_dict())
        return Account(ledger, self.sampling, self.budget)


def as_budget(budget: Any) -> Budget | None:
    """(epsilon, delta) as a value.

    Raises:
        TypeError, ValueError: it is no such pair, or out of range.
    """
    match budget:
        case None | Budget():
            return budget
        case (int() | float() as epsilon, int() | float() as delta):
            return Budget(float(epsilon), float(delta))
        case _:
            raise TypeError(f"budget must be (epsilon, delta), not {budget!r}")
