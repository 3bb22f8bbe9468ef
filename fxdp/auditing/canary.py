"""A lower bound on epsilon: how well a release reveals whether a sample was in the batch.

The adversary knows all but that, and the noise: parameters, batch, and the canary's own clipped
gradient v. What a release has beyond the sum of the others is projected on v, and a release with
more than a threshold is taken for one with the canary. How often that is wrong, without the
canary and with it, bounds what privacy there can be.

Letters: a the false positive rate, b the false negative rate, R releases of either kind.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dp_accounting
import numpy as np
from scipy import stats

from fxdp.auditing.report import Finding, Unjudged

Array = Any  # of numpy, float64; bounds work on numbers too
Bound = Callable[[Array, Array], Array]  # from a and b to how much can be inferred, larger is more


@dataclass(frozen=True)
class Guesses:
    """Scores of releases, and what they are judged by.

    Attributes:
        present, absent: [R] scores of releases with the canary and without.
        at: the clip bound, for the report.
        delta: at which epsilon is meant; in (0, 1).
        claim: epsilon of one release, in nats, by the accountant.
        mistake: the probability that a bound on epsilon is wrong, at most; in (0, 1).
    """

    present: Array
    absent: Array
    at: str
    delta: float
    claim: float
    mistake: float

    def findings(self) -> list[Finding | Unjudged]:
        """Two lower bounds on epsilon, each on its own right but for `mistake`."""
        return [
            self.judged(f"epsilon, by a Gaussian's trade-off, {self.at}", gaussian, self.of_mu),
            self.judged(f"epsilon, by error rates alone, {self.at}", self.direct, float),
        ]

    def direct(self, a: Array, b: Array) -> Array:
        """What is (epsilon, delta)-private has b >= 1 - delta - e^epsilon a, and so with a for b.

        Kairouz, Oh, Viswanath 2015 (arXiv 1311.0776), theorem 2.1.
        """
        with np.errstate(divide="ignore"):
            one, other = (np.log(np.maximum(1 - self.delta - b, 0)) - np.log(a),
                          np.log(np.maximum(1 - self.delta - a, 0)) - np.log(b))  # fmt: skip
        return np.maximum(one, other)

    def of_mu(self, mu: float) -> float:
        """Epsilon of mu-GDP at delta: of a Gaussian with noise 1 / mu."""
        if not 0 < mu < math.inf:
            return max(mu, 0.0)
        return float(dp_accounting.get_epsilon_gaussian(1 / mu, self.delta))

    def judged(
        self, subject: str, bound: Bound, epsilon: Callable[[float], float]
    ) -> Finding | Unjudged:
        """One lower bound against the claim; the threshold is chosen on one half of the releases
        and judged on the other."""
        count = len(self.present)
        half = count // 2
        if not (np.isfinite(self.present).all() and np.isfinite(self.absent).all()):
            return Finding("canary", subject, self.claim, True, math.nan, math.nan, math.nan)
        none = self.at_most(0, count - half)
        most = max(epsilon(float(bound(none, none))), 0.0)
        if most <= self.claim:
            why = f"releases={count} can show {most:.3g} at most: it takes more of them"
            return Unjudged("canary", subject, why)
        chosen, judge = slice(half), slice(half, None)
        edges = np.unique(np.concatenate([self.present[chosen], self.absent[chosen]]))
        places = (edges[1:] + edges[:-1]) / 2 if len(edges) > 1 else edges
        a, b = self.mistakes(chosen, places)
        best = np.argmax(bound(self.at_most(a, half), self.at_most(b, half)))
        a, b = (float(m[0]) for m in self.mistakes(judge, places[best : best + 1]))
        shown = bound(self.at_most(a, count - half), self.at_most(b, count - half))
        # In the estimate, no mistake counts as half of one.
        seen = bound(*(max(m, 0.5) / (count - half) for m in (a, b)))
        measured = max(epsilon(float(seen)), 0.0)
        low = max(epsilon(float(shown)), 0.0)
        return Finding("canary", subject, self.claim, True, max(measured, low), low, math.inf)

    def mistakes(self, part: slice, thresholds: Array) -> tuple[Array, Array]:
        """How many releases of a part are taken wrongly: without the canary, and with it."""
        present, absent = np.sort(self.present[part]), np.sort(self.absent[part])
        wrongly = len(absent) - np.searchsorted(absent, thresholds, side="right")
        missed = np.searchsorted(present, thresholds, side="right")
        return wrongly, missed

    def at_most(self, mistakes: Array, tries: int) -> Array:
        """The upper end of a Clopper-Pearson interval for a rate; both rates are within theirs
        but for `mistake`."""
        found = stats.beta.isf(self.mistake / 2, mistakes + 1, np.maximum(tries - mistakes, 1))
        return np.where(mistakes < tries, found, 1.0)


def gaussian(a: Array, b: Array) -> Array:
    """What is mu-GDP has mu >= Phi^-1(1 - a) - Phi^-1(b).

    Dong, Roth, Su 2019 (arXiv 1905.02383), eq. 6; for audits, Nasr et al. 2023 (arXiv 2302.07956),
    section 4.
    """
    return stats.norm.isf(a) - stats.norm.ppf(b)
