"""How fine a grid the distributions of privacy losses are kept on.

dp-accounting keeps them as arrays, and losses grow as 1 / sigma^2: with little noise, and a grid
for the usual one, an array would have more numbers than the memory holds. Losses that large need
no fine grid. On a coarser one the bound is as sound, because dp-accounting lets the distribution
on the grid dominate the true one ("connecting the dots", Doroshenko et al. 2022, arXiv
2207.04380); only how close it comes depends on the grid.

Letters: a how far one sample moves a sum, in standard deviations of its noise; q the rate.
"""

import math
from collections.abc import Mapping

from fxdp.privacy.release import Mechanism
from fxdp.privacy.sampling_rule import Neighbours, stated

FINEST = 1e-4  # dp-accounting's own choice
COARSEST = 100.0  # its arithmetic takes the exponential of an interval
POINTS_OF_ONE = 2e5  # those of a mixture of Gaussians take microseconds each to find
POINTS = 1e6  # of a composition, which is a Fourier transform


def interval(tally: Mapping[Mechanism, int], neighbours: Neighbours) -> float:
    """The distance of two points of the grid, for releases with these losses.

    A power of 2 times FINEST, so that every grid is a part of each finer one. If it is above
    COARSEST, no grid will do. The width of the losses is estimated; a wrong estimate costs time,
    and no privacy.

    Args:
        tally: mechanisms with noise, and how often each was used.
        neighbours: which data sets must not be distinguishable.
    """
    alone, precision, mean, variance = 0.0, 0.0, 0.0, 0.0
    for mechanism, count in tally.items():
        sampling = stated(mechanism.sampling)
        a = sampling.distance(neighbours) / mechanism.noise_multiplier
        q = sampling.probability
        if q == 1:  # Gaussians without sampling are made into one before their losses are
            precision += count * a * a
        else:
            # Where the noise is little, a sample's part is seen whenever it is drawn, and the
            # loss is N(a^2 / 2, a^2) then; where it is much, q (exp(its own) - 1) or so.
            alone = max(alone, a * a / 2 + 8 * a)
            mean += count * q * min(a * a, q * _excess(a)) / 2
            variance += count * min(q * (1 - q) * a**4 / 4 + q * a * a, q * q * _excess(a))
    width = max(alone, precision + 20 * math.sqrt(precision)) + mean + 16 * math.sqrt(variance)
    wanted = max(alone / POINTS_OF_ONE, width / POINTS)
    return FINEST * 2.0 ** max(0, math.ceil(math.log2(wanted / FINEST))) if wanted else FINEST


def _excess(a: float) -> float:
    """The variance of a likelihood ratio: of N(a, 1) to N(0, 1), under the latter."""
    return math.expm1(a * a) if a < 20 else math.inf
