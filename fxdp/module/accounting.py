"""How releases are counted, as one value: `fxdp.Accounting`."""

from dataclasses import dataclass

from fxdp.data import PrivateLoader, PrivateSampler
from fxdp.mechanism.correlated import Correlation
from fxdp.module.account import Account, as_budget
from fxdp.privacy.accounting import as_sampling, check_supported
from fxdp.privacy.budget import Budget
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.sampling_rule import Accountant, Neighbours, Sampling


@dataclass(frozen=True)
class Accounting:
    """How releases are counted, and how much they may cost; a module makes an account of it.

    Attributes:
        sample_rate: how batches are drawn: q of Poisson sampling, or what a sampler of `fxdp.data`
            has as `sampling`; or the sampler, or a loader of its batches, and then more releases
            than it drew batches are a StepError. None amplifies nothing.
        budget: (epsilon, delta); the backward pass that would exceed it raises BudgetExhausted
            and releases nothing. None refuses nothing.
        accountant, neighbours: as for `fxdp.privacy.epsilon`.

    Raises:
        TypeError, ValueError: an attribute is not as described, or the accountant has no bound for
            this way to draw.
    """

    sample_rate: float | Sampling | PrivateSampler | PrivateLoader | None = None
    budget: tuple[float, float] | Budget | None = None
    accountant: Accountant = "pld"
    neighbours: Neighbours = "add-or-remove-one"

    def __post_init__(self) -> None:
        check_supported(self.sampling, self.accountant, self.neighbours)
        as_budget(self.budget)

    @property
    def sampler(self) -> PrivateSampler | None:
        """What draws the batches, where that is known."""
        drawn_by = self.sample_rate
        drawn_by = drawn_by.batches if isinstance(drawn_by, PrivateLoader) else drawn_by
        return drawn_by if isinstance(drawn_by, PrivateSampler) else None

    @property
    def sampling(self) -> Sampling | None:
        """The way to draw, as the accountant takes it."""
        if (sampler := self.sampler) is not None:
            return sampler.sampling
        assert not isinstance(self.sample_rate, PrivateSampler | PrivateLoader)
        return as_sampling(self.sample_rate)

    def account(self, noise: Correlation | None = None) -> Account:
        """A new account, with nothing on it."""
        ledger = Ledger(self.accountant, self.neighbours)
        handed = self.sampler.handed if self.sampler is not None else None
        return Account(ledger, self.sampling, as_budget(self.budget), noise, handed)


def as_accounting(accounting: Accounting | None) -> Accounting:
    """The value, checked; by default nothing is amplified, and nothing refused.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(accounting, Accounting | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"accounting must be a fxdp.Accounting, not {accounting!r}")
    return accounting or Accounting()
