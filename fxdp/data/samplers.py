"""Four ways to draw batches as an accountant assumes.

Under Poisson sampling every sample joins by its own coin toss, which makes the size of a
batch random, and now and then 0. Such a step still releases noise and still counts, so the
empty list is a batch like any other.
"""

from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from fxdp.arguments import require_rate
from fxdp.data.sampler import PrivateSampler
from fxdp.data.stream import Stream, Words
from fxdp.privacy.sampling import CyclicPoisson, FixedSize, Poisson, TruncatedPoisson

__all__ = [
    "CyclicPoissonSampler", "FixedSizeSampler", "PoissonSampler", "TruncatedPoissonSampler",
]  # fmt: skip
SPLIT = 2**64 - 1  # the step whose words say who is in which part; no run comes so far
AT_ONCE = 1 << 20  # tosses, 8 bytes each, so that a data set of any size needs little memory


class PoissonSampler(PrivateSampler):
    """Yields the indices of one Poisson sample of the data for each step.

    Guarantees:
        In each step every index is in the batch with probability `sample_rate`, rounded down
        to a multiple of 2**-64, independently of all other indices and of all other steps.
        `Poisson(sample_rate)`, which the accountant amplifies by, provided that nobody learns
        the batches.

    | edge case       | what comes out                                            |
    |-----------------|-----------------------------------------------------------|
    | sample_rate = 1 | every index in every step                                 |
    | nobody is drawn | the empty list: the step is neither skipped nor redrawn   |
    | all others      | as for every `PrivateSampler`                             |

    Args:
        num_samples: size of the data set, >= 1. Under the add-or-remove-one relation it is not
            public, so set `sample_rate`, not the expected batch size, if it must stay secret.
        sample_rate: q in (0, 1].
        steps: how many batches one iteration yields, >= 0.
        generator: source of the key; torch's global generator if None.
        secure: unpredictable batches, from a cipher with a key of the operating system's.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        num_samples: int,
        sample_rate: float,
        steps: int,
        generator: torch.Generator | None = None,
        *,
        secure: bool = False,
    ) -> None:
        sample_rate = require_rate("sample_rate", sample_rate)
        super().__init__(num_samples, steps, generator, secure)
        self.sample_rate = sample_rate

    @property
    def sampling(self) -> Poisson:
        """`Poisson(sample_rate)`."""
        return Poisson(self.sample_rate)

    @property
    def expected_batch_size(self) -> float:
        """num_samples * sample_rate."""
        return self.num_samples * self.sample_rate

    def batch(self, step: int) -> list[int]:
        """The indices that are in batch `step`."""
        return _tossed(self._stream.at(step), self.num_samples, self.sample_rate).tolist()


class TruncatedPoissonSampler(PrivateSampler):
    """Poisson samples that never exceed a size: of a larger one, a random subset is kept.

    Guarantees:
        As for `PoissonSampler`; of a batch above `max_batch_size`, each subset of that size is
        kept with equal probability, up to ties of 64-bit words. `TruncatedPoisson(...)`.

    | edge case                              | what comes out                            |
    |----------------------------------------|-------------------------------------------|
    | max_batch_size = num_samples           | Poisson samples, never truncated          |
    | all others                             | as for `PoissonSampler`                   |

    Args:
        num_samples, sample_rate, steps, generator, secure: as for `PoissonSampler`; but
            num_samples is public here.
        max_batch_size: in 1..num_samples.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        num_samples: int,
        sample_rate: float,
        max_batch_size: int,
        steps: int,
        generator: torch.Generator | None = None,
        *,
        secure: bool = False,
    ) -> None:
        sample_rate = require_rate("sample_rate", sample_rate)
        super().__init__(num_samples, steps, generator, secure)
        self._sampling = TruncatedPoisson(sample_rate, num_samples, max_batch_size)

    @property
    def sampling(self) -> TruncatedPoisson:
        """`TruncatedPoisson(sample_rate, num_samples, max_batch_size)`."""
        return self._sampling

    @property
    def expected_batch_size(self) -> float:
        """num_samples * sample_rate: the mean before truncation."""
        return self.num_samples * self._sampling.rate

    def batch(self, step: int) -> list[int]:
        """The indices that are in batch `step`."""
        words = self._stream.at(step)
        drawn = _tossed(words, self.num_samples, self._sampling.rate)
        if len(drawn) > self._sampling.max_batch_size:
            drawn = drawn[_subset(words, len(drawn), self._sampling.max_batch_size)]
        return drawn.tolist()


