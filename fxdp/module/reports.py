"""What a private step reports: its ledger and epsilon, its norms, one row for each parameter.

Both kinds of step report it: a `PrivateModule`, and what torch.compile made (`step.privacy`).
"""

from typing import Any

from torch import Tensor

from fxdp.backend.options import Scales
from fxdp.graph.report import Report, report
from fxdp.graph.study import Study
from fxdp.module.account import Account
from fxdp.module.tally import Tally
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.statement import statement


class Reports:
    """What was released so far, and what is known of the last release and of the graph."""

    _account: Account
    _last: Tally  # of the last release

    @property
    def _scales(self) -> Scales:
        raise NotImplementedError

    def _study(self) -> Study:
        """What is known of the graph that was compiled last.

        Raises:
            RuntimeError: nothing was compiled yet.
        """
        raise NotImplementedError

    @property
    def last_norms(self) -> Tensor:
        """[N] gradient norms of the samples of the last release, in order.

        Not protected by DP: never publish them.
        """
        return self._last.norms()

    @property
    def last_nonfinite(self) -> int:
        """How many samples of the last release added nothing to it, because their loss was
        infinite, or their gradient infinite or NaN. Not protected by DP: never publish it."""
        return self._last.nonfinite()

    @property
    def sensitivity(self) -> float:
        """How far one sample, added or removed, moves the released gradient: C / L, in L2 norm.

        Before the user scales the loss by a constant, which scales this too.
        """
        bound, _, expected = self._scales
        return bound / expected

    @property
    def releases(self) -> int:
        """How many private gradients were released, as the ledger counts them."""
        return self._account.ledger.releases

    @property
    def ledger(self) -> Ledger:
        """What was released so far: one entry for each step's backward pass."""
        return self._account.ledger

    def report(self) -> Report:
        """One row for each parameter: its sums, their form, strategy and predicted cost."""
        return report(self._study())

    def privacy_spent(self, delta: float) -> float:
        """Epsilon, in nats, of all that was released so far; inf without noise.

        Guarantees:
            The released gradients, and whatever was made of them, are (epsilon, delta)
            differentially private for the ledger's neighbours, if batches were drawn as
            `sample_rate` says; without one, whoever knows the batches may be the adversary.

        Args:
            delta: in (0, 1).
        """
        return self.ledger.spent(delta)

    def privacy_statement(self, delta: float, num_samples: int | None = None) -> str:
        """What may be claimed of the training so far, in words, with the assumptions."""
        return statement(self.ledger, delta, num_samples, self._account.taken_as_public())

    def privacy_state_dict(self) -> dict[str, Any]:
        """What was released so far, for `torch.load(weights_only=True)`.

        Save it with `state_dict()` in every checkpoint; that one has the model's keys alone.
        In plain types; correlated noise comes along as tensors, and then it is secret.
        """
        return self._account.state_dict()

    def load_privacy_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what another run has spent; before the first step.

        Raises:
            StepError: releases were counted here, which would be forgotten.
            ValueError: the state is malformed, or of another accountant or relation.
        """
        self._account.load_state_dict(state)
