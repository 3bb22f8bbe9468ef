"""Tests whether numbers are independent and normal, with mean 0 and one deviation.

Their deviation need not be known. Letters: T releases, k numbers of a parameter in each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from fxdp.auditing.report import Finding

Array = Any  # of numpy
SURELY = 10.0  # standard deviations that a normal number does not exceed


@dataclass(frozen=True)
class Correlation:
    """A correlation, and its range where the true one is 0.

    Attributes:
        name: of what.
        measured: the estimate.
        least, most: the range.
    """

    name: str
    measured: float
    least: float
    most: float

    @property
    def excess(self) -> float:
        """How far it is, in units of how far it may be by chance."""
        return self.measured / (self.most if self.measured > 0 else self.least)

    def finding(self, subject: str) -> Finding:
        """The claim that it is 0; the interval is for the true correlation."""
        low, high = self.measured - self.most, self.measured - self.least
        return Finding("noise", f"{subject} ({self.name})", 0.0, False, self.measured, low, high)


def common(name: str, x: Array, mistake: float, blur: float) -> Correlation:
    """How far the k > 1 numbers of each of g groups, x [g, k], have something in common.

    Groups are independent. If the numbers in a group are, too, the sum of a group over sqrt(k) is
    one of k coordinates after a rotation; so the share of those sums in the square of all has the
    beta distribution B(g / 2, g (k - 1) / 2), and 1 / k for a mean. With correlation r between any
    two, the mean is (1 + (k - 1) r) / k.

    Args:
        mistake: the probability that independent numbers fall outside of the range.
        blur: what else may be in the numbers, in units of their deviation: rounding.
    """
    g, k = x.shape
    share = float((x.sum(1) ** 2).sum() / k / (x**2).sum())
    there = stats.beta(g / 2, g * (k - 1) / 2)
    least, most = there.ppf(mistake / 2), there.isf(mistake / 2)
    room = blur * (blur + SURELY / (g * k) ** 0.5)

    def as_correlation(share: float) -> float:
        return (k * share - 1) / (k - 1)

    return Correlation(
        name, as_correlation(share), as_correlation(least) - room, as_correlation(most) + room
    )


def strongest_pair(
    kept: Mapping[str, Array], mistake: float, blur: Mapping[str, float]
) -> Correlation:
    """The two parameters whose numbers, [T, k] each, are most alike, place by place.

    Of independent numbers the squared correlation of n pairs has the distribution
    B(1 / 2, (n - 1) / 2), as their means are known to be 0. Parameters of different sizes are
    compared on as many first numbers as the smaller one has.
    """
    names = list(kept)
    width = max(x.shape[1] for x in kept.values())
    sizes = np.array([x.shape[1] for x in kept.values()])
    padded = np.stack([np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in kept.values()])
    flat = padded.reshape(len(names), -1)
    products = flat @ flat.T
    squares = np.cumsum((padded**2).sum(1), axis=1)  # [P, width], of the first numbers
    releases, mistake = padded.shape[1], mistake / (len(names) * (len(names) - 1) / 2)
    limits = {
        int(size): float(stats.beta.isf(mistake, 0.5, (releases * size - 1) / 2)) ** 0.5
        for size in set(sizes)
    }

    def pair(i: int, j: int) -> Correlation:
        size = min(int(sizes[i]), int(sizes[j]))
        alike = float(products[i, j] / np.sqrt(squares[i, size - 1] * squares[j, size - 1]))
        worst = max(blur[names[i]], blur[names[j]])
        limit = limits[size] + worst * (worst + SURELY / (releases * size) ** 0.5)
        return Correlation(f"{names[i]}, {names[j]}", alike, -limit, limit)

    return max((pair(i, j) for i, j in combinations(range(len(names)), 2)), key=lambda c: c.excess)