class FixedSizeSampler(PrivateSampler):
    """Yields a random subset of the data, always of one size, for each step.

    Guarantees:
        In each step each subset of `batch_size` indices is drawn with equal probability, up to
        ties of 64-bit words, independently of all other steps. `FixedSize(...)`, which has a
        bound for replace-one neighbours only.

    | edge case                | what comes out                    |
    |--------------------------|-----------------------------------|
    | batch_size = num_samples | every index in every step         |
    | all others               | as for every `PrivateSampler`     |

    Args:
        num_samples: size of the data set, >= 1; public.
        batch_size: in 1..num_samples.
        steps, generator, secure: as for `PoissonSampler`.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    fixed_size: ClassVar[bool] = True

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        steps: int,
        generator: torch.Generator | None = None,
        *,
        secure: bool = False,
    ) -> None:
        super().__init__(num_samples, steps, generator, secure)
        self._sampling = FixedSize(num_samples, batch_size)

    @property
    def sampling(self) -> FixedSize:
        """`FixedSize(num_samples, batch_size)`."""
        return self._sampling

    @property
    def expected_batch_size(self) -> float:
        """batch_size."""
        return float(self._sampling.batch_size)

    def batch(self, step: int) -> list[int]:
        """The indices that are in batch `step`."""
        words = self._stream.at(step)
        return _subset(words, self.num_samples, self._sampling.batch_size).tolist()


class CyclicPoissonSampler(PrivateSampler):
    """Poisson samples of one part of the data after another, as correlated noise needs.

    Guarantees:
        Each index is in one of `parts` parts, by a word of 64 bits of its own, modulo `parts`:
        so whether another sample is there changes nobody's part. Batch `step` is a Poisson sample
        of part step mod parts, at `sample_rate` rounded down to a multiple of 2**-64. So no index
        is in two of any `parts` batches in a row. `CyclicPoisson(sample_rate, parts)`, provided
        that every batch is released, in its order, and that one sampler serves the whole run.

    | edge case             | what comes out                                              |
    |-----------------------|-------------------------------------------------------------|
    | parts = 1             | Poisson samples                                             |
    | sample_rate = 1       | the parts as they are, in turn; nothing is amplified        |
    | parts > num_samples   | some parts, and their batches, are empty                    |
    | a copy                | TypeError: other parts would not fit what was released      |
    | all others            | as for `PoissonSampler`                                     |

    Args:
        num_samples, steps, generator, secure: as for `PoissonSampler`.
        sample_rate: of the samples of a part, when it is its turn; in (0, 1]. Batches of B samples
            are expected with B * parts / num_samples.
        parts: >= 1; at least as many as the noise has bands.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        num_samples: int,
        sample_rate: float,
        parts: int,
        steps: int,
        generator: torch.Generator | None = None,
        *,
        secure: bool = False,
    ) -> None:
        sample_rate = require_rate("sample_rate", sample_rate)
        super().__init__(num_samples, steps, generator, secure)
        self._sampling = CyclicPoisson(sample_rate, parts)
        self._split: tuple[Stream, NDArray[np.int64]] | None = None

    @property
    def sampling(self) -> CyclicPoisson:
        """`CyclicPoisson(sample_rate, parts)`."""
        return self._sampling

    @property
    def expected_batch_size(self) -> float:
        """num_samples * sample_rate / parts."""
        return self.num_samples * self._sampling.rate / self._sampling.parts

    def batch(self, step: int) -> list[int]:
        """The indices that are in batch `step`."""
        members = np.flatnonzero(self._parts() == step % self._sampling.parts)
        words = self._stream.at(step)
        return members[_tossed(words, len(members), self._sampling.rate)].tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        raise TypeError(
            "a copy would split the data into other parts, and one sampler serves the whole run: "
            "make another, with another seed, for another run"
        )

    def _parts(self) -> NDArray[np.int64]:
        """The part of each index; kept as long as the key is the same."""
        if self._split is None or self._split[0] is not self._stream:
            drawn = self._stream.at(SPLIT)(self.num_samples) % np.uint64(self._sampling.parts)
            self._split = (self._stream, drawn.astype(np.int64))
        return self._split[1]


def _tossed(words: Words, num_samples: int, rate: float) -> NDArray[np.int64]:
    """The indices below `num_samples` whose word is below rate * 2**64, ascending."""
    if rate == 1:
        return np.arange(num_samples, dtype=np.int64)
    # Exact: a product with a power of two is not rounded, and int() rounds down.
    below = np.uint64(int(rate * 2.0**64))
    drawn = [
        start + np.flatnonzero(words(min(AT_ONCE, num_samples - start)) < below)
        for start in range(0, num_samples, AT_ONCE)
    ]
    return np.concatenate(drawn) if drawn else np.arange(0, dtype=np.int64)


def _subset(words: Words, num_samples: int, size: int) -> NDArray[np.int64]:
    """`size` of the indices below `num_samples`, ascending: those with the smallest words."""
    if size == num_samples:
        return np.arange(num_samples, dtype=np.int64)
    return np.sort(np.argpartition(words(num_samples), size)[:size])
