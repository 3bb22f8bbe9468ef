"""What releases cost in privacy: thin functions over dp-accounting.

The mechanism is a Gaussian sum over a batch: samples are drawn (`sampling`), each adds a
vector of norm at most C, noise of standard deviation sigma * C is added. C cancels out of the
account, because sigma is a multiple of it. Releases add up whatever their order, so a tally
of mechanisms is all that is needed. Which data sets are neighbours, `sampling_rule` says.
"""

import copy
import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real

import dp_accounting
from dp_accounting import pld
from torch import Tensor

from fxdp.arguments import require_delta, require_one_of, require_rate, require_whole
from fxdp.privacy.grid import COARSEST, FINEST, interval
from fxdp.privacy.release import Mechanism
from fxdp.privacy.renyi import ORDERS, RenyiAccount
from fxdp.privacy.sampling import SAMPLINGS, Poisson
from fxdp.privacy.sampling_rule import Accountant, Neighbours, Sampling, stated

Tally = Mapping[Mechanism, int]  # how often each mechanism was used
NEGLIGIBLE = 1e-6  # a noise multiplier below it counts as none


@dataclass(frozen=True)
class Composed:
    """What dp-accounting makes of a tally.

    Attributes:
        tally: mechanisms that were used once or more.
        neighbours: the relation.
        account: of RDP, or dp-accounting's of a PLD; it knows nothing of the tally if `interval`
            is above COARSEST.
        interval: of the grid of a PLD; 0 for RDP, which has none.
    """

    tally: Tally
    neighbours: Neighbours
    account: pld.PLDAccountant | RenyiAccount
    interval: float


def epsilon(
    noise_multiplier: float,
    sample_rate: float | Sampling | None,
    steps: int,
    delta: float,
    accountant: Accountant = "pld",
    neighbours: Neighbours = "add-or-remove-one",
    num_samples: int | None = None,
) -> float:
    """Returns the epsilon that `steps` steps of DP-SGD spend, at this delta.

    Guarantees:
        The released sequence of sums is (epsilon, delta)-differentially private for these
        neighbours, if every step's batch is drawn afresh in the way that `sample_rate` says,
        nobody learns the batches, and the noise is fresh. Both accountants return an upper
        bound.

    | edge case                    | epsilon                                            |
    |------------------------------|----------------------------------------------------|
    | steps = 0                    | 0, whatever the noise                              |
    | noise_multiplier = 0         | inf, once steps > 0                                |
    | ... and below 1e-6           | as if it were 0: epsilon would be above 1e11       |
    | sample_rate = 1 or None      | the Gaussian mechanism: sampling hides nothing     |
    | FixedSize                    | only for "replace-one" by "rdp", else ValueError   |
    | TruncatedPoisson             | only by "pld", else ValueError                     |
    | Poisson for "replace-one"    | only by "pld", else ValueError                     |
    | CyclicPoisson(q, parts)      | ceil(steps / parts) steps of Poisson(q)            |
    | any argument out of range    | ValueError; also NaN and infinite noise            |
    | delta >= 1 / num_samples     | as ever, with a DeltaWarning                       |

    Args:
        noise_multiplier: sigma, the noise's standard deviation in units of C, the bound on one
            sample's contribution, for either kind of neighbours; in [0, inf).
        sample_rate: q of Poisson sampling, in (0, 1], or another way to draw a batch, or None
            for none that hides anything.
        steps: how many noisy sums are released, those of empty batches included; >= 0.
        delta: in (0, 1); customarily below one over the number of samples.
        accountant: "pld" composes privacy loss distributions (Doroshenko et al. 2022, arXiv
            2207.04380): tight; tenths of a second. It rounds the losses up to a grid, which is
            the coarser the larger they are; far in the millions, where there is no grid any
            more, the bound is that of `epsilon_beyond_grids`. "rdp" composes Renyi divergences
            (Mironov, Talwar, Zhang 2019, arXiv 1908.10530; for FixedSize Wang, Balle,
            Kasiviswanathan 2019, arXiv 1808.00087): some 10 % larger, and takes milliseconds.
        neighbours: which data sets must not be distinguishable.
        num_samples: size of the data set, for the warning about delta alone; where the way to
            draw knows it, None will do.

    Returns:
        epsilon, in nats.

    Raises:
        ValueError: an argument is out of its range, or this accountant has no bound for this
            way to draw; the message names it.
    """
    mechanism = Mechanism(noise_multiplier, as_sampling(sample_rate))
    steps = require_whole("steps", steps, 0)
    delta = require_delta(delta, num_samples or stated(mechanism.sampling).known_samples)
    check_supported(mechanism.sampling, accountant, neighbours)
    return epsilon_of_one(mechanism, steps, accountant, neighbours, delta)


