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

from dataclasses import dataclass

from fxdp.arguments import require, require_rate, require_whole


@dataclass(frozen=True)
class Poisson:
    """Each sample joins each batch with probability `rate`, independently of all others.

    Raises:
        ValueError: `rate` is not in (0, 1].
    """

    rate: float

    def __post_init__(self) -> None:
        require_rate("rate", self.rate)


@dataclass(frozen=True)
class TruncatedPoisson:
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


@dataclass(frozen=True)
class FixedSize:
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


@dataclass(frozen=True)
class CyclicPoisson:
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

    rate: float
    parts: int

    def __post_init__(self) -> None:
        require_rate("rate", self.rate)
        require_whole("parts", self.parts, 1)


Sampling = Poisson | TruncatedPoisson | FixedSize | CyclicPoisson


def samples_known_to(sampling: Sampling | None) -> int | None:
    """The size of the data set, where the way to draw rests on it; else None."""
    match sampling:
        case TruncatedPoisson() | FixedSize():
            return sampling.num_samples
        case Poisson() | CyclicPoisson() | None:
            return None


def _require_part(name: str, part: int, num_samples: int) -> None:
    require_whole("num_samples", num_samples, 1)
    require_whole(name, part, 1)
    require(part <= num_samples, name, part, f"at most num_samples = {num_samples}")
