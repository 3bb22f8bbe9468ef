"""What a way to draw batches says of itself, so that nothing else has to know which one it is.

The accountant, the grid of its losses, the ledger, the privacy statement and checkpoints ask the
value. Two data sets are neighbours, for which a promise holds, if

| neighbours            | one is the other ...           | so a sum over all samples moves by |
|-----------------------|--------------------------------|------------------------------------|
| "add-or-remove-one"   | with one sample more or less   | C                                  |
| "replace-one"         | with one sample replaced       | 2 C                                |
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import dp_accounting

Accountant = Literal["pld", "rdp"]
Neighbours = Literal["add-or-remove-one", "replace-one"]


class Sampling(ABC):
    """A way to draw a batch.

    A new one is a frozen dataclass of numbers that derives from this class, in
    `fxdp.privacy.sampling`, with a row in the table there, and a sampler of `fxdp.data` that draws
    so. A field that is an `int` is a whole number in checkpoints, too.

    Guarantees:
        `event`, `lacks` and `distance` hold for batches that are drawn afresh in this way in each
        step; of those that take turns, for `in_turn()`.

    Attributes:
        takes_turns: whether no sample is in two of any `turns` batches in a row, each drawn from
            its part of the data as `in_turn()` says, whatever the others. Noise of up to `turns`
            bands needs that, and a release of it is a `BandedRelease`.
    """

    takes_turns: ClassVar[bool] = False

    @property
    @abstractmethod
    def probability(self) -> float:
        """With which a sample is in a batch, if it is its turn; in (0, 1]."""

    @property
    @abstractmethod
    def sentence(self) -> str:
        """How batches were drawn, in a sentence of the privacy statement."""

    @abstractmethod
    def event(self, noise: dp_accounting.GaussianDpEvent) -> dp_accounting.DpEvent:
        """One noisy sum over a batch, for dp-accounting.

        Args:
            noise: on a sum over a known batch, in the units of the accountant that is asked.
        """

    @abstractmethod
    def lacks(self, accountant: Accountant, neighbours: Neighbours) -> str | None:
        """What dp-accounting has no bound for, with what would be right; None if it has one."""

    def distance(self, neighbours: Neighbours) -> float:
        """How far data sets that are neighbours move the sum of a known batch, in units of C."""
        return 2.0 if neighbours == "replace-one" else 1.0

    def for_rdp(self, neighbours: Neighbours) -> "Sampling | None":
        """A way to draw that RDP can account for, and that needs about as much noise; None for
        known batches."""
        return self

    @property
    def known_samples(self) -> int | None:
        """The size of the data set, where the way to draw rests on it; else None."""
        return None

    @property
    def by_chance(self) -> bool:
        """Does it rest on batches being drawn at random, and kept secret?"""
        return True

    @property
    def turns(self) -> int:
        """How many parts of the data have their turns one after another; 1 if all are drawn from
        each time."""
        return 1

    def in_turn(self) -> "Sampling | None":
        """How a batch is drawn from the part whose turn it is; None if that is known."""
        return self


@dataclass(frozen=True)
class Unamplified(Sampling):
    """Whoever the adversary knows to be in a batch: what None stands for."""

    @property
    def probability(self) -> float:
        return 1.0

    @property
    def sentence(self) -> str:
        return "Nothing is assumed about how the batches were drawn."

    def event(self, noise: dp_accounting.GaussianDpEvent) -> dp_accounting.DpEvent:
        return noise

    def lacks(self, accountant: Accountant, neighbours: Neighbours) -> str | None:
        return None

    def for_rdp(self, neighbours: Neighbours) -> Sampling | None:
        return None

    @property
    def by_chance(self) -> bool:
        return False


def stated(sampling: Sampling | None) -> Sampling:
    """A way to draw, to be asked; None, which amplifies nothing, as a value."""
    return Unamplified() if sampling is None else sampling