def as_sampling(sample_rate: float | Sampling | None) -> Sampling | None:
    """A bare number is the rate of Poisson sampling.

    Raises:
        ValueError: the number is not in (0, 1].
    """
    match sample_rate:
        case None:
            return None
        case Sampling() if isinstance(sample_rate, tuple(SAMPLINGS.values())):
            return sample_rate
        case Real() | Tensor():  # pyright: ignore[reportUnnecessaryComparison]
            return Poisson(require_rate("sample_rate", sample_rate))
        case _:
            raise ValueError(
                f"sample_rate must be in (0, 1], a way to draw, or None, got {sample_rate!r}"
            )


def check_supported(
    sampling: Sampling | None, accountant: Accountant, neighbours: Neighbours
) -> None:
    """Raises ValueError, with what would be right, unless there is a bound for all three."""
    require_one_of(Accountant, "accountant", accountant)
    require_one_of(Neighbours, "neighbours", neighbours)
    if (lacking := stated(sampling).lacks(accountant, neighbours)) is not None:
        raise ValueError(f"dp-accounting has no bound for {lacking}")


def compose(
    tally: Tally,
    accountant: Accountant,
    neighbours: Neighbours,
    orders: tuple[float, ...] = ORDERS,
    coarser: float = 1.0,
) -> Composed:
    """What dp-accounting makes of a tally; the mechanisms must be supported.

    `CyclicPoisson` steps are taken to be all of one stream, in a row. Fewer `orders` of RDP, and a
    grid that is `coarser` than a PLD's own, take less time and bound epsilon less closely.
    """
    used = Counter[Mechanism]()
    for mechanism, steps in tally.items():
        of_one, count = mechanism.uses(steps)
        used[of_one] += count
    grid = _grid(used, accountant, neighbours)
    grid = max(grid, min(grid * coarser, COARSEST))
    fresh = _fresh(accountant, neighbours, grid, orders)
    return _added(Composed({}, neighbours, fresh, grid), used)


def with_more(account: Composed, more: Tally) -> Composed:
    """The account with more mechanisms in it; the one that is given stays as it was.

    Without `CyclicPoisson` among them, of which what one sample has of them must be known.
    """
    accountant = "rdp" if isinstance(account.account, RenyiAccount) else "pld"
    total = Counter(account.tally)
    total.update(more)
    if _grid(total, accountant, account.neighbours) != account.interval:
        return compose(total, accountant, account.neighbours)
    return _added(account, more)


def epsilon_of(account: Composed, delta: float) -> float:
    """Epsilon of an account at delta, in nats; inf where something had no noise."""
    bound = math.inf
    if account.interval > FINEST:
        bound = epsilon_beyond_grids(account.tally, delta, account.neighbours)
    if account.interval > COARSEST:
        return bound
    return min(bound, float(account.account.get_epsilon(delta)))


@functools.lru_cache(maxsize=4096)
def epsilon_of_one(
    mechanism: Mechanism, count: int, accountant: Accountant, neighbours: Neighbours, delta: float
) -> float:
    """Epsilon of one mechanism, `count` times. What was asked before is not computed again."""
    return epsilon_of(compose({mechanism: count}, accountant, neighbours), delta)


