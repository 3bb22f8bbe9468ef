"""How often each mechanism was used on one sample, where the parts of the data take turns.

Of `parts` steps in a row of one stream each part has exactly one. So a stream is cut into blocks
of that many steps, and a block costs a sample one use: of the mechanism with the least noise in
it, which is the dearest. Whatever is released in between costs as ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fxdp.privacy.release import BandedRelease, Mechanism, Release
from fxdp.privacy.sampling_rule import Sampling

Kind = tuple[Mechanism, int | None]  # what the account looks at: with the number of the stream


@dataclass(frozen=True)
class Stream:
    """A stream of banded releases so far.

    Attributes:
        bands, sampling: the same in all of them.
        steps: of the block that is open, in 0..parts - 1.
        dearest: the use that the open block has been counted as; None if it has no steps.
    """

    bands: int
    sampling: Sampling
    steps: int = 0
    dearest: Mechanism | None = None


@dataclass(frozen=True)
class Turns:
    """What has been used on one sample, at most; a value.

    | edge case                                   | what is counted                              |
    |---------------------------------------------|----------------------------------------------|
    | a release of which all data have a part     | itself                                       |
    | a stream of equal releases, T so far        | ceil(T / parts) uses                         |
    | more noise in the middle of a block         | nothing: the block is paid for               |
    | less noise in the middle of a block         | the block is counted as that one now         |
    | other bands, or another way to draw         | ValueError: the parts would not be the same  |

    Attributes:
        tally: uses of each mechanism, of a batch that was drawn from the part of the sample.
        streams: by their numbers.
    """

    tally: Mapping[Mechanism, int] = field(default_factory=dict[Mechanism, int])
    streams: Mapping[int, Stream] = field(default_factory=dict[int, Stream])

    def after(self, release: Release, count: int) -> "Turns":
        """With `count` releases more, in a row.

        Raises:
            ValueError: a stream would change its bands or its way to draw.
        """
        mechanism = release.mechanism.uses(1)[0]
        if not isinstance(release, BandedRelease):
            return replace(self, tally=plus(self.tally, mechanism, count))
        sampling = release.sampling
        stream = self.streams.get(release.stream, Stream(release.bands, sampling))
        if (stream.bands, stream.sampling) != (release.bands, sampling):
            raise ValueError(
                f"stream {release.stream} has {stream.bands} bands and {stream.sampling}, and "
                f"goes on with {release.bands} and {sampling}: the parts would not be the same"
            )
        tally, parts = self.tally, sampling.turns
        here = min(count, (parts - stream.steps) % parts)  # steps in the block that is open
        before = stream.dearest
        if here and before and mechanism.noise_multiplier < before.noise_multiplier:
            tally = plus(plus(tally, before, -1), mechanism, 1)
            stream = replace(stream, dearest=mechanism)
        tally = plus(tally, mechanism, -(-(count - here) // parts))
        steps = (stream.steps + count) % parts
        dearest = None if steps == 0 else mechanism if count > here else stream.dearest
        stream = replace(stream, steps=steps, dearest=dearest)
        return Turns(tally, {**self.streams, release.stream: stream})


def plus(tally: Mapping[Mechanism, int], mechanism: Mechanism, count: int) -> dict[Mechanism, int]:
    """A tally with `count` uses more of one mechanism; without those that have none."""
    now = {**tally, mechanism: tally.get(mechanism, 0) + count}
    return now if now[mechanism] else {used: n for used, n in now.items() if n}


def stream_of(release: Release) -> int | None:
    """The number of the stream that a release belongs to; None if to none."""
    return release.stream if isinstance(release, BandedRelease) else None


def kind_of(release: Release) -> Kind:
    """Releases of one kind cost the same, one after another."""
    return release.mechanism, stream_of(release)


def renumbered(release: Release, more: int) -> Release:
    """The same release in a ledger that has had `more` streams before."""
    match release:
        case BandedRelease():
            return replace(release, stream=release.stream + more)
        case _:
            return release
