"""What a training run costs in privacy, and the noise that a budget asks for.

Thin functions over dp-accounting. The mechanism they account for is the compiled step under
Poisson sampling: every step draws each sample independently with probability q
(`PoissonBatchSampler`), clips its gradient to norm C, sums, and adds Gaussian noise of
standard deviation sigma * C. C cancels out of the account, because sigma is a multiple of it.
"""

import logging
import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, get_args

import dp_accounting
from dp_accounting import pld, rdp
from dp_accounting.mechanism_calibration import NoBracketIntervalFoundError

Accountant = Literal["pld", "rdp"]


def epsilon(
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    accountant: Accountant = "rdp",
) -> float:
    """Returns the epsilon that `steps` steps of DP-SGD have spent, at this delta.

    Guarantees:
        The released sequence of gradients is (epsilon, delta)-differentially private for
        neighbouring data sets of which one is the other with a sample added or removed, if
        every step's batch is a fresh Poisson sample at `sample_rate` and the noise is fresh.
        Both accountants return an upper bound. A pair of data sets that differ in the *value*
        of one sample is two such steps apart and not what this number is about.

    | edge case                  | epsilon                                          |
    |----------------------------|--------------------------------------------------|
    | steps = 0                  | 0, whatever the noise                            |
    | noise_multiplier = 0       | inf, once steps > 0                              |
    | sample_rate = 1            | the Gaussian mechanism on the full batch: the    |
    |                            | sampling hides nothing                           |
    | any argument out of range  | ValueError; also NaN and infinite noise          |

    Args:
        noise_multiplier: sigma, the noise's standard deviation in units of C; finite, >= 0.
        sample_rate: q, the probability of each sample to be in a batch; in (0, 1].
        steps: how many noisy gradients were released, those of empty batches included; >= 0.
        delta: in (0, 1); customarily below one over the number of samples.
        accountant: "rdp" composes Renyi divergences (Mironov, Talwar, Zhang 2019,
            arXiv 1908.10530) and takes milliseconds. "pld" composes privacy loss
            distributions (Doroshenko et al. 2022, arXiv 2207.04380): tighter, takes tenths of
            a second, and minutes where epsilon is in the hundreds.

    Returns:
        epsilon, in nats.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    _require(0 <= noise_multiplier < math.inf, "noise_multiplier", noise_multiplier, "in [0, inf)")
    _check_run(sample_rate, steps, delta, accountant)
    if steps == 0:
        return 0.0
    spent = _fresh(accountant)
    with _no_report_of_skipped_orders():
        spent.compose(_run(noise_multiplier, sample_rate, steps))
    return float(spent.get_epsilon(delta))


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant = "rdp",
) -> float:
    """Returns the smallest noise multiplier that keeps `steps` steps within (epsilon, delta).

    Guarantees:
        The function `epsilon` above, given the result and the same other arguments, returns at
        most the budget: for add-or-remove-one neighbours and under the same conditions. The
        result is within 1e-6 of the smallest such number.

    | edge case                  | noise multiplier                                 |
    |----------------------------|--------------------------------------------------|
    | steps = 0                  | 0: nothing is released                           |
    | epsilon = inf              | 0: nothing is promised                           |
    | sample_rate = 1            | that of the Gaussian mechanism on the full batch |
    | none below 2**30 is enough | ValueError                                       |
    | any argument out of range  | ValueError; also NaN                             |

    Args:
        epsilon: the budget, in nats; in (0, inf].
        delta: in (0, 1).
        sample_rate: in (0, 1].
        steps: how many noisy gradients will be released; >= 0.
        accountant: as for `epsilon`. The search asks it some twenty times.

    Raises:
        ValueError: an argument is out of its range, or epsilon is out of reach; the message
            names the argument.
    """
    _require(epsilon > 0, "epsilon", epsilon, "in (0, inf]")
    _check_run(sample_rate, steps, delta, accountant)
    if steps == 0 or epsilon == math.inf:
        return 0.0
    try:
        with _no_report_of_skipped_orders():
            found = dp_accounting.calibrate_dp_mechanism(
                lambda: _fresh(accountant),
                lambda sigma: _run(float(sigma), sample_rate, steps),
                target_epsilon=epsilon,
                target_delta=delta,
            )
    except NoBracketIntervalFoundError as error:
        raise ValueError(
            f"epsilon is too small for {steps} steps: no noise multiplier below 2**30 keeps "
            f"them within {epsilon!r}"
        ) from error
    return float(found)


def _run(sigma: float, sample_rate: float, steps: int) -> dp_accounting.DpEvent:
    step = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(sigma))
    return dp_accounting.SelfComposedDpEvent(step, steps)


def _fresh(accountant: Accountant) -> dp_accounting.PrivacyAccountant:
    neighbours = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    match accountant:
        case "rdp":
            return rdp.RdpAccountant(neighboring_relation=neighbours)
        case "pld":
            return pld.PLDAccountant(neighbours)


@contextmanager
def _no_report_of_skipped_orders() -> Generator[None]:
    """Keeps dp-accounting from logging a line for every Renyi order that it leaves out.

    Epsilon is the least over the orders, so one order fewer makes it larger at worst: there is
    nothing for the reader of the log to do.
    """
    log = logging.getLogger("absl")

    def wanted(record: logging.LogRecord) -> bool:
        return "Excluding this order" not in record.getMessage()

    log.addFilter(wanted)
    try:
        yield
    finally:
        log.removeFilter(wanted)


def _check_run(sample_rate: float, steps: int, delta: float, accountant: str) -> None:
    _require(0 < sample_rate <= 1, "sample_rate", sample_rate, "in (0, 1]")
    _require(steps >= 0 and steps % 1 == 0, "steps", steps, "a whole number >= 0")
    _require(0 < delta < 1, "delta", delta, "in (0, 1)")
    known = get_args(Accountant)
    _require(accountant in known, "accountant", accountant, " or ".join(map(repr, known)))


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
