"""Per-sample norms of one logical batch. Raw data, not protected by DP: never publish it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tally:
    """The norms of a batch's samples, piece by piece.

    Attributes:
        pieces: of each piece its norms [N], bool [N] that tells whose loss and gradient are
            finite, and bool [N] that is False for padding.
    """

    pieces: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=lambda: [])

    def add(self, norms: Tensor, finite: Tensor, mask: Tensor) -> None:
        """Take up a piece whose backward pass is over."""
        self.pieces.append((norms, finite, mask))

    def norms(self) -> Tensor:
        """[N] norms of the samples that are no padding."""
        found = [norms[mask] for norms, _, mask in self.pieces]
        return torch.cat(found) if found else torch.zeros(0)

    def nonfinite(self) -> int:
        """How many samples had an infinite loss, or a gradient that was infinite or NaN."""
        return sum(int((mask & ~finite).sum()) for _, finite, mask in self.pieces)

    def clipped(self, bound: float) -> int:
        """How many gradients were longer than a bound; with those that counted for nothing."""
        return sum(
            int((mask & ~(finite & (norms <= bound))).sum()) for norms, finite, mask in self.pieces
        )

    def unclipped(self, bound: float) -> float:
        """The sum of 1/2 for each sample that was not clipped and -1/2 for each that was."""
        return len(self.norms()) / 2 - self.clipped(bound)
