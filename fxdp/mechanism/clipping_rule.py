"""What a way to clip says of itself, so that nothing else has to know which one it is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Parameters that are clipped together.

    Attributes:
        parameters: their names.
        share: their bound is share * C; the squares of all shares add up to 1.
    """

    parameters: tuple[str, ...]
    share: float


class Clipping(ABC):
    """A way to clip: what factor a norm asks for, and what else the step has to do for it.

    A new one is a frozen dataclass that derives from this class and has a `factor`; to be known by
    a name, it gets a row in `fxdp.mechanism.clipping.NAMED`.

    Guarantees:
        Whatever numbers from 0 up `factor` returns, `fxdp.mechanism.factors` lets no sample exceed
        the bound.

    Attributes:
        needs_finite_bound: whether C = inf, which is no clipping, makes no sense.
    """

    needs_finite_bound: ClassVar[bool] = False

    @abstractmethod
    def factor(self, norms: Tensor, bound: Tensor) -> Tensor:
        """[N] factors.

        Args:
            norms: [N], of a group's gradients, rounded up, in float64.
            bound: 0-d, the group's own, in the same dtype.
        """

    @property
    def factor_is_bounded(self) -> bool:
        """Is `factor` known to be at most bound / norm? If not, it is held to that."""
        return False

    def groups(self, parameters: Sequence[str]) -> tuple[Group, ...]:
        """The parameters that are clipped together: one group of all.

        Raises:
            ValueError: a parameter is in no group.
        """
        return (Group(tuple(parameters), 1.0),)

    def check_bound(self, bound: float) -> None:
        """Check the bound that training begins with.

        Raises:
            ValueError: this way to clip has no use for it.
        """
        if self.needs_finite_bound and math.isinf(bound):
            raise ValueError("max_grad_norm must be finite where every gradient is brought to it")

    @property
    def moves_bound(self) -> bool:
        """Does the bound follow a count that is released with each sum?"""
        return self.count_noise(1.0) is not None

    def count_noise(self, expected: float) -> float | None:
        """The standard deviation of the noise of the count of samples that were not clipped, at an
        expected batch size; None where nothing is counted and the bound stays."""
        return None

    def next_bound(self, bound: float, count: float, expected: float) -> float:
        """The bound after a release, where there is a count.

        Args:
            count: the noisy sum of 1/2 for each sample that was not clipped, and -1/2 for each
                that was: what a sample adds is known up to its sign.
        """
        return bound
