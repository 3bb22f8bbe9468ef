"""Noise from a cipher: normal numbers that a key and a number decide.

Each step has a key, which is an input of its graph. From it and the number of a parameter, AES in
counter mode (NIST SP 800-38A) makes bits, and the method of Box and Muller (1958) makes normal
numbers of the bits. So a graph draws nothing: whoever runs it again with the same key, or runs
code that was generated from it, gets the same noise. It is also faster than torch's generator on
a CPU.
"""

import math
import secrets
from dataclasses import dataclass
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

KEY_WORDS = 2  # of 8 bytes each
SECURE_TERMS = 4
ZEROS = memoryview(bytes(1 << 16))


def fresh_key(secure: bool = False) -> Tensor:
    """A key of one step, int64 [2]: from torch's global generator, or from the system's entropy."""
    if secure:
        drawn = bytearray(secrets.token_bytes(8 * KEY_WORDS))
        return torch.frombuffer(drawn, dtype=torch.int64).clone()
    return torch.randint(-(2**63), 2**63 - 1, (KEY_WORDS,), device="cpu")


def no_key() -> Tensor:
    """What stands for a key where no noise is to be made; it gets no bits."""
    return torch.zeros(KEY_WORDS, dtype=torch.int64)


@dataclass(frozen=True)
class Bits:
    """The bits of one parameter's noise, read from their beginning.

    Attributes:
        cipher: where they come from.
        terms: how many normal numbers each one of the noise is made of.
        dtype: int32, or int64 for noise in float64.
    """

    cipher: Any
    terms: int
    dtype: torch.dtype

    @staticmethod
    def of(key: Tensor, draw: int, terms: int, dtype: torch.dtype) -> "Bits":
        """Those of a parameter's number, for sums of a dtype.

        Of the cipher's counter of 16 bytes the upper half is the number, and the lower half counts.

        Raises:
            AssertionError: there is no key.
        """
        secret = key.numpy().tobytes()
        if not any(secret):
            raise AssertionError("noise is to be made, and its step has no key")
        start = draw.to_bytes(8) + bytes(8)
        cipher = Cipher(algorithms.AES128(secret), modes.CTR(start)).encryptor()
        wide = dtype == torch.float64 or terms > 1
        return Bits(cipher, terms, torch.int64 if wide else torch.int32)

    def room(self, half: int) -> Tensor:
        """Memory for as many integers as `next(half)` has."""
        return torch.empty(self.terms * 2 * half, dtype=self.dtype)

    def next(self, half: int, room: Tensor | None = None) -> Tensor:
        """The next [terms, 2, half] integers, for twice `half` normal numbers; in `room` if given:
        memory fresh from the system takes longer than the bits."""
        room = self.room(half) if room is None else room
        bits = room[: self.terms * 2 * half].view(self.terms, 2, half)
        numbers: Any = bits.numpy()  # pyright does not see that it is a buffer
        written = memoryview(numbers).cast("B")
        for start in range(0, len(written), len(ZEROS)):
            part = written[start : start + len(ZEROS)]
            self.cipher.update_into(ZEROS[: len(part)], part)
        return bits


def normals(bits: Tensor) -> Tensor:
    """[2, half] standard normal numbers from integers [terms, 2, half].

    Two numbers are the length sqrt(-2 log u) times the cosine and the sine of an angle (Box and
    Muller 1958). The integers are spread evenly, so u is at least 2^-33 (2^-65), and no number
    is beyond 6.8 (9.5). Several terms are added up and divided by the root of their number: a
    sum of four in float64 has too many preimages to search them for the one that was drawn
    (Holohan and Braghin 2021, arXiv:2107.10138, section 5).
    """
    real, size = (torch.float64, 63) if bits.dtype == torch.int64 else (torch.float32, 31)
    # Two integers have each magnitude, but 0 has one: it is the half of a step that is at 1/4.
    u = bits[:, 0].to(real).abs_().add_(0.25).mul_(2.0**-size)
    length, angle = u.log_().mul_(-2).sqrt_(), bits[:, 1].to(real).mul_(math.pi * 2.0**-size)
    found = torch.stack([angle.cos().mul_(length), angle.sin().mul_(length)], 1)
    return found[0] if len(bits) == 1 else found.sum(0) / math.sqrt(len(bits))