def epsilon_beyond_grids(tally: Tally, delta: float, neighbours: Neighbours) -> float:
    """A bound on epsilon without amplification, which needs neither a grid nor a root.

    rho + 2 sqrt(rho log(1 / delta)), of Gaussians that are rho-zCDP together (Bun and Steinke
    2016, arXiv 1605.02065, proposition 1.3). Against the closed form of `epsilon_of_known_batches`
    that is little more where epsilon is large, and rounds the right way.
    """
    precision = _precision(tally, neighbours)
    return precision / 2 + math.sqrt(2 * precision * math.log(1 / delta))


def epsilon_of_known_batches(tally: Tally, delta: float, neighbours: Neighbours) -> float:
    """Epsilon against an adversary who knows which samples were drawn into which batch.

    Gaussian mechanisms without sampling compose into one, whose epsilon has a closed form
    (Balle and Wang 2018, arXiv 1805.06530). A truncated batch that loses a sample may gain
    another, which moves its sum by 2 C for either kind of neighbours.
    """
    precision = _precision(tally, neighbours)
    if precision in (0.0, math.inf):
        return precision
    return float(dp_accounting.get_epsilon_gaussian(1 / math.sqrt(precision), delta))


def _precision(tally: Tally, neighbours: Neighbours) -> float:
    """1 / sigma^2 of the Gaussian that all are together, without sampling; inf without noise."""
    precision = 0.0
    for mechanism, count in tally.items():
        if count and mechanism.noise_multiplier < NEGLIGIBLE:
            return math.inf
        if count:
            moved = stated(mechanism.sampling).distance(neighbours)
            precision += count * (moved / mechanism.noise_multiplier) ** 2
    return precision


def _grid(tally: Tally, accountant: Accountant, neighbours: Neighbours) -> float:
    noisy = {m: count for m, count in tally.items() if count and m.noise_multiplier >= NEGLIGIBLE}
    return interval(noisy, neighbours) if accountant == "pld" else 0.0


def _added(account: Composed, more: Tally) -> Composed:
    """The account with more mechanisms that its grid is fine for."""
    total, composed = Counter(account.tally), account.account
    total.update(more)
    if account.interval <= COARSEST:
        composed = composed if isinstance(composed, RenyiAccount) else copy.deepcopy(composed)
        for mechanism, count in more.items():
            if count:
                event = _event(mechanism, composed)
                if isinstance(composed, RenyiAccount):
                    composed = composed.composed(event, count)
                else:
                    composed.compose(event, count)
    return replace(account, tally=dict(total), account=composed)


def _event(
    mechanism: Mechanism, account: pld.PLDAccountant | RenyiAccount
) -> dp_accounting.DpEvent:
    sigma = mechanism.noise_multiplier
    if sigma < NEGLIGIBLE:
        # Besides, the square of a number like 1e-160 is 0, and epsilon of RDP would be 0 too.
        return dp_accounting.NonPrivateDpEvent()
    # For REPLACE_ONE the RDP accountant takes noise in units of the distance of two sums, which
    # is 2 C, and the PLD accountant in units of C, like fxdp.
    replaced = account.neighboring_relation is dp_accounting.NeighboringRelation.REPLACE_ONE
    in_its_units = sigma / 2 if replaced and isinstance(account, RenyiAccount) else sigma
    return stated(mechanism.sampling).event(dp_accounting.GaussianDpEvent(in_its_units))


def _fresh(
    accountant: Accountant, neighbours: Neighbours, grid: float, orders: tuple[float, ...]
) -> pld.PLDAccountant | RenyiAccount:
    match neighbours:
        case "add-or-remove-one":
            relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        case "replace-one":
            relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    match accountant:
        case "rdp":
            return RenyiAccount(relation, orders)
        case "pld":
            return pld.PLDAccountant(relation, min(grid, COARSEST))
