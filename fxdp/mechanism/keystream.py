"""Noise from a cipher: normal numbers as a function of a key, a parameter's number and an element.

Each release has a key, which is an input of its graph (`fxdp.mechanism.run_key`). From it and the
noise number of a parameter, AES in counter mode (NIST SP 800-38A) makes bits, and the method of Box
and Muller (1958) makes normal numbers of the bits. So a graph draws nothing: whoever runs it again
with the same key, or runs code that was generated from it, gets the same noise. The noise of a
slice is the slice of the noise: a part of a parameter can be noised on its own. It is also faster
than torch's generator on a CPU. What other devices do is in `fxdp.mechanism.gaussian`.

Letters: g groups of GROUP elements, in the order of the flat parameter; k terms; h half of GROUP.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

KEY_WORDS = 2  # of 8 bytes each
SECURE_TERMS = 4
GROUP = 1024  # elements that are made together: h lengths and h angles give 2 h numbers
HALF = GROUP // 2
BLOCK_BYTES = 16  # of the cipher
ZEROS = memoryview(bytes(1 << 16))


def no_key() -> Tensor:
    """What stands for a key where no noise is to be made; it gets no bits."""
    return torch.zeros(KEY_WORDS, dtype=torch.int64)


def secret_of(key: Tensor) -> bytes:
    """The 16 bytes of a key.

    Raises:
        AssertionError: there is no key.
    """
    secret = key.cpu().numpy().tobytes()
    if not any(secret):
        raise AssertionError("noise is to be made, and its step has no key")
    return secret


@dataclass(frozen=True)
class Bits:
    """The bits of one parameter's noise, read on from a group of elements.

    Attributes:
        cipher: where they come from.
        terms: how many normal numbers each one of the noise is made of.
        dtype: int32, or int64 for noise in float64.
    """

    cipher: Any
    terms: int
    dtype: torch.dtype

    @staticmethod
    def of(key: Tensor, number: int, terms: int, dtype: torch.dtype, group: int = 0) -> "Bits":
        """Those of a parameter's number, for sums of a dtype, from a group on.

        Of the cipher's counter of 16 bytes the upper half is the number, and the lower half counts.

        Raises:
            AssertionError: there is no key.
        """
        wide = dtype == torch.float64 or terms > 1
        blocks = group * terms * GROUP * (8 if wide else 4) // BLOCK_BYTES
        start = number.to_bytes(8) + blocks.to_bytes(8)
        cipher = Cipher(algorithms.AES128(secret_of(key)), modes.CTR(start)).encryptor()
        return Bits(cipher, terms, torch.int64 if wide else torch.int32)

    def room(self, groups: int) -> Tensor:
        """Memory for as many integers as `next(groups)` has."""
        return torch.empty(groups * self.terms * GROUP, dtype=self.dtype)

    def next(self, groups: int, room: Tensor | None = None) -> Tensor:
        """The next [g, k, 2, h] integers, for g groups of normal numbers; in `room` if given:
        memory fresh from the system takes longer than the bits."""
        room = self.room(groups) if room is None else room
        bits = room[: groups * self.terms * GROUP].view(groups, self.terms, 2, HALF)
        numbers: Any = bits.numpy()  # pyright does not see that it is a buffer
        written = memoryview(numbers).cast("B")
        for start in range(0, len(written), len(ZEROS)):
            part = written[start : start + len(ZEROS)]
            self.cipher.update_into(ZEROS[: len(part)], part)
        return bits


def normals(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Two [g, h] of standard normal numbers, the first and the second half of each group, from
    integers [g, k, 2, h].

    Two numbers are the length sqrt(-2 log u) times the cosine and the sine of an angle (Box and
    Muller 1958). The integers are spread evenly, so u is at least 2^-33 (2^-65), and no number
    is beyond 6.8 (9.5). Several terms are added up and divided by the root of their number: a
    sum of four in float64 has too many preimages to search them for the one that was drawn
    (Holohan and Braghin 2021, arXiv:2107.10138, section 5).
    """
    real, size = (torch.float64, 63) if bits.dtype == torch.int64 else (torch.float32, 31)
    # Two integers have each magnitude, but 0 has one: it is the half of a step that is at 1/4.
    u = bits[:, :, 0].to(real).abs_().add_(0.25).mul_(2.0**-size)
    length, angle = u.log_().mul_(-2).sqrt_(), bits[:, :, 1].to(real).mul_(math.pi * 2.0**-size)
    first, second = angle.cos().mul_(length), angle.sin().mul_(length)
    terms = bits.shape[1]
    if terms == 1:
        return first[:, 0], second[:, 0]
    return first.sum(1) / math.sqrt(terms), second.sum(1) / math.sqrt(terms)


def noise_of(
    key: Tensor, number: int, start: int, length: int, dtype: torch.dtype = torch.float32,
    terms: int = 1,
) -> Tensor:  # fmt: skip
    """[length] standard normal numbers: elements start .. start + length of a parameter's noise.

    Guarantees:
        A function of (key, number, element, terms) and of whether `dtype` is float64: slices of
        any cut are slices of the whole.

    Args:
        key: int64 [2] of one release.
        number: the parameter's noise number.
        dtype: float32 or float64.
    """
    if length == 0:
        return torch.empty(0, dtype=dtype)
    first, last = start // GROUP, -(-(start + length) // GROUP)
    bits = Bits.of(key, number, terms, dtype, first).next(last - first)
    flat = torch.stack(normals(bits), 1).flatten().to(dtype)
    return flat[start - first * GROUP :][:length]
