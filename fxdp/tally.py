"""What became of the samples of one logical batch. Nothing here is private."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Tally:
    """The norms of a batch's samples, piece by piece.

    Attributes:
        pieces: norms [N] of pieces, with bool [N] that is False for padding.
    """

    pieces: list[tuple[Tensor, Tensor]] = field(default_factory=lambda: [])

    def add(self, norms: Tensor, mask: Tensor) -> None:
        """Take up a piece whose backward pass is over."""
        self.pieces.append((norms, mask))

    def norms(self) -> Tensor:
        """[N] norms of the samples that are no padding."""
        found = [norms[mask] for norms, mask in self.pieces]
        return torch.cat(found) if found else torch.zeros(0)

    def nonfinite(self) -> int:
        """How many gradients were infinite or NaN."""
        return int((~self.norms().isfinite()).sum())

    def clipped(self, bound: float) -> int:
        """How many were longer than a bound, or not finite."""
        return int((~(self.norms() <= bound)).sum())

    def unclipped(self, bound: float) -> float:
        """The sum of 1/2 for each sample that was not clipped and -1/2 for each that was."""
        return len(self.norms()) / 2 - self.clipped(bound)
