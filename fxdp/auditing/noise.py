"""The noise of a step: its level, and that all its numbers are drawn apart.

A release less the same release without noise should be N(0, (sigma C / L)^2) in every coordinate,
independently: in one parameter and another, in this release and the next. The sum of the squares is
then chi-square distributed, which gives an interval for sigma.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from fxdp.auditing.correlation import Correlation, common, strongest_pair
from fxdp.auditing.releases import Gradients, grain
from fxdp.auditing.report import Finding, Unjudged

COARSEST = 1 / 8  # of the noise: how far apart a dtype's numbers may be where it is measured
INNER = 1e-6  # relative: what rounding may add before the last one, as in sums in another order
MOST, LEAST, ROOM = 1024, 16, 1 << 25  # numbers kept, of one parameter and release; and of all


class Noise:
    """The noise of many releases, tallied as they come.

    Coordinates where the dtype is too coarse for the noise are left out: of bf16 and fp16, where
    the sum is much larger than the noise. What rounding may do to the others widens the intervals.

    Args:
        names: the parameters that get noise.
        deviation: sigma C / L, what it should be.
        sigma: the noise multiplier.
        releases: how many are to come.
    """

    def __init__(self, names: Sequence[str], deviation: float, sigma: float, releases: int) -> None:
        self.names, self.deviation, self.sigma = names, deviation, sigma
        self.squares = dict.fromkeys(names, 0.0)
        self.rounding = dict.fromkeys(names, 0.0)  # squared
        self.counts = dict.fromkeys(names, 0)
        self.places: dict[str, Tensor] = {}
        self.kept: dict[str, list[Tensor]] = {name: [] for name in names}
        self.blur: dict[str, float] = {}
        self.most = min(MOST, max(LEAST, ROOM // (releases * max(len(names), 1))))

    def add(self, noisy: Gradients, clean: Gradients) -> None:
        """One release, and the same without noise."""
        for name in self.names:
            got, base = noisy[name].flatten(), clean[name].flatten()
            fine = ~((grain(base) > COARSEST * self.deviation) & torch.isfinite(base))
            rounded = (grain(got) + grain(base)) / 2 + INNER * (got.double().abs() + base.abs())
            noise = got.double() - base.double()
            self.squares[name] += float(noise[fine].square().sum())
            self.rounding[name] += float(rounded[fine].square().sum())
            self.counts[name] += int(fine.sum())
            if name not in self.places:
                self.places[name] = places = fine.nonzero().flatten()[: self.most]
                own = rounded[places].square().sum() / max(len(places), 1)
                self.blur[name] = float(own) ** 0.5 / self.deviation
            self.kept[name].append(noise[self.places[name]].float().cpu())

    def findings(self, mistake: float) -> list[Finding | Unjudged]:
        """What was found.

        Args:
            mistake: for each of four questions (the level, and three correlations) the
                probability that a correct step's noise is found wrong, at most.
        """
        found: list[Finding | Unjudged] = []
        names = [name for name in self.names if self.counts[name]]
        each = mistake / (len(names) + 1)
        if len(names) > 1:
            found.append(self.level("all parameters", names, each))
        found += [self.level(name, [name], each) for name in names]
        for name in self.names:
            if not self.counts[name]:
                why = "its dtype is too coarse to show the noise next to sums so large"
                found.append(Unjudged("noise", f"noise multiplier, {name}", why))
        return found + self.correlations(mistake)

    def level(self, subject: str, names: Sequence[str], mistake: float) -> Finding:
        """An interval for the noise multiplier of some parameters together.

        Rounding adds a vector of known length at most, and so to the length of the noise.
        """
        count = sum(self.counts[n] for n in names)
        length = sum(self.squares[n] for n in names) ** 0.5
        slack = sum(self.rounding[n] for n in names) ** 0.5
        unit = self.sigma / self.deviation
        least, most = stats.chi2.isf(mistake / 2, count), stats.chi2.ppf(mistake / 2, count)
        low = max(length - slack, 0.0) * unit / float(least) ** 0.5
        high = (length + slack) * unit / float(most) ** 0.5
        seen = length * unit / count**0.5
        return Finding("noise", f"noise multiplier, {subject}", self.sigma, False, seen, low, high)

    def correlations(self, mistake: float) -> list[Finding | Unjudged]:
        """Whether the numbers that were kept are independent; where there is noise at all."""
        stacked = {n: torch.stack(x).double().numpy() for n, x in self.kept.items()}
        kept = {n: x for n, x in stacked.items() if np.isfinite(x).all() and x.any()}
        several = {n: x for n, x in kept.items() if x.shape[1] > 1}
        found: list[Finding | Unjudged] = []

        def told(what: str, correlations: list[Correlation]) -> None:
            if correlations:
                worst = max(correlations, key=lambda c: c.excess)
                found.append(worst.finding(f"correlation of noise {what}"))

        blur = self.blur
        one, other = mistake / max(len(kept), 1), mistake / max(len(several), 1)
        told("between releases", [common(n, x.T, one, blur[n]) for n, x in kept.items()])
        told("within a parameter", [common(n, x, other, blur[n]) for n, x in several.items()])
        if len(kept) > 1:
            told("between parameters", [strongest_pair(kept, mistake, blur)])
        return found
