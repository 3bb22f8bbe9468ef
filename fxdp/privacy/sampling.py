"""The ways to draw a batch that the accountant knows, as values.

A sampler of `fxdp.data` states its way as one of these, and the accountant amplifies by
nothing else: so the two cannot disagree. Where batches are not secret, or are not drawn by
chance, the way is None, and nothing is amplified.

| value                     | who is in a batch                       | neighbours, accountants   |
|---------------------------|-----------------------------------------|---------------------------|
| Poisson(q)                | everyone, by a coin toss of their own   | add or remove: PLD, RDP;  |
|                           |                                         | replace: PLD              |
| TruncatedPoisson(q, n, b) | the same, but of more than b a random b | both: PLD                 |
| FixedSize(n, b)           | a random b of n                         | replace: RDP              |
| CyclicPoisson(q, parts)   | of one part after another, as Poisson(q) | as Poisson               |
| None                      | whoever the adversary knows to be there | both: PLD, RDP            |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import dp_accounting

from fxdp.arguments import require, require_rate, require_whole
from fxdp.privacy.sampling_rule import Accountant, Neighbours, Sampling


@dataclass(frozen=True)
class Poisson(Sampling):
    """Each sample joins each batch with probability `rate`, independently of all others.

    Raises:
        ValueError: `rate` is not in (0, 1].
    """

    rate: float

    def __post_init__(self) -> None:
        require_rate("rate", self.rate)

    @property
    def probability(self) -> float:
        return self.rate

    @property
    def sentence(self) -> str:
        return (
            f"Each sample was in each batch with probability {self.rate:g}, independently of all "
            "others (Poisson sampling)."
        )

    def event(self, noise: dp_accounting.GaussianDpEvent) -> dp_accounting.DpEvent:
        """A mixture; of one Gaussian, dp-accounting would need a thousand times longer."""
        return noise if self.rate == 1 else dp_accounting.PoissonSampledDpEvent(self.rate, noise)

    def lacks(self, accountant: Accountant, neighbours: Neighbours) -> str | None:
        if (accountant, neighbours) == ("rdp", "replace-one"):
            return "Poisson for 'replace-one' by 'rdp': pass accountant='pld'"
        return None

    def for_rdp(self, neighbours: Neighbours) -> Sampling | None:
        """None for replaced samples: too much noise, but a place to start from."""
        return self if neighbours == "add-or-remove-one" else None


@dataclass(frozen=True)
class TruncatedPoisson(Sampling):
    """Poisson sampling, but a batch above `max_batch_size` keeps a random subset of that size.

    Truncation couples the samples: one that is removed may make room for another. So the
    account needs the size of the data set, which is thereby taken as public, and costs more
    than `Poisson` the more often batches are truncated (arXiv 2508.15089).

    Attributes:
        rate: in (0, 1].
        num_samples: size of the data set, >= 1; of the larger one of two neighbours.
        max_batch_size: in 1..num_samples.

    Raises:
        ValueError: an attribute is out of its range.
    """

    rate: float
    num_samples: int
    max_batch_size: int

    def __post_init__(self) -> None:
        require_rate("rate", self.rate)
        _require_part("max_batch_size", self.max_batch_size, self.num_samples)

    @property
    def probability(self) -> float:
        return self.rate  # before truncation

    @property
    def sentence(self) -> str:
        most = self.max_batch_size
        return (
            f"Each sample was in each batch with probability {self.rate:g}, independently of all "
            f"others; of a batch above {most:,} samples, a random {most:,} were kept "
            f"(truncated Poisson sampling of {self.num_samples:,} samples, a number that is "
            "taken as public)."
        )

    def event(self, noise: dp_accounting.GaussianDpEvent) -> dp_accounting.DpEvent:
        """dp-accounting's own for these batches; for PLD alone, whose noise is in units of C."""
        return dp_accounting.TruncatedSubsampledGaussianDpEvent(
            self.num_samples, self.rate, self.max_batch_size, noise.noise_multiplier
        )

    def lacks(self, accountant: Accountant, neighbours: Neighbours) -> str | None:
        return "TruncatedPoisson by 'rdp': pass accountant='pld'" if accountant == "rdp" else None

    def distance(self, neighbours: Neighbours) -> float:
        """2: a batch that loses a sample may gain another."""
        return 2.0

    def for_rdp(self, neighbours: Neighbours) -> Sampling | None:
        """The batches before truncation."""
        return Poisson(self.rate).for_rdp(neighbours)

    @property
    def known_samples(self) -> int | None:
        return self.num_samples


