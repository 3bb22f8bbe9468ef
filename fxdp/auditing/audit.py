"""The audit of a private module, from one batch."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dp_accounting
import numpy as np
from torch import Tensor

from fxdp.arguments import require, require_delta, require_whole
from fxdp.auditing.canary import Guesses
from fxdp.auditing.neighbours import Canary, Neighbours
from fxdp.auditing.noise import Noise
from fxdp.auditing.releases import Batch, Gradients, Releases, dot, gap, length, untouched
from fxdp.auditing.report import Audit, Finding, Unjudged
from fxdp.backend.check import random_state
from fxdp.diagnostics.errors import StepError
from fxdp.module.private_module import PrivateModule
from fxdp.privacy import Accountant, epsilon
from fxdp.status import line, say

LEAST_NOISE = 0.1  # the noise multiplier from which an accountant is asked
QUESTIONS = 6  # that are answered by chance: two bounds on epsilon, and four of the noise


def audit(
    private: PrivateModule,
    *args: Any,
    releases: int = 500,
    confidence: float = 0.99,
    delta: float = 1e-5,
    seed: int = 0,
    sample_mask: Tensor | None = None,
    **kwargs: Any,
) -> Audit:
    """Hold what a private module releases against what it claims, on one batch.

    The compiled step itself runs, as in training, `releases` times with a canary and as often
    without. Three tests:

    - neighbours: without noise, one sample masked out or left out moves the release by at most the
      stated sensitivity, one replaced by at most twice that, and masked out is left out; at the
      module's clip bound, and at a smaller one that clips the samples.
    - canary: the sample that moves the release the most is in half of the releases, which are
      projected on its clipped gradient. How well the two kinds can be distinguished bounds epsilon
      from below (Nasr et al. 2023, arXiv 2302.07956), for one release of a known batch; the
      accountant's claim must not be less.
    - noise: an interval for the noise multiplier of each parameter, and no correlation between
      releases, between parameters, or within one.

    Guarantees:
        - Each interval is Clopper-Pearson's, a chi-square's or a beta's, none an approximation,
          and all hold together with probability `confidence`: so rarely is a correct step found
          in violation.
        - Nothing is changed: parameters, gradients, buffers, the scales, the ledger, torch's
          generators are as before, also after an error.
        - The report is not protected by DP, and no release that was made for it is counted:
          never publish it.

    =======================================  ==================================================
    case                                     what happens
    =======================================  ==================================================
    the model draws numbers (dropout)        a release is compared with one of the same draws;
                                             "left out" is not judged; thrice the steps
    gradients too coarse for the noise       those coordinates are left out
    `releases` too few to find a violation   that bound on epsilon is not judged
    no sample moves the release              the canary is not judged
    a release that is infinite or NaN        in violation
    `microbatch_size`                        the step is audited with it
    `accumulate()`                           StepError: audit the module, not a logical batch
    =======================================  ==================================================

    What it does not see: how batches are drawn; `accumulate()`; other data than this batch; noise
    that is shared by parameters at other places than the same ones, counted from the first.

    Args:
        private: made by `fxdp.compile`, with noise; in the mode it is in.
        *args, **kwargs: the arguments of a step with at least two samples.
        releases: R, of either kind, at least 2; 2 R steps are run.
        confidence: in (0, 1).
        delta: at which epsilon is compared; in (0, 1).
        seed: of the noise meanwhile.
        sample_mask: bool [N]; rows that are False are padding.

    Raises:
        TypeError: no private module; or one with `loss_reduction`, whose loss is made outside.
        ValueError: fewer than two samples, eval mode, no noise, or a number out of its range.
        StepError: a logical batch is open.
        ProofError: the model cannot be proven private.
    """
    check(private, releases, confidence, delta)
    inputs = private._stepper.gathered(args, kwargs)
    mask = private._stepper.prepared(args, kwargs, sample_mask)[1][: inputs.size]
    batch = Batch(inputs, mask)
    if len(batch.present) < 2:
        raise ValueError(f"audit needs at least 2 samples to compare, and got {len(batch.present)}")
    bound, sigma = private.max_grad_norm, private.noise_multiplier
    mistake = (1 - confidence) / QUESTIONS
    # With adaptive clipping the sum, which is what is looked at, has more noise than sum and count.
    own = private.planned_release(bound, sigma).noise_multiplier
    claim = claimed(own, delta, private.ledger.accountant)
    with line(), untouched(private, seed):
        run = Releases(private)
        say("releases without noise, for the audit")
        is_random = run.is_random(batch, bound, seed)
        neighbours = Neighbours(run, batch, random_state())
        canary = neighbours.canary(bound)
        found: list[Finding | Unjudged] = []
        for c in dict.fromkeys((bound, canary.bound)):
            found += neighbours.findings(c, is_random)
        seen = Trials(run, batch, canary, is_random, sigma).run(releases)
    if canary.share > 0:
        at = f"C = {canary.bound:.4g}"
        found += Guesses(seen.present, seen.absent, at, delta, claim, mistake).findings()
    else:
        found.append(Unjudged("canary", "epsilon", "no sample that was tried moves the release"))
    found += seen.noise.findings(mistake)
    return Audit(
        tuple(f for f in found if isinstance(f, Finding)),
        tuple(u for u in found if isinstance(u, Unjudged)),
        2 * releases,
        confidence,
    )


def check(private: Any, releases: int, confidence: float, delta: float) -> None:
    """Check what an audit is asked for, before anything runs."""
    if not isinstance(private, PrivateModule):
        raise TypeError(f"audit needs what fxdp.compile returns, not {type(private).__name__}")
    require_whole("releases", releases, 2)
    require(0 < confidence < 1, "confidence", confidence, "in (0, 1)")
    require_delta(delta)
    if private._stepper.settings.reduction:
        raise TypeError("audit needs the loss: compile with loss_fn= in place of loss_reduction=")
    if private._logical is not None:
        raise StepError("audit needs steps of their own: call it outside of accumulate()")
    if private._account.noise is not None:
        raise ValueError("audit looks at releases one by one: correlated noise hides them together")
    if not private.noise_multiplier > 0:
        raise ValueError(
            "audit needs a noise_multiplier above 0: without noise no privacy is claimed; "
            "fxdp.verify compares the clipped sums"
        )


def claimed(sigma: float, delta: float, accountant: Accountant) -> float:
    """Epsilon of one release of a known batch, in nats.

    With little noise, which no number of releases will judge, the accountant takes minutes, and
    memory without end: then it is the closed form, which is never larger.
    """
    if sigma < LEAST_NOISE:
        return float(dp_accounting.get_epsilon_gaussian(sigma, delta))
    return epsilon(sigma, None, 1, delta, accountant)


@dataclass(frozen=True)
class Seen:
    """What was seen of noisy releases.

    Attributes:
        present, absent: [R] scores of releases with the canary and without.
        noise: their noise.
    """

    present: np.ndarray
    absent: np.ndarray
    noise: Noise


@dataclass(frozen=True)
class Known:
    """What is known of a release but its noise: what it is without, with the canary and not."""

    present: Gradients
    absent: Gradients

    @cached_property
    def canary(self) -> Gradients:
        """The clipped gradient of the canary, of length 1; or zeros, if it has none."""
        found = gap(self.present, self.absent)
        unit = length(found) or 1.0
        return {name: g / unit for name, g in found.items()}

    def score(self, noisy: Gradients) -> float:
        """What a release has in the canary's direction, beyond the sum of the others."""
        return dot(gap(noisy, self.absent), self.canary)


