"""Questions before a run: which noise a budget asks for, and how far a noise carries."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from scipy.optimize import brentq

from fxdp.arguments import (
    require,
    require_delta,
    require_epsilon,
    require_number,
    require_whole,
)
from fxdp.privacy.accounting import (
    as_sampling,
    check_supported,
    compose,
    epsilon_of,
    epsilon_of_one,
)
from fxdp.privacy.release import Mechanism
from fxdp.privacy.renyi import WHOLE_ORDERS
from fxdp.privacy.sampling_rule import Accountant, Neighbours, Sampling, stated
from fxdp.privacy.search import most_steps

NOISE_LIMIT = 2.0**20  # in units of C; whoever needs more has asked for something else
TOLERANCE = 1e-6  # of the noise multiplier, absolute
COARSER = 16.0  # the grid on which a PLD is asked until it is near its answer


def calibrate(
    epsilon: float,
    delta: float,
    sample_rate: float | Sampling | None,
    steps: int,
    accountant: Accountant = "pld",
    neighbours: Neighbours = "add-or-remove-one",
    num_samples: int | None = None,
) -> float:
    """Returns the smallest noise multiplier that keeps `steps` steps within (epsilon, delta).

    Guarantees:
        `fxdp.privacy.epsilon`, given the result and the same other arguments, returns at most
        the budget, under the same conditions. The result is within 1e-6 of the smallest such
        number.

    | edge case                  | noise multiplier                                         |
    |----------------------------|----------------------------------------------------------|
    | steps = 0                  | 0: nothing is released                                   |
    | epsilon = inf              | 0: nothing is promised                                   |
    | sample_rate = 1 or None    | that of the Gaussian mechanism without sampling          |
    | none below 2**20 is enough | ValueError                                               |
    | any argument out of range  | ValueError; also NaN                                     |
    | a way to draw for which the accountant has no bound | ValueError                      |
    | delta >= 1 / num_samples   | as ever, with a DeltaWarning                             |

    Args:
        epsilon: the budget, in nats; in (0, inf].
        delta: in (0, 1).
        sample_rate: q of Poisson sampling, in (0, 1], another way to draw, or None.
        steps: how many noisy sums will be released; >= 0.
        accountant: as for `epsilon`; asked some ten times, near the answer of a quick bound.
        neighbours: which data sets must not be distinguishable.
        num_samples: size of the data set, for the warning about delta.

    Raises:
        ValueError: an argument is out of its range, or epsilon is out of reach; the message
            names the argument.
    """
    epsilon = require_epsilon(epsilon)
    sampling = as_sampling(sample_rate)
    steps = require_whole("steps", steps, 0)
    delta = require_delta(delta, num_samples or stated(sampling).known_samples)
    check_supported(sampling, accountant, neighbours)
    if steps == 0 or epsilon == math.inf:
        return 0.0

    def quick(sigma: float) -> float:
        tally = {Mechanism(sigma, stated(sampling).for_rdp(neighbours)): steps}
        return epsilon_of(compose(tally, "rdp", neighbours, WHOLE_ORDERS), delta)

    def coarse(sigma: float) -> float:
        tally = {Mechanism(sigma, sampling): steps}
        return epsilon_of(compose(tally, accountant, neighbours, coarser=COARSER), delta)

    def exact(sigma: float) -> float:
        return epsilon_of_one(Mechanism(sigma, sampling), steps, accountant, neighbours, delta)

    try:
        near, like = _least_noise(quick, epsilon, start=1.0, factor=2.0, tolerance=1e-3), quick
        if accountant == "pld":
            near, like = _least_noise(coarse, epsilon, near, factor=1.1, tolerance=1e-5), coarse
        found = _polished(exact, like, epsilon, near)
        if found is None:
            found = _least_noise(exact, epsilon, near, factor=1.001)
    except OutOfReach as error:
        raise ValueError(
            f"epsilon is too small for {steps} steps: no noise multiplier below "
            f"{NOISE_LIMIT:g} keeps them within {epsilon!r}"
        ) from error
    return found


def steps_within(
    epsilon: float,
    delta: float,
    sample_rate: float | Sampling | None,
    noise_multiplier: float,
    accountant: Accountant = "pld",
    neighbours: Neighbours = "add-or-remove-one",
    num_samples: int | None = None,
) -> int:
    """Returns how many steps with this noise stay within (epsilon, delta).

    Guarantees:
        `fxdp.privacy.epsilon` of the result is at most the budget, and of one step more is
        above it, except at 2**31, where the search ends.

    | edge case                 | steps                                                     |
    |---------------------------|-----------------------------------------------------------|
    | noise_multiplier = 0      | 0                                                         |
    | one step is too much      | 0                                                         |
    | 2**31 steps or more fit   | 2**31                                                     |
    | any argument out of range | ValueError; also NaN, and an infinite epsilon             |
    | a way to draw for which the accountant has no bound | ValueError                      |
    | delta >= 1 / num_samples  | as ever, with a DeltaWarning                              |

    Args:
        epsilon: the budget, in nats; in (0, inf).
        delta: in (0, 1).
        sample_rate: q of Poisson sampling, in (0, 1], another way to draw, or None.
        noise_multiplier: sigma, in units of C; in [0, inf).
        accountant: as for `epsilon`.
        neighbours: which data sets must not be distinguishable.
        num_samples: size of the data set, for the warning about delta.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    epsilon = require_number("epsilon", epsilon)
    require(0 < epsilon < math.inf, "epsilon", epsilon, "in (0, inf)")
    mechanism = Mechanism(noise_multiplier, as_sampling(sample_rate))
    delta = require_delta(delta, num_samples or stated(mechanism.sampling).known_samples)
    check_supported(mechanism.sampling, accountant, neighbours)

    def after(steps: int) -> float:
        return epsilon_of_one(mechanism, steps, accountant, neighbours, delta)

    return most_steps(after, epsilon)


