"""How a sample's gradient is brought to a bounded norm, as values.

Whatever the way, no sample adds a vector longer than C = `max_grad_norm` to the released sum, over
all parameters together: so C is the sensitivity, and the noise is sigma C. What a factor is made of
is rounded up: norms of P float32 numbers are never taken for less than 2e-19 sqrt(P), for the
squares of such numbers underflow (`fxdp.passes.measure`).
"""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fxdp.arguments import plain, require_one_of
from fxdp.mechanism.clipping_rule import Clipping, Group


@dataclass(frozen=True)
class Flat(Clipping):
    """min(1, C / norm) over all parameters (Abadi et al., arXiv:1607.00133, algorithm 1).

    ========================  ======
    case                      factor
    ========================  ======
    norm <= C, also norm 0    1
    norm > C                  C / norm
    C infinite                1
    ========================  ======
    """

    def factor(self, norms: Tensor, bound: Tensor) -> Tensor:
        """[N] factors from norms [N] and the bound, 0-d."""
        return (bound / norms).clamp(max=1)

    @property
    def factor_is_bounded(self) -> bool:
        """Yes, unless a class that derives from this one has a factor of its own."""
        return type(self).factor is Flat.factor


@dataclass(frozen=True)
class Automatic(Clipping):
    """C / (norm + gamma): AUTO-S (Bu et al., arXiv:2206.07136), with no bound to tune.

    Every sample adds nearly C, whatever its norm; C only scales the step.

    ========================  ======
    case                      factor
    ========================  ======
    norm 0                    C / gamma, of nothing
    any norm                  C / (norm + gamma): the result is shorter than C
    ========================  ======

    Attributes:
        gamma: above 0; 0.01 in the paper.

    Raises:
        ValueError: gamma is not above 0 and finite.
    """

    needs_finite_bound: ClassVar[bool] = True
    gamma: float = 0.01

    def __post_init__(self) -> None:
        plain(self)
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be above 0 and finite, not {self.gamma!r}")

    def factor(self, norms: Tensor, bound: Tensor) -> Tensor:
        """[N] factors from norms [N] and the bound, 0-d."""
        return bound / (norms + self.gamma)


@dataclass(frozen=True)
class Normalize(Clipping):
    """C / norm: every sample's gradient gets norm C.

    ===========================  ======
    case                         factor
    ===========================  ======
    norm 0                       1, of nothing
    squares that underflow       less than C / norm: the result is shorter than C
    any other norm               C / norm
    ===========================  ======
    """

    needs_finite_bound: ClassVar[bool] = True

    def factor(self, norms: Tensor, bound: Tensor) -> Tensor:
        """[N] factors from norms [N] and the bound, 0-d."""
        return torch.where(norms == 0, 1.0, bound / norms)


@dataclass(frozen=True)
class PerGroup(Flat):
    """Each group of parameters is clipped by a bound of its own.

    With weights w_k, group k has the bound C w_k / sqrt(sum_k w_k^2), so that all together have
    the bound C. To set bounds C_k themselves, let `max_grad_norm` be sqrt(sum_k C_k^2) and w_k C_k.

    Attributes:
        weights: patterns of parameter names, as shells match them, to weights above 0; the first
            that matches counts. None makes each module's own parameters a group, of weight 1.

    Raises:
        ValueError: a weight is not above 0 and finite.
    """

    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        plain(self)
        for pattern, weight in (self.weights or {}).items():
            if not 0 < weight < math.inf:
                raise ValueError(f"the weight of {pattern!r} must be above 0, not {weight!r}")

    def groups(self, parameters: Sequence[str]) -> tuple[Group, ...]:
        """The groups that have parameters.

        Raises:
            ValueError: no pattern matches a parameter.
        """
        found: dict[str, list[str]] = {}
        for name in parameters:
            found.setdefault(self._group_of(name), []).append(name)
        weights = [1.0 if self.weights is None else self.weights[key] for key in found]
        length = math.hypot(*weights)
        return tuple(
            Group(tuple(names), weight / length)
            for names, weight in zip(found.values(), weights, strict=True)
        )

    def _group_of(self, name: str) -> str:
        if self.weights is None:
            return name.rpartition(".")[0]
        for pattern in self.weights:
            if fnmatch.fnmatchcase(name, pattern):
                return pattern
        raise ValueError(
            f"no pattern of clipping matches the parameter {name!r}: add one, or '*' as the last"
        )


