"""No sample moves the clipped sum by more than it may: checked on samples of a batch.

A bound that no gradient reaches is kept by a step that does not clip at all. So the test is run at
the module's own bound, and again at one so small that the samples are clipped: the bound is an
input of the compiled step, and its code is the same.
"""

from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from fxdp.auditing.releases import Batch, Gradients, Releases, gap, length
from fxdp.auditing.report import Finding, Unjudged

SAMPLES = 8  # that are tried, spread over the batch
CLIPPED = 0.99  # of the bound: a sample that adds so much counts as clipped
SMALLER, TIMES = 4.0, 5  # the bound is divided so, at most so often
# What rounding may add, in units of a release: of sums in another order, and of the result.
ROUNDING = {
    torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2,
}  # fmt: skip
TENSOR_CORES = 1e-3  # float32 on a GPU, whose convolutions may round their inputs


@dataclass(frozen=True)
class Canary:
    """The sample that moves the clipped sum the most.

    Attributes:
        sample: its row.
        bound: the clip bound at which it does.
        share: how far, of how far it may.
    """

    sample: int
    bound: float
    share: float


class Neighbours:
    """Releases without noise, of a batch and of batches that differ from it in one sample.

    Args:
        releases: of the module.
        batch: with two samples or more.
        state: of the random generators, from which each release starts, so that models that draw
            numbers draw the same.
    """

    def __init__(self, releases: Releases, batch: Batch, state: object) -> None:
        self.releases, self.batch, self.state = releases, batch, state
        present = batch.present
        self.tried = present[:: -(-len(present) // SAMPLES)]
        self.following = dict(zip(present, present[1:] + present[:1], strict=True))
        self.expected = releases.private.expected_batch_size

    def clean(self, batch: Batch, bound: float) -> Gradients:
        return self.releases.clean(batch, bound, self.state)

    def lengths(self, bound: float) -> list[float]:
        """How far each sample that is tried moves the release, if it is masked out."""
        whole = self.clean(self.batch, bound)
        return [length(gap(whole, self.clean(self.batch.masked_out(i), bound))) for i in self.tried]

    def canary(self, bound: float) -> Canary:
        """The best canary, at the bound, or at a smaller one where that makes more of it."""
        best, reached = self._at(bound)
        for _ in range(TIMES):
            if reached >= CLIPPED:
                break
            nearer, now = self._at(best.bound / SMALLER)
            if now <= reached * 1.01:
                break
            best, reached = nearer, now
        return best

    def _at(self, bound: float) -> tuple[Canary, float]:
        """The best canary at this bound, and what the median sample adds, of what it may."""
        shares = [found * self.expected / bound for found in self.lengths(bound)]
        most = max(range(len(shares)), key=shares.__getitem__)
        return Canary(self.tried[most], bound, shares[most]), median(shares)

    def findings(self, bound: float, is_random: bool) -> list[Finding | Unjudged]:
        """The largest differences at this bound, against what is stated."""
        whole = self.clean(self.batch, bound)
        once = bound / self.expected  # the sensitivity
        slack = self.slack(whole, once)
        claims = {
            "masked out": once,
            "left out": once,
            "masked out, not left out": 0.0,
            "replaced": 2 * once,
        }
        moved: dict[str, list[float]] = {how: [] for how in claims}
        for i in self.tried:
            masked = self.clean(self.batch.masked_out(i), bound)
            moved["masked out"].append(length(gap(whole, masked)))
            if not is_random:
                gone = self.clean(self.batch.left_out(i), bound)
                moved["left out"].append(length(gap(whole, gone)))
                moved["masked out, not left out"].append(length(gap(masked, gone)))
            other = self.clean(self.batch.replaced(i, self.following[i]), bound)
            moved["replaced"].append(length(gap(whole, other)))
        found: list[Finding | Unjudged] = []
        for how, claim in claims.items():
            subject = f"1 of {len(self.tried)} samples {how}, C = {bound:.4g}"
            if not moved[how]:
                why = "the model draws numbers, and draws others for the other samples"
                found.append(Unjudged("neighbours", subject, why))
                continue
            far = float(np.max(moved[how]))  # a NaN, if there is one
            args = (subject, claim, True, far, far - slack, far + slack)
            found.append(Finding("neighbours", *args))
        return found

    def slack(self, whole: Gradients, once: float) -> float:
        """What rounding may add to the difference of two releases.

        The other samples' gradients are rounded independently of each other; the sum is rounded
        to its dtype; and small numbers, to the smallest there are.
        """
        share = max(map(rounding, whole.values()))
        others = once * len(self.batch.present) ** 0.5
        least = sum(g.numel() * (i.tiny * i.eps) ** 2 for g, i in map(with_info, whole.values()))
        return share * (others + length(whole)) + least**0.5


def with_info(g: Tensor) -> tuple[Tensor, torch.finfo]:
    return g, torch.finfo(g.dtype)


def rounding(g: Tensor) -> float:
    """What rounding may add to a gradient, in units of it."""
    device = g.device.type
    coarse = ROUNDING.get(g.dtype, max(ROUNDING.values()))
    if device != "cpu" and g.dtype == torch.float32:
        coarse = TENSOR_CORES
    if torch.is_autocast_enabled(device):
        coarse = max(coarse, ROUNDING.get(torch.get_autocast_dtype(device), 0.0))
    return coarse
