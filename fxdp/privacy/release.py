"""What leaves the training step: kinds of release, as values, one for each time it happens.

Noise is counted in units of the bound on one sample's contribution: `noise_multiplier` = sigma
adds noise of standard deviation sigma * C to a sum to which each sample adds a vector of norm
at most C. Adding or removing a sample moves that sum by at most C, replacing one by at most
2 C; the accountant makes the difference, so that sigma means the same everywhere.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from fxdp.arguments import plain, require, require_noise, require_whole
from fxdp.privacy.sampling_rule import Sampling, stated


@dataclass(frozen=True)
class Mechanism:
    """All that the accountant looks at: Gaussian noise, and how the batch was drawn.

    Attributes:
        noise_multiplier: standard deviation, in units of one sample's bound; in [0, inf).
        sampling: None if nothing is to be amplified.
    """

    noise_multiplier: float
    sampling: Sampling | None

    def __post_init__(self) -> None:
        plain(self)
        require_noise("noise_multiplier", self.noise_multiplier)

    def uses(self, steps: int) -> tuple["Mechanism", int]:
        """What `steps` steps in a row do to one sample, at most: a mechanism, and how often.

        Where the data take turns, each part has its own once in `turns` steps; the part that has
        come first has had the most, ceil(steps / turns).
        """
        sampling = stated(self.sampling)
        if not sampling.takes_turns:
            return self, steps
        return Mechanism(self.noise_multiplier, sampling.in_turn()), -(-steps // sampling.turns)


@dataclass(frozen=True)
class GaussianRelease:
    """A sum of clipped per-sample gradients with Gaussian noise: one step of DP-SGD.

    Guarantees:
        `mechanism` describes the release if the noise has a standard deviation of at least
        noise_multiplier * max_grad_norm, is fresh, and no sample adds more than max_grad_norm
        to the sum, in L2 norm over everything that is released together.

    | edge case                     | what it means                                      |
    |-------------------------------|----------------------------------------------------|
    | noise_multiplier = 0          | nothing is private: epsilon is inf from then on    |
    | max_grad_norm = inf           | not clipped; then noise_multiplier must be 0       |
    | clipped by parts, bounds C_k  | max_grad_norm is sqrt(sum_k C_k^2)                 |

    Attributes:
        noise_multiplier: sigma, in units of max_grad_norm; in [0, inf).
        sampling: how the batch was drawn; None if nothing is to be amplified.
        max_grad_norm: C, kept for the record: it cancels out of the account; > 0.

    Raises:
        ValueError: an attribute is out of its range.
    """

    noise_multiplier: float
    sampling: Sampling | None
    max_grad_norm: float

    def __post_init__(self) -> None:
        plain(self)
        _require_noisy_sum(self.noise_multiplier, self.max_grad_norm)
        _require_no_turns(self.sampling)

    @cached_property
    def mechanism(self) -> Mechanism:
        """What the accountant is given."""
        return Mechanism(self.noise_multiplier, self.sampling)


@dataclass(frozen=True)
class CountedRelease:
    """A `GaussianRelease` together with a noisy count of the samples that were not clipped.

    Adaptive clipping (Andrew et al. 2021, arXiv 1905.03871) steers C by that count. Each
    sample adds 1/2 to it or takes 1/2 away, which makes 1/2 its bound; the pair of sum and
    count is one Gaussian release of `mechanism.noise_multiplier` (theorem 1 there).

    | edge case                              | the pair                                  |
    |----------------------------------------|-------------------------------------------|
    | noise_multiplier = 0 or count_noise = 0 | nothing is private: epsilon is inf       |

    Attributes:
        noise_multiplier: sigma of the sum of gradients, in units of max_grad_norm; in [0, inf).
        count_noise: standard deviation of the count's noise, in samples; in [0, inf).
        sampling: how the batch was drawn, the same one for both; None: nothing is amplified.
        max_grad_norm: C as it was in this release; > 0.

    Raises:
        ValueError: an attribute is out of its range.
    """

    noise_multiplier: float
    count_noise: float
    sampling: Sampling | None
    max_grad_norm: float

    def __post_init__(self) -> None:
        plain(self)
        _require_noisy_sum(self.noise_multiplier, self.max_grad_norm)
        require_noise("count_noise", self.count_noise)
        _require_no_turns(self.sampling)

    @cached_property
    def mechanism(self) -> Mechanism:
        """What the accountant is given: both releases as one."""
        return Mechanism(together(self.noise_multiplier, self.count_noise), self.sampling)


@dataclass(frozen=True)
class BandedRelease:
    """One step of a stream of sums of which each part of the data has its turn.

    The noise of a step may be correlated with that of the `bands - 1` steps before: what is
    released is x_t + sigma C y_t with y = B^-1 z, z standard normal and fresh, and B a banded
    lower-triangular Toeplitz matrix whose columns have norm 1 at most.

    Guarantees:
        A stream is the matrix mechanism B x + sigma C z, and B has `bands` bands, at most as
        many as there are parts: so the rows that one turn of a sample touches are touched by no
        other turn, and in them B is an isometry at most. Each turn is a Gaussian release of
        noise multiplier sigma from a Poisson sample, and all turns of the others are noise
        (arXiv 2306.08153, theorem 4). This holds for adaptive steps, and for both kinds of
        neighbours. A stream that begins anew in the middle, with no noise of before, only has
        smaller columns.

    | edge case                          | what it means                                     |
    |------------------------------------|---------------------------------------------------|
    | bands = 1                          | independent noise                                 |
    | noise_multiplier = 0               | nothing is private: epsilon is inf from then on   |
    | sigma changes within a stream      | of `parts` steps in a row, the least sigma counts |
    | C changes within a stream          | it cancels out, as ever                           |
    | bands > sampling.turns             | ValueError: turns of one sample would overlap     |

    Attributes:
        noise_multiplier: sigma, in units of max_grad_norm; in [0, inf).
        bands: >= 1.
        sampling: whose turn it is.
        max_grad_norm: C, kept for the record; > 0.
        stream: the number of the stream in its ledger, >= 0: its steps take turns together.

    Raises:
        ValueError: an attribute is out of its range, or of the wrong kind.
    """

    noise_multiplier: float
    bands: int
    sampling: Sampling
    max_grad_norm: float
    stream: int = 0

    def __post_init__(self) -> None:
        plain(self)
        _require_noisy_sum(self.noise_multiplier, self.max_grad_norm)
        require_whole("bands", self.bands, 1)
        require_whole("stream", self.stream, 0)
        cyclic = isinstance(self.sampling, Sampling) and self.sampling.takes_turns  # pyright: ignore[reportUnnecessaryIsInstance]
        require(cyclic, "sampling", self.sampling, "CyclicPoisson: other turns have no bound here")
        fits = self.bands <= self.sampling.turns
        require(fits, "bands", self.bands, f"at most parts = {self.sampling.turns}")

    @cached_property
    def mechanism(self) -> Mechanism:
        """What the accountant is given: the release, with whose turn it is."""
        return Mechanism(self.noise_multiplier, self.sampling)


Release = GaussianRelease | CountedRelease | BandedRelease


@dataclass(frozen=True)
class Run:
    """The same release, `count` times in a row; count >= 1."""

    release: Release
    count: int


def together(noise_multiplier: float, count_noise: float) -> float:
    """The noise multiplier of a sum and a centred count as one: (z^-2 + (2 s)^-2)^(-1/2).

    0 if either is 0. Both in [0, inf); `count_noise` in samples.
    """
    less, more = sorted((noise_multiplier, 2 * count_noise))
    # Written so that no number on the way is too large, however small the noise.
    return less / math.hypot(1.0, less / more) if less > 0 else 0.0


def noise_beside_count(noise_multiplier: float, count_noise: float) -> float:
    """The noise multiplier that the sum needs for the pair to have `noise_multiplier`.

    The inverse of `together`: (z^-2 - (2 s)^-2)^(-1/2), rounded up, so that the pair has the
    noise that was asked for or more.

    Raises:
        ValueError: `noise_multiplier` is not in [0, inf), or `count_noise` is not above half of
            it: then the count alone costs more than the pair may.
    """
    noise_multiplier = require_noise("noise_multiplier", noise_multiplier)
    wanted = f"above noise_multiplier / 2 = {noise_multiplier / 2:g}"
    require(noise_multiplier / 2 < count_noise < math.inf, "count_noise", count_noise, wanted)
    ratio = noise_multiplier / (2 * count_noise)
    found = noise_multiplier / math.sqrt((1 - ratio) * (1 + ratio))
    # The pair grows with `found` up to 2 s, which is above what is wanted: so this ends.
    rise = 2.0**-52
    while together(found, count_noise) < noise_multiplier:
        found, rise = math.nextafter(found * (1 + rise), math.inf), 2 * rise
    require(found < math.inf, "count_noise", count_noise, wanted)
    return found


def _require_no_turns(sampling: Sampling | None) -> None:
    fits = not stated(sampling).takes_turns
    require(fits, "sampling", sampling, "of another kind: CyclicPoisson needs a BandedRelease")


def _require_noisy_sum(noise_multiplier: float, max_grad_norm: float) -> None:
    require_noise("noise_multiplier", noise_multiplier)
    require(max_grad_norm > 0, "max_grad_norm", max_grad_norm, "> 0")
    finite = max_grad_norm < math.inf or noise_multiplier == 0
    require(finite, "max_grad_norm", max_grad_norm, "finite where there is noise in units of it")