@dataclass(frozen=True)
class Trials:
    """Noisy releases with the canary and without, at the clip bound where it counts most."""

    releases: Releases
    batch: Batch
    canary: Canary
    is_random: bool
    sigma: float

    def run(self, count: int) -> Seen:
        """So many releases of either kind, one after the other as in training."""
        bound, private = self.canary.bound, self.releases.private
        known = self.known(random_state())
        names = sorted(self.releases.noisy() & known.present.keys())
        own = private.planned_release(bound, self.sigma).noise_multiplier
        noise = Noise(names, own * bound / private.expected_batch_size, own, 2 * count)
        scores: dict[bool, list[float]] = {True: [], False: []}
        for k in range(count):
            say(f"release {2 * k} of {2 * count}, for the audit")
            for there, batch in ((True, self.batch), (False, self.without)):
                state = random_state() if self.is_random else None
                noisy = self.releases(batch, self.sigma, bound)
                known = known if state is None else self.known(state)
                noise.add(noisy, known.present if there else known.absent)
                scores[there].append(known.score(noisy))
        return Seen(np.array(scores[True]), np.array(scores[False]), noise)

    @property
    def without(self) -> Batch:
        """The batch, without the canary."""
        return self.batch.masked_out(self.canary.sample)

    def known(self, state: object) -> Known:
        """The releases without noise that begin in a state of the generators."""
        present, absent = (
            self.releases.clean(b, self.canary.bound, state) for b in (self.batch, self.without)
        )
        return Known(present, absent)