@dataclass(frozen=True)
class Adaptive(Flat):
    """Flat clipping at a bound that follows a quantile of the norms (Andrew et al. 2021,
    arXiv:1905.03871, algorithm 1).

    With each release goes a noisy count of the samples that were not clipped, from which the next
    bound is made. `noise_multiplier` is that of both together: the sum gets a little more noise
    (theorem 1 there), and the ledger knows of both.

    ==============================  ==============================================
    case                            what happens
    ==============================  ==============================================
    a sample that is not finite     counts as clipped
    an empty batch                  the count is noise alone, and the bound moves
    noise_multiplier 0              the count has no noise either
    the bound leaves its range      it stays at the end of the range
    ==============================  ==============================================

    Attributes:
        target_unclipped_quantile: the share of samples that is not to be clipped, in [0, 1].
        clipbound_learning_rate: how fast the bound moves, above 0.
        unclipped_num_std: standard deviation of the count's noise, in samples; a twentieth of the
            expected batch size if None.
        min_clipbound, max_clipbound: the range of the bound, above 0.

    Raises:
        ValueError: an attribute is out of its range.
    """

    target_unclipped_quantile: float = 0.5
    clipbound_learning_rate: float = 0.2
    unclipped_num_std: float | None = None
    min_clipbound: float = 1e-8
    max_clipbound: float = 1e8

    def __post_init__(self) -> None:
        plain(self)
        if not 0 <= self.target_unclipped_quantile <= 1:
            raise ValueError(
                f"target_unclipped_quantile must be in [0, 1], not {self.target_unclipped_quantile}"
            )
        if not 0 < self.clipbound_learning_rate < math.inf:
            raise ValueError(
                f"clipbound_learning_rate must be above 0, not {self.clipbound_learning_rate}"
            )
        if self.unclipped_num_std is not None and not 0 < self.unclipped_num_std < math.inf:
            raise ValueError(f"unclipped_num_std must be above 0, not {self.unclipped_num_std}")
        if not 0 < self.min_clipbound <= self.max_clipbound < math.inf:
            raise ValueError(
                "min_clipbound and max_clipbound must be above 0 and in this order, not "
                f"{self.min_clipbound} and {self.max_clipbound}"
            )

    def check_bound(self, bound: float) -> None:
        """Check the bound that training begins with.

        Raises:
            ValueError: it is not in the range.
        """
        low, high = self.min_clipbound, self.max_clipbound
        if not low <= bound <= high:
            raise ValueError(f"max_grad_norm must begin in [{low}, {high}], not {bound}")

    def count_noise(self, expected: float) -> float:
        """The standard deviation of the count's noise, in samples, at an expected batch size."""
        return expected / 20 if self.unclipped_num_std is None else self.unclipped_num_std

    def next_bound(self, bound: float, count: float, expected: float) -> float:
        """The bound after a release: lower where more than the quantile were not clipped."""
        share = count / expected + 0.5
        moved = bound * math.exp(
            -self.clipbound_learning_rate * (share - self.target_unclipped_quantile)
        )
        return min(max(moved, self.min_clipbound), self.max_clipbound)


ClippingName = Literal["flat", "automatic", "normalize", "per-layer", "adaptive"]
NAMED: dict[ClippingName, Clipping] = {
    "flat": Flat(),
    "automatic": Automatic(),
    "normalize": Normalize(),
    "per-layer": PerGroup(),
    "adaptive": Adaptive(),
}


def as_clipping(clipping: ClippingName | Clipping) -> Clipping:
    """A way to clip by its name.

    Raises:
        TypeError, ValueError: it is neither a known name nor a value.
    """
    if isinstance(clipping, Clipping):
        return clipping
    if not isinstance(clipping, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"clipping must be a name or a value, not {type(clipping).__name__}")
    require_one_of(ClippingName, "clipping", clipping)
    return NAMED[clipping]
