"""What all samplers of private training share: a position, and batches as a function of it.

Batch number `step` is a function of a key and of `step`. So a sampler that is given the key
and the position goes on exactly where another stopped, and reading ahead is harmless. Shards
on several machines need the same key, and each its part of every batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, ClassVar, Self

import torch
from torch.utils.data import Sampler

from fxdp.arguments import require_whole
from fxdp.data.handed import Handed, Ticket
from fxdp.data.stream import ChaCha20, Philox, Stream
from fxdp.privacy.sampling_rule import Sampling
from fxdp.privacy.state import sampling_to_plain

VERSION = 1
KEY_BYTES = {"philox": 16, "chacha20": 32}


class PrivateSampler(Sampler[list[int]], ABC):
    """A batch sampler that states what the accountant may assume of it.

    Guarantees:
        `batch(step)` depends on nothing but the key, `step` and the numbers that the sampler
        was made with; batches of different steps are independent, as far as the stream of
        random words is. `sampling` is how they are drawn. Between two calls of
        `load_state_dict`, no iteration yields a batch that another one has yielded.

    | edge case                 | what comes out                                              |
    |---------------------------|-------------------------------------------------------------|
    | steps = 0                 | nothing                                                     |
    | iterated again            | the next `steps` batches, to be accounted for once more     |
    | left in the middle        | the next iteration yields the rest of this one              |
    | two iterations at once    | RuntimeError in the one that has fallen behind              |
    | state of another sampler  | ValueError, which names what differs; nothing changes       |
    | a copy, deep or not       | draws other batches, by a key of its own                    |
    | pickled                   | TypeError: it would draw its batches again                  |

    `position` counts the batches that were yielded. In a plain DataLoader with workers it runs
    ahead of the training loop, as they prefetch; a `PrivateLoader` keeps it in step. `handed`
    counts them for an account, see `fxdp.data.handed`.

    Attributes:
        fixed_size: whether every batch has the size that the sampler was made with; if not, some
            may be empty, and `expected_batch_size` is derived from the number of samples.

    Args:
        num_samples: size of the data set, >= 1.
        steps: how many batches one iteration yields, >= 0.
        generator: gives the key, in two draws, at once; torch's global one if None.
        secure: takes the key from the operating system and the words from a cipher, so that
            nobody can foretell the batches. The key is then a secret: it is in the state.

    Raises:
        ValueError: an argument is out of its range, or both `generator` and `secure` are given.
        TypeError: the generator is none.
    """

    fixed_size: ClassVar[bool] = False

    def __init__(
        self, num_samples: int, steps: int, generator: torch.Generator | None, secure: bool
    ) -> None:
        self.num_samples = require_whole("num_samples", num_samples, 1)
        self.steps = require_whole("steps", steps, 0)
        if not isinstance(generator, torch.Generator | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"generator must be a torch.Generator, not {generator!r}: "
                "torch.Generator().manual_seed(...) makes one of a seed"
            )
        if secure and generator is not None:
            raise ValueError("generator must be None where secure=True: a seed can be known")
        self.position = 0
        self.handed = Handed()
        self._copies = 0
        self._stream: Stream = ChaCha20.fresh() if secure else Philox.seeded(generator)

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """How batches are drawn, for the accountant."""

    @property
    @abstractmethod
    def expected_batch_size(self) -> float:
        """The mean size of a batch, in samples: what the clipped sum is divided by.

        It tells the number of samples. Where that must stay secret, as it may under
        add-or-remove-one, divide by a number that was chosen without looking at the data.
        """

    @abstractmethod
    def batch(self, step: int) -> list[int]:
        """The indices of batch number `step` >= 0, in ascending order; changes nothing."""

    def __len__(self) -> int:
        return self.steps

    def __repr__(self) -> str:
        """How it draws, and where it stands; never the key."""
        return (
            f"{type(self).__name__}({self.sampling!r}, num_samples={self.num_samples}, "
            f"steps={self.steps}, position={self.position})"
        )

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.remaining():
            self.advance(step)
            yield self.batch(step)

    def remaining(self) -> range:
        """The steps that are left of the iteration that has begun; a whole one if none has."""
        if self.steps == 0:
            return range(0)
        return range(self.position, (self.position // self.steps + 1) * self.steps)

    def advance(self, step: int) -> Ticket:
        """Notes that batch `step` is handed out, and returns what it is known by.

        Raises:
            RuntimeError: another one is next, so `step` was handed out already or others were
                left out.
        """
        if step != self.position:
            raise RuntimeError(
                f"batch {step} was to be handed out, and the sampler stands at {self.position}: "
                "another iteration, or load_state_dict, has moved it; iterate anew"
            )
        self.position = step + 1
        return self.handed.hand(self._stream.key, step)

    def seed(self, step: int) -> int:
        """64 bits for what chance does to the samples of batch `step`; they do not tell the key."""
        told = sha256(b"fxdp samples" + self._stream.key + step.to_bytes(8, "little")).digest()
        return int.from_bytes(told[:8], "little")

    def state_dict(self) -> dict[str, Any]:
        """Position and key in plain types. Who sees the key knows all batches: keep it private."""
        return self._frame() | {"position": self.position, "key": self._stream.key.hex()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the sampler stood that gave `state`.

        Raises:
            ValueError: the state is malformed, or of a sampler that draws otherwise.
        """
        self.position, self._stream = self.checked(state)
        self.handed.forget()

    def checked(self, state: dict[str, Any]) -> tuple[int, Stream]:
        """Position and stream of a state; raises ValueError, as `load_state_dict`."""
        frame = self._frame()
        if set(state) != {*frame, "position", "key"}:
            wanted = sorted({*frame, "position", "key"})
            raise ValueError(f"sampler state: must be a mapping of {wanted}, got {sorted(state)}")
        for name, own in frame.items():
            if state[name] != own:
                raise ValueError(f"sampler state: {name} is {state[name]!r}, and here {own!r}")
        position, key = state["position"], _key(state["key"], frame["stream"])
        if not isinstance(position, int) or isinstance(position, bool) or position < 0:
            raise ValueError(f"sampler state: position must be a whole number, got {position!r}")
        return position, type(self._stream)(key)

    def __copy__(self) -> Self:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        self._copies += 1
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._copies, other._stream = 0, self._stream.another(self._copies)
        memo[id(self)] = other
        return other

    def __reduce__(self) -> Any:
        raise TypeError(
            "a sampler that is pickled would draw its batches again: save its state_dict(), and "
            "load that into a new one, in the one process that goes on"
        )

    def _frame(self) -> dict[str, Any]:
        """What must be equal in a sampler that goes on with this one's state."""
        return {
            "version": VERSION,
            "sampling": sampling_to_plain(self.sampling),
            "num_samples": self.num_samples,
            "steps": self.steps,
            "stream": type(self._stream).__name__.lower(),
        }


def _key(text: object, stream: str) -> bytes:
    size = KEY_BYTES[stream]
    try:
        key = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        key = b""
    if len(key) != size:
        raise ValueError(f"sampler state: key must be {size} bytes in hexadecimal")
    return key
