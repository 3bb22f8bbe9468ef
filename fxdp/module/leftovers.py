"""Warns where a release is about to be added to gradients that are there already."""

import warnings
from collections.abc import Iterable

from torch import Tensor

LOOKS = 3  # at the first releases alone: a look at a gradient waits for its device
TEXT = (
    "p.grad is not empty: this release is added to what is there, and the optimizer will step by "
    "both. Call optimizer.zero_grad() before each step; for several calls that are one batch, with "
    "one release, use {instead}"
)


class Leftovers:
    """Looks at the first releases of a module, and warns once.

    Args:
        instead: what makes one release of several calls.
    """

    def __init__(self, instead: str = "`with private.accumulate(): ...`") -> None:
        self._left, self._instead = LOOKS, instead

    def look(self, parameters: Iterable[Tensor]) -> None:
        """Warn if the first trained parameter's gradient holds numbers."""
        if not self._left:
            return
        self._left -= 1
        trained = next((p for p in parameters if p.requires_grad), None)
        if trained is not None and trained.grad is not None and bool(trained.grad.any()):
            self._left = 0
            warnings.warn(TEXT.format(instead=self._instead), stacklevel=2)
