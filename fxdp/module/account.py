"""What a private module has released, and whether it may release more.

The step itself counts: a release asks the ledger before, and is recorded in it after.
"""

import copy
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from torch import Tensor

from fxdp.backend.delivery import Gradients
from fxdp.data.handed import Handed, Ticket, tickets
from fxdp.diagnostics.errors import StepError
from fxdp.mechanism.correlated import Correlation
from fxdp.module.public import Public, as_assumed
from fxdp.privacy.accounting import check_supported
from fxdp.privacy.budget import Budget
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.release import BandedRelease, CountedRelease, GaussianRelease, Release
from fxdp.privacy.sampling_rule import Sampling, stated
from fxdp.proof.certificate import Assumption

VERSION = 2  # of the state


@dataclass
class Account:
    """The releases of one module.

    Guarantees:
        What releases does so in `released`: it is checked before anything is computed, and
        recorded once it is computed and before it reaches a parameter; one at a time, whatever
        the threads.

    ================================  ==========================================
    case                              what happens
    ================================  ==========================================
    the budget does not allow it      BudgetExhausted; no gradient, no record
    the backward pass fails           no gradient, no record
    interrupted                       the same before the record; after it, a
                                      release that was counted
    a loss without a backward pass    no record; an error at the next step if it
                                      is still there
    a batch that was released before  StepError; no record (where `batches` is known)
    parts of two batches in one       StepError; no record (likewise)
    ================================  ==========================================

    Attributes:
        ledger: the releases.
        sampling: how batches are drawn; None if nothing is to be amplified.
        budget: what may be spent; None if nothing is refused.
        noise: what correlates the noise of the releases; None where it is independent.
        batches: what the sampler handed out, for the releases to be of; None if unknown.
        public: what the steps took as public.
    """

    ledger: Ledger
    sampling: Sampling | None = None
    budget: Budget | None = None
    noise: Correlation | None = None
    batches: Handed | None = None
    public: Public = field(default_factory=Public)
    process: int = field(default_factory=os.getpid)  # whose ledger it is
    _open: "weakref.ref[Tensor] | None" = field(default=None, repr=False)
    _lock: Any = field(default_factory=threading.RLock, repr=False)
    _batch: Ticket | None = field(default=None, repr=False)  # of the release that is under way
    _last: GaussianRelease | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_supported(self.sampling, self.ledger.accountant, self.ledger.neighbours)
        bands = self.noise.strategy.bands if self.noise else 1
        if bands > stated(self.sampling).turns:
            raise ValueError(
                f"noise of {bands} bands is accounted for where no sample is in two of any {bands} "
                f"batches in a row, and sample_rate is {self.sampling!r}: draw with "
                f"fxdp.data.CyclicPoissonSampler(..., parts={bands}), or more, and pass its "
                "sampling; or, for batches in a fixed order, CyclicPoisson(1, parts)"
            )

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

    def take(self, arguments: Any, *, part: bool = False) -> None:
        """Refuse a step on samples that no batch of the sampler gives a right to.

        Args:
            arguments: of the step.
            part: whether the step goes on with a logical batch.

        Raises:
            StepError: the batch was released before, is left out of turn, or none was drawn.
        """
        if self.batches is None:
            return
        found = tickets(arguments)
        before = {self._batch} - {None} if part else set[Ticket | None]()
        self._batch = next(iter(found), self._batch if part else None)
        if len(found) > 1 or (found and before):
            self._refuse("it holds samples of two batches, or those of one twice")
        self._refuse(self.batches.refusal(self._batch, stated(self.sampling).takes_turns))

    def settle(self) -> None:
        """Refuse to end here, where a run that goes on elsewhere would leave a turn out.

        Raises:
            StepError: a batch of its turn was drawn, and not released.
        """
        turns = stated(self.sampling).takes_turns
        if turns and self.batches is not None and self.batches.waits:
            raise StepError(
                "a batch was drawn that was not released, and would be left out by a run that goes "
                "on from here, where every turn counts: save after its step"
            )

    def _refuse(self, why: str | None) -> None:
        """Raises StepError if there is a reason to."""
        if why is not None:
            raise StepError(
                f"this batch cannot be released: {why}. Each batch that was drawn is released at "
                "most once: take batches from the loader itself, which gives the next ones each "
                "time it is iterated (a list of them, itertools.cycle and two steps on one batch "
                "repeat some); or account without sample_rate. Nothing was released"
            )

    def watch(self, loss: Tensor) -> None:
        """Know of a loss that waits for its backward pass."""
        self._open = weakref.ref(loss)

    def released(
        self, release: Release, work: Callable[[], Gradients], then: Callable[[], None]
    ) -> Gradients:
        """The gradients that `work` makes, as one release.

        Args:
            then: called once it is recorded.

        Raises:
            BudgetExhausted: it would exceed the budget.
        """
        with self._lock:
            self._open = None
            self.ask(release)
            gradients = work()
            self.ledger.record(release)
            if self.batches is not None:
                self.batches.release(self._batch)
            self._batch = None
            then()
        return gradients

    def release(
        self, noise_multiplier: float, max_grad_norm: float, count_noise: float | None = None
    ) -> Release:
        """A release at these scales, as a value; with a noisy count as well, if that has noise."""
        if count_noise is not None:
            return CountedRelease(noise_multiplier, count_noise, self.sampling, max_grad_norm)
        if self.sampling is not None and self.sampling.takes_turns:
            bands = self.noise.strategy.bands if self.noise else 1
            return BandedRelease(noise_multiplier, bands, self.sampling, max_grad_norm)
        wanted = noise_multiplier, self.sampling, max_grad_norm
        last = self._last
        if last is None or (last.noise_multiplier, last.sampling, last.max_grad_norm) != wanted:
            last = self._last = GaussianRelease(*wanted)
        return last

    def ask(self, release: Release) -> None:
        """Check a release that is about to happen.

        Raises:
            StepError: its batch was released before.
            BudgetExhausted: it would exceed the budget.
        """
        if self.batches is not None:
            self._refuse(self.batches.refusal(self._batch))
        if self.budget is not None:
            self.ledger.check(release, self.budget)

    def taken_as_public(self) -> tuple[str, ...]:
        """What the privacy of the releases rests on being public, each as a phrase."""
        count = self.ledger.unprotected
        times = "once" if count == 1 else f"{count:,} times"
        plain = f"the data of which plain gradients were asked for, {times}, by fxdp.unprotected"
        return (*self.public.phrases(), *((plain,) if count else ()))

    def assumptions(self) -> tuple[Assumption, ...]:
        """All rows of a certificate that no graph shows."""
        rows = self.public.assumptions()
        return (
            *rows,
            *(as_assumed(t) for t in self.taken_as_public()[len(self.public.phrases()) :]),
        )

    def state_dict(self) -> dict[str, Any]:
        """The ledger in plain types; what was spent must not be lost with the process. And the
        noise that the next step's goes on from, as tensors: secret."""
        noise = self.noise.state_dict() if self.noise else None
        return {
            "version": VERSION,
            "ledger": self.ledger.state_dict(),
            "noise": noise,
            "public": self.public.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what another run has spent.

        Raises:
            StepError: releases were counted here, which would be forgotten.
            ValueError: the state is malformed, or of another accountant, relation or noise;
                nothing has changed then.
        """
        if self.ledger.releases:
            raise StepError(
                f"{self.ledger.releases} releases were counted here already, which loading would "
                "forget: load before the first step"
            )
        if state.get("version") != VERSION or set(state) - {"public"} != {
            "version",
            "ledger",
            "noise",
        }:
            raise ValueError(
                f"privacy state: must have a ledger, noise and version {VERSION}, got "
                f"{sorted(state)} and version {state.get('version')!r}"
            )
        if (state["noise"] is None) != (self.noise is None):
            there, here = ("independent", "pass none") if self.noise else ("correlated", "pass it")
            raise ValueError(f"privacy state: the noise is {there}, as for noise=: {here}")
        read = Ledger()
        read.load_state_dict(state["ledger"])
        for name in ("accountant", "neighbours"):
            theirs, own = getattr(read, name), getattr(self.ledger, name)
            if theirs != own:
                raise ValueError(f"privacy state: {name} is {theirs!r}, and here {own!r}")
        noise = self.noise.loaded(state["noise"]) if self.noise else None
        public = self.public.loaded(state.get("public"))
        trial = Ledger()
        trial.load_state_dict(state["ledger"])
        trial.record(self.release(1.0, 1.0))  # or the next step could not be counted
        self.ledger, self.noise, self.public = read, noise, public

    def __deepcopy__(self, memo: dict[int, Any]) -> "Account":
        """The same account of a copy: what was learnt from the data was paid for once."""
        ledger = Ledger()
        ledger.load_state_dict(self.ledger.state_dict())
        noise, public = self.noise and self.noise.anew(), copy.deepcopy(self.public)
        return Account(ledger, self.sampling, self.budget, noise, self.batches, public)


def as_budget(budget: Any) -> Budget | None:
    """(epsilon, delta) as a value.

    Raises:
        TypeError, ValueError: it is not such a pair, or out of range.
    """
    match budget:
        case None | Budget():
            return budget
        case (Real() | Tensor() as epsilon, Real() | Tensor() as delta):
            return Budget(epsilon, delta)  # type: ignore[arg-type] # which checks them
        case _:
            raise TypeError(f"budget must be (epsilon, delta), not {budget!r}")