class OutOfReach(Exception):
    """No noise multiplier up to NOISE_LIMIT is enough."""


def _least_noise(
    epsilon_at: Callable[[float], float],
    budget: float,
    start: float,
    factor: float,
    tolerance: float = TOLERANCE,
) -> float:
    """The least sigma with epsilon_at(sigma) <= budget, to a tolerance, from above."""
    value = epsilon_at(start)
    low = high = start
    below = above = value - budget
    if value <= budget:
        while below <= 0:
            high, above = low, below
            low, factor = low / factor, min(factor**1.5, 2.0)
            below = epsilon_at(low) - budget
    else:
        while above > 0:
            low, below = high, above
            high, factor = high * factor, min(factor**1.5, 2.0)
            if high > NOISE_LIMIT:
                raise OutOfReach
            above = epsilon_at(high) - budget
    at = Bracket(low, below, high, above)
    return _crossing(lambda sigma: epsilon_at(sigma) - budget, at, tolerance)


def _polished(
    exact: Callable[[float], float], like: Callable[[float], float], budget: float, near: float
) -> float | None:
    """The least sigma with exact(sigma) <= budget, to TOLERANCE, where `near` is near it.

    By secants, of which the first has the slope of a function that is `like` the exact one; what is
    returned was asked, and so was what is TOLERANCE further down. None where they go astray.
    """
    step = 1e-3 * near
    slope = (like(near) - like(near - step)) / step
    at, excess = near, exact(near) - budget
    for _ in range(4):
        if not -math.inf < slope < 0 or excess == math.inf:
            return None
        found = at - excess / slope
        if abs(found - at) < 100 * TOLERANCE:
            high, low = found + TOLERANCE / 2, found - TOLERANCE / 2
            return high if exact(high) <= budget < exact(low) else None
        if not 0.5 * near < found < 2 * near:
            return None
        value = exact(found) - budget
        slope, at, excess = (value - excess) / (found - at), found, value
    return None


@dataclass(frozen=True)
class Bracket:
    """Noise `low` that is too little, and `high` that is enough, with what epsilon exceeds."""

    low: float
    below: float  # > 0, inf perhaps
    high: float
    above: float  # <= 0


def _crossing(excess: Callable[[float], float], at: Bracket, tolerance: float) -> float:
    """A point where `excess` is not above 0 and, `tolerance` further down, is.

    By Brent's method, to a quarter of the tolerance, and from there half of it up.
    """
    while at.below == math.inf and at.high - at.low > tolerance:
        middle = (at.low + at.high) / 2
        value = excess(middle)
        at = (
            replace(at, low=middle, below=value)
            if value > 0
            else replace(at, high=middle, above=value)
        )
    if at.high - at.low <= tolerance or at.above == 0:
        return at.high
    known = {at.low: at.below, at.high: at.above}

    def asked(sigma: float) -> float:
        if sigma not in known:
            known[sigma] = excess(sigma)
        return known[sigma]

    found: Any = brentq(asked, at.low, at.high, xtol=tolerance / 4)
    up = float(found) + tolerance / 2
    while up < at.high and asked(up) > 0:
        up += tolerance / 2
    return min(up, at.high)
