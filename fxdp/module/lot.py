"""One logical batch: at which scales it is worked on, and what its release moves.

A lot, as Abadi et al. (arXiv:1607.00133, section 3.1) call it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxdp.backend.options import Scales, checked_scales
from fxdp.mechanism.clipping import Clipping
from fxdp.mechanism.keystream import SECURE_TERMS, Bits, normals
from fxdp.module.account import Account
from fxdp.module.tally import Tally
from fxdp.privacy.release import Release, noise_beside_count


@dataclass(frozen=True)
class Lot:
    """The scales of a logical batch, from its first sample to its release.

    Attributes:
        scales: clip bound, noise multiplier of the sum of gradients, expected batch size.
        release: what is going to be recorded.
        clipping: how the next bound is found.
        secure: whether the count's noise comes from the system's entropy.
        tally: of its samples, as they come.
    """

    scales: Scales
    release: Release
    clipping: Clipping
    secure: bool
    tally: Tally = field(default_factory=Tally)

    @staticmethod
    def of(scales: Scales, clipping: Clipping, secure: bool, account: Account) -> "Lot":
        """A lot at the module's scales.

        Where the bound follows a count, the noise multiplier is that of sum and count together.

        Raises:
            TypeError, ValueError: a scale is not valid; or the count alone has less noise than both
                may have.
        """
        scales = bound, sigma, expected = checked_scales(*scales)
        count_noise = clipping.count_noise(expected)
        if count_noise is None or sigma == 0:
            return Lot(scales, account.release(sigma, bound), clipping, secure)
        if not count_noise > sigma / 2:
            raise ValueError(
                f"unclipped_num_std of adaptive clipping must be above noise_multiplier / 2 = "
                f"{sigma / 2:g}, and is {count_noise:g} (a twentieth of expected_batch_size if not "
                "given): pass fxdp.clipping.Adaptive(unclipped_num_std=...)"
            )
        own = noise_beside_count(sigma, count_noise)
        release = account.release(own, bound, count_noise)
        return Lot((bound, own, expected), release, clipping, secure)

    def next_bound(self, key: Callable[[], Tensor]) -> float:
        """The clip bound after the release, by a count with noise of its own.

        Args:
            key: gives the key of that noise.
        """
        bound, sigma, expected = self.scales
        count_noise = self.clipping.count_noise(expected)
        if count_noise is None:
            return bound
        count = self.tally.unclipped(bound)
        if sigma > 0:
            terms = SECURE_TERMS if self.secure else 1
            drawn, _ = normals(Bits.of(key(), 0, terms, torch.float64).next(1))
            count += count_noise * float(drawn[0, 0])
        return self.clipping.next_bound(bound, count, expected)
