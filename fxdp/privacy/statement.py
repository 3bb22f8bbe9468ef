"""What may be claimed after training, in sentences to paste into a paper."""

import math
from collections.abc import Sequence
from importlib.metadata import version

from fxdp.arguments import require_delta
from fxdp.privacy.accounting import epsilon_of_known_batches
from fxdp.privacy.budget import rounded_up
from fxdp.privacy.ledger import Ledger
from fxdp.privacy.release import BandedRelease, CountedRelease, GaussianRelease, Run
from fxdp.privacy.sampling_rule import Accountant, Neighbours, stated

LISTED = 4  # kinds of release that are listed one by one


def statement(
    ledger: Ledger, delta: float, num_samples: int | None = None, public: Sequence[str] = ()
) -> str:
    """Returns a privacy statement: five short paragraphs of plain text.

    What was released, by which mechanism, for which neighbours; epsilon with and without
    amplification by sampling, both rounded up; the accountant with its version; what is
    assumed. For a plan, record it in a ledger of its own first.

    Guarantees:
        Both numbers are upper bounds, under the assumptions that the text lists.

    | edge case                | the text                                                  |
    |--------------------------|-----------------------------------------------------------|
    | nothing was released     | says so, and that this costs nothing                      |
    | a release without noise  | epsilon = inf, and that nothing is promised               |
    | delta >= 1 / num_samples | as ever, with a DeltaWarning                              |

    Args:
        ledger: all that was released from the data.
        delta: in (0, 1).
        num_samples: size of the data set, if it may be known, for the warning about delta.
        public: what the steps took as public, each as a phrase.

    Raises:
        ValueError: delta is out of its range.
    """
    known = [stated(run.release.sampling).known_samples for run in ledger.runs]
    delta = require_delta(delta, num_samples or next((n for n in known if n), None))
    taken = f" Assumed public: {'; '.join(public)}." if public else ""
    if not ledger.runs:
        return f"Nothing was released from the data, which costs no privacy.{taken}"
    released = _released(ledger.runs)
    promise = _promise(ledger, delta)
    return "\n\n".join((released, *promise, _assumptions(ledger.runs) + taken))


def _released(runs: Sequence[Run]) -> str:
    total = sum(run.count for run in runs)
    what = (
        f"Training released {total:,} sums of gradients, one a step. In each sum the gradient of "
        "every sample was first scaled down to an L2 norm of at most C, and Gaussian noise of "
        "standard deviation sigma C was added to every coordinate."
    )
    if len(runs) <= LISTED:
        return what + "".join(f" {_told(run, len(runs) > 1)}" for run in runs)
    sigmas = [run.release.noise_multiplier for run in runs]
    bounds = [run.release.max_grad_norm for run in runs]
    ways = list(dict.fromkeys(stated(run.release.sampling).sentence for run in runs))
    counts = [run.release for run in runs if isinstance(run.release, CountedRelease)]
    counted = (
        " With some of them, a noisy count of the samples below the bound was released."
        if counts
        else ""
    )
    banded = [r.release.bands for r in runs if isinstance(r.release, BandedRelease)]
    if max(banded, default=1) > 1:
        counted += f" {_correlated(max(banded))}"
    return (
        f"{what} sigma lay between {min(sigmas):g} and {max(sigmas):g}, C between "
        f"{min(bounds):g} and {max(bounds):g}.{counted} {' In other steps: '.join(ways)}"
    )


def _told(run: Run, one_of_many: bool) -> str:
    release = run.release
    steps = f"In {run.count:,} of the steps," if one_of_many else "Here"
    numbers = f"sigma = {release.noise_multiplier:g} and C = {release.max_grad_norm:g}"
    match release:
        case GaussianRelease():
            counted = ""
        case CountedRelease():
            counted = (
                " Together with each sum, the number of samples whose gradient was below C was "
                f"released, with Gaussian noise of standard deviation {release.count_noise:g}; "
                f"sum and count are one Gaussian mechanism of noise multiplier "
                f"{release.mechanism.noise_multiplier:.6g}."
            )
        case BandedRelease(_, bands):
            counted = f" {_correlated(bands)}" if bands > 1 else ""
    return f"{steps} {numbers}.{counted} {stated(release.sampling).sentence}"


def _correlated(bands: int) -> str:
    return (
        "The noise of a step was not independent of that of the steps before, so that part of it "
        "cancels out over the steps: in every coordinate it is sigma C times the inverse of a "
        f"banded lower-triangular Toeplitz matrix of {bands:,} bands, with columns of norm 1, "
        "applied to independent standard normal numbers (Choquette-Choo et al. 2023, arXiv "
        "2306.08153)."
    )


def _promise(ledger: Ledger, delta: float) -> tuple[str, ...]:
    neighbours = _neighbours(ledger.neighbours)
    spent = ledger.spent(delta)
    if spent == math.inf:
        return (f"A release had no noise: nothing is promised for {neighbours} (epsilon = inf).",)
    without = epsilon_of_known_batches(ledger.tally, delta, ledger.neighbours)
    return (
        f"The sequence of these releases, and with it every model computed from them, is "
        f"(epsilon, delta)-differentially private with epsilon = {rounded_up(spent, 3)} and "
        f"delta = {delta:g}, for {neighbours}.",
        "Without amplification by sampling, that is against an adversary who knows which samples "
        f"were in which batch, epsilon = {rounded_up(without, 3)} at the same delta.",
        f"Both are upper bounds. The first was computed by {_accountant(ledger.accountant)} of "
        f"dp-accounting {version('dp-accounting')}, the second from the closed form for the "
        "Gaussian mechanism (Balle and Wang 2018).",
    )


def _neighbours(neighbours: Neighbours) -> str:
    match neighbours:
        case "add-or-remove-one":
            return "data sets of which one is the other with one sample added or removed"
        case "replace-one":
            return "data sets of equal size that differ in one sample"


def _accountant(accountant: Accountant) -> str:
    match accountant:
        case "pld":
            return "composing privacy loss distributions with the PLD accountant"
        case "rdp":
            return "composing Renyi divergences with the RDP accountant"


def _assumptions(runs: Sequence[Run]) -> str:
    ways = [stated(run.release.sampling) for run in runs]
    drawn = any(way.by_chance for way in ways)
    sampling = "batches were drawn as described and afresh in each step, and kept secret; "
    turns = "the parts took turns as described, and no turn was left out; "
    taken = any(way.takes_turns for way in ways)
    return (
        f"Assumed are: {sampling if drawn else ''}{turns if taken else ''}noise was fresh, and as "
        "good as real-valued Gaussian noise in spite of floating point; one person's data is one "
        "sample; nothing else that was made of the data was published, such as losses without "
        "noise, or hyper-parameters that were chosen by looking at it."
    )
