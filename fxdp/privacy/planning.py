"""Questions before a run: which noise a budget asks for, and how far a noise carries."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fxdp.arguments import (
    require,
    require_delta,
    require_epsilon,
    require_number,
    require_whole,
)
from fxdp.privacy.accounting import as_sampling, check_supported, compose, epsilon_of
from fxdp.privacy.release import Mechanism
from fxdp.privacy.sampling_rule import Accountant, Neighbours, Sampling, stated
from fxdp.privacy.search import most_steps

NOISE_LIMIT = 2.0**20  # in units of C; whoever needs more has asked for something else
TOLERANCE = 1e-6  # of the noise multiplier, absolute


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
        accountant: as for `epsilon`. "pld" is asked some ten times, near the answer of "rdp".
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

    def spent(sigma: float, by: Accountant, sampling: Sampling | None) -> float:
        tally = {Mechanism(sigma, sampling): steps}
        return epsilon_of(compose(tally, by, neighbours), delta)

    def quick(sigma: float) -> float:
        return spent(sigma, "rdp", stated(sampling).for_rdp(neighbours))

    def exact(sigma: float) -> float:
        return spent(sigma, accountant, sampling)

    try:
        found = _least_noise(quick, epsilon, start=1.0, factor=2.0)
        if accountant != "rdp":
            found = _least_noise(exact, epsilon, start=found, factor=1.1)
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
        return epsilon_of(compose({mechanism: steps}, accountant, neighbours), delta)

    return most_steps(after, epsilon)


class OutOfReach(Exception):
    """No noise multiplier up to NOISE_LIMIT is enough."""


def _least_noise(
    epsilon_at: Callable[[float], float], budget: float, start: float, factor: float
) -> float:
    """The least sigma with epsilon_at(sigma) <= budget, to TOLERANCE, from above."""
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
    return _crossing(lambda sigma: epsilon_at(sigma) - budget, Bracket(low, below, high, above))


@dataclass(frozen=True)
class Bracket:
    """Noise `low` that is too little, and `high` that is enough, with what epsilon exceeds."""

    low: float
    below: float  # > 0, inf perhaps
    high: float
    above: float  # <= 0


def _crossing(excess: Callable[[float], float], at: Bracket) -> float:
    """A point where `excess` is not above 0 and, TOLERANCE further down, is: false position.

    The end that stays gets half the weight each time (the Illinois rule), and no point is
    tried within half of TOLERANCE from either end, so that the bracket closes.
    """
    while at.high - at.low > TOLERANCE:
        share = at.below / (at.below - at.above) if at.below < math.inf else 0.5
        middle = at.low + (at.high - at.low) * share
        middle = min(max(middle, at.low + TOLERANCE / 2), at.high - TOLERANCE / 2)
        value = excess(middle)
        if value > 0:
            at = Bracket(middle, value, at.high, at.above / 2)
        else:
            at = Bracket(at.low, at.below / 2, middle, value)
    return at.high
