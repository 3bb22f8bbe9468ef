"""The noise of a release, as values: independent Gaussian noise, or correlated over the steps."""

from dataclasses import dataclass

from fxdp.arguments import require_flag
from fxdp.mechanism.correlated import BandMF

__all__ = ["BandMF", "Gaussian"]


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussian noise, new in each step (Abadi et al., arXiv:1607.00133).

    Attributes:
        secure: draw from the system's entropy, in float64, and as a sum of four normal numbers,
            against attacks on floating point (`fxdp.mechanism.keystream`). It cannot be repeated by
            a seed, and takes some eight times as long to make.

    Raises:
        TypeError: `secure` is not True or False.
    """

    secure: bool = False

    def __post_init__(self) -> None:
        require_flag("secure", self.secure)


Noise = Gaussian | BandMF


def as_noise(noise: Noise) -> Noise:
    """The noise, checked.

    Raises:
        TypeError: it is not a value of this module.
    """
    if not isinstance(noise, Gaussian | BandMF):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"noise must be fxdp.noise.Gaussian() or BandMF(bands), not {noise!r}")
    return noise
