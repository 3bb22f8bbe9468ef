"""Where the coin tosses come from: a stream of random words for each step, by key and number.

The words of a step are a function of the key and the step alone, so that any step can be
drawn at any time: nothing has to be replayed to resume, and whoever reads ahead changes
nothing.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

Words = Callable[[int], NDArray[np.uint64]]  # count -> the next so many words of the stream
WORD = 8  # bytes


@dataclass(frozen=True, repr=False)
class Philox:
    """Philox 4x64 (Salmon et al. 2011): fast and of good statistics, but not a cipher.

    Attributes:
        key: 16 bytes.
    """

    key: bytes

    @staticmethod
    def seeded(generator: torch.Generator | None) -> "Philox":
        """A key from two draws of `generator`, or of torch's global one if None."""
        drawn = torch.randint(-(2**63), 2**63 - 1, (2,), generator=generator)
        return Philox(drawn.numpy().astype("<i8").tobytes())

    def another(self, copy: int) -> "Philox":
        """The stream of a copy, by its number: a function of the key that does not tell it."""
        told = sha256(b"fxdp copy" + self.key + copy.to_bytes(8, "little")).digest()
        return Philox(told[: len(self.key)])

    def at(self, step: int) -> Words:
        """The words of step `step` in 0..2**64 - 1, from their beginning."""
        # The generator counts in the two low words; the step stands above them.
        counter = np.array([0, 0, step, 0], dtype=np.uint64)
        key = np.frombuffer(self.key, dtype="<u8").astype(np.uint64)
        return np.random.Philox(key=key, counter=counter).random_raw


@dataclass(frozen=True, repr=False)
class ChaCha20:
    """The keystream of ChaCha20 (RFC 8439): whoever lacks the key cannot tell it from chance.

    Attributes:
        key: 32 bytes, secret.
    """

    key: bytes

    @staticmethod
    def fresh() -> "ChaCha20":
        """A key from the operating system's entropy."""
        return ChaCha20(secrets.token_bytes(32))

    def another(self, copy: int) -> "ChaCha20":
        """The stream of a copy: with a key of its own."""
        return ChaCha20.fresh()

    def at(self, step: int) -> Words:
        """The words of step `step` in 0..2**64 - 1, from their beginning; 2**35 at most."""
        # Four bytes of block counter, from 0, and a nonce of twelve that holds the step.
        nonce = bytes(8) + step.to_bytes(8, "little")
        stream = Cipher(algorithms.ChaCha20(self.key, nonce), mode=None).encryptor()

        def words(count: int) -> NDArray[np.uint64]:
            return np.frombuffer(stream.update(bytes(WORD * count)), "<u8").astype(np.uint64)

        return words


Stream = Philox | ChaCha20