@dataclass(frozen=True)
class FixedSize(Sampling):
    """Each batch is a random subset of `batch_size` out of `num_samples`, without replacement.

    Attributes:
        num_samples: size of the data set, >= 1; public, and the same for both neighbours.
        batch_size: in 1..num_samples.

    Raises:
        ValueError: an attribute is out of its range.
    """

    num_samples: int
    batch_size: int

    def __post_init__(self) -> None:
        _require_part("batch_size", self.batch_size, self.num_samples)

    @property
    def probability(self) -> float:
        return self.batch_size / self.num_samples

    @property
    def sentence(self) -> str:
        return (
            f"Each batch was a random subset of {self.batch_size:,} of the {self.num_samples:,} "
            "samples, drawn without replacement."
        )

    def event(self, noise: dp_accounting.GaussianDpEvent) -> dp_accounting.DpEvent:
        return dp_accounting.SampledWithoutReplacementDpEvent(
            self.num_samples, self.batch_size, noise
        )

    def lacks(self, accountant: Accountant, neighbours: Neighbours) -> str | None:
        if accountant == "pld":
            return "FixedSize by 'pld': pass accountant='rdp', neighbours='replace-one'"
        if neighbours == "add-or-remove-one":
            return "FixedSize for 'add-or-remove-one': pass neighbours='replace-one'"
        return None

    @property
    def known_samples(self) -> int | None:
        return self.num_samples


@dataclass(frozen=True)
class CyclicPoisson(Sampling):
    """The data are split into parts, once; batch t is a Poisson sample of part t mod `parts`.

    So no sample is in two of any `parts` batches in a row, which is what noise of up to as many
    bands needs (Choquette-Choo et al. 2023, arXiv 2306.08153, section 4): after T batches a
    sample had at most ceil(T / parts) chances to be drawn. With `rate` = 1 nothing else is
    said: it describes every way to draw by which no sample is in two of any `parts` batches in
    a row, a pass over the data in a fixed order again and again among them.

    | edge case                                 | what it means                               |
    |-------------------------------------------|---------------------------------------------|
    | parts = 1                                 | Poisson(rate)                               |
    | rate = 1                                  | nothing is amplified                        |
    | a batch is left out, or drawn and dropped | not this way to draw: the parts lose step   |
    | k batches in one release                  | this way with parts / k, where that is whole |

    Attributes:
        rate: of the samples of a part, in each batch of that part; in (0, 1].
        parts: >= 1. Which sample is in which is decided without looking at the others.

    Raises:
        ValueError: an attribute is out of its range.
    """

    takes_turns: ClassVar[bool] = True
    rate: float
    parts: int

    def __post_init__(self) -> None:
        require_rate("rate", self.rate)
        require_whole("parts", self.parts, 1)

    @property
    def probability(self) -> float:
        return self.rate

    @property
    def sentence(self) -> str:
        if not self.by_chance:
            return (
                f"No sample was in two of any {self.parts:,} batches in a row; nothing else is "
                "assumed about how the batches were drawn."
            )
        return (
            f"The samples were split into {self.parts:,} parts once, each sample on its own; the "
            "parts took turns, and each sample was in each batch of its part's turns with "
            f"probability {self.rate:g}, independently of all others (cyclic Poisson sampling)."
        )

    def event(self, noise: dp_accounting.GaussianDpEvent) -> dp_accounting.DpEvent:
        """None: of its turns there is one, and not of its steps."""
        raise AssertionError("its uses are to be accounted for, and not its steps")

    def lacks(self, accountant: Accountant, neighbours: Neighbours) -> str | None:
        return Poisson(self.rate).lacks(accountant, neighbours)

    def for_rdp(self, neighbours: Neighbours) -> Sampling | None:
        """Turns without chance for replaced samples."""
        return self if neighbours == "add-or-remove-one" else CyclicPoisson(1.0, self.parts)

    @property
    def by_chance(self) -> bool:
        """Not where all of a part are in its batch: whose turn it is says who is there."""
        return self.rate < 1

    @property
    def turns(self) -> int:
        return self.parts

    def in_turn(self) -> Sampling | None:
        """Poisson sampling of the part; None where all of it are taken."""
        return Poisson(self.rate) if self.rate < 1 else None


# By the names that they have in checkpoints. Only what stands here is accounted for.
SAMPLINGS: Mapping[str, type[Sampling]] = {
    "poisson": Poisson,
    "truncated-poisson": TruncatedPoisson,
    "fixed-size": FixedSize,
    "cyclic-poisson": CyclicPoisson,
}


def _require_part(name: str, part: int, num_samples: int) -> None:
    require_whole("num_samples", num_samples, 1)
    require_whole(name, part, 1)
    require(part <= num_samples, name, part, f"at most num_samples = {num_samples}")
