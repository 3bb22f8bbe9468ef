"""Clip bounds and noise multipliers that change from step to step."""

from collections.abc import Callable

from fxdp.backend.options import check_scales
from fxdp.diagnostics.errors import StepError
from fxdp.module.private_module import PrivateModule
from fxdp.privacy.ledger import Ledger

Factor = Callable[[int], float]


class ScaleScheduler:
    """Sets the scales of a private module by how many releases there were.

        scheduler = fxdp.ScaleScheduler(private, noise_multiplier=lambda step: 0.999**step)
        for x, y in loader:
            private(x, y).backward()
            optimizer.step()
            scheduler.step()

    A factor is a function of the number of releases, times the value that the module had when the
    scheduler was made, as in `torch.optim.lr_scheduler.LambdaLR`. The number is the ledger's, so a
    run that is resumed goes on where it was, and there is no state to be saved: make the scheduler
    as before, and then load the checkpoint.

    Guarantees:
        What is clipped, what is noised and what is recorded have the same scales in every step,
        also if `step` is forgotten: they come from the module, where they stand once.

    ===================================  =========================================
    case                                 what happens
    ===================================  =========================================
    a factor that gives no valid scale   ValueError, and the scales stay
    a step without a call of `step`      the scales of the step before
    a logical batch that has begun       keeps its scales to the end
    ===================================  =========================================

    Args:
        private: what to set.
        noise_multiplier, max_grad_norm: factors; None leaves a scale alone.

    Raises:
        ValueError: `max_grad_norm` is given, and clipping is adaptive already; or a factor gives no
            valid scale at the beginning.
        StepError: there were releases already, so that the module's values may be scaled ones.
    """

    def __init__(
        self,
        private: PrivateModule,
        *,
        noise_multiplier: Factor | None = None,
        max_grad_norm: Factor | None = None,
    ) -> None:
        if max_grad_norm is not None and private.clipping.moves_bound:
            raise ValueError("max_grad_norm cannot follow a schedule where clipping is adaptive")
        if private.releases:
            raise StepError(
                f"there were {private.releases} releases, and the scales may have been moved "
                "already: make the scheduler before the first step, and before load_checkpoint"
            )
        self.private = private
        self._base = (private.max_grad_norm, private.noise_multiplier)
        self._factors = (max_grad_norm, noise_multiplier)
        self.step()

    def at(self, releases: int) -> tuple[float, float]:
        """The clip bound and the noise multiplier after so many releases.

        Raises:
            ValueError: a factor gives no valid scale.
        """
        now = (self.private.max_grad_norm, self.private.noise_multiplier)
        bound, sigma = (
            value if factor is None else base * factor(releases)
            for base, factor, value in zip(self._base, self._factors, now, strict=True)
        )
        check_scales(bound, sigma, self.private.expected_batch_size)
        return bound, sigma

    def step(self) -> None:
        """Set the scales of the next step."""
        self.private.max_grad_norm, self.private.noise_multiplier = self.at(self.private.releases)

    def planned(self, steps: int) -> Ledger:
        """The ledger as it would be after so many more steps; ask it for `spent(delta)`."""
        done = self.private.ledger
        found = Ledger(done.accountant, done.neighbours) + done
        for step in range(done.releases, done.releases + steps):
            found.record(self.private.planned_release(*self.at(step)))
        return found
