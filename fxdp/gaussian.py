"""Standard normal numbers, made of the keystream of a cipher.

The noise of a step is as many numbers as the model has parameters, and torch's own generator for
a CPU takes longer to draw them than a small model takes to train. AES in counter mode gives bits
several times faster, on processors that have instructions for it, and better ones: who sees some
of them cannot tell the next. The key is drawn from torch's generator, so `torch.manual_seed`
reproduces a run.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

PAIRS = 1 << 14  # that are worked out at once, so that they stay in the processor's cache
ZEROS = bytes(16 * PAIRS)


@dataclass(frozen=True)
class Word:
    """The integers that numbers of one dtype are made of, and the bits of their magnitude."""

    dtype: torch.dtype
    bits: int


WORDS = {torch.float32: Word(torch.int32, 31), torch.float64: Word(torch.int64, 63)}


def standard_normal(like: Sequence[Tensor]) -> list[Tensor]:
    """Independent standard normal numbers in the shapes of some tensors.

    On other devices than a CPU they are torch's own.

    Args:
        like: float32 or float64, all on one device.

    Guarantees:
        - Every number comes from bits of the keystream that no other number comes from, but the
          two of a pair: those are the cosine and the sine part of one Box-Muller transform
          (Box and Muller 1958), which are independent.
        - The state of torch's generator decides all of them, and moves on by one key.

        ===========================  ==================================================
        case                         what happens
        ===========================  ==================================================
        no numbers                   an empty tensor
        the largest magnitude        sqrt(2 ln 2^32) = 6.66 in float32, 9.42 in float64
        the smallest                 0 may be drawn; infinity and NaN never are
        ===========================  ==================================================
    """
    if not like:
        return []
    if like[0].device.type != "cpu":
        return [torch.randn_like(x, memory_format=torch.contiguous_format) for x in like]
    drawn = [torch.empty(x.shape, dtype=x.dtype) for x in like]
    for dtype, word in WORDS.items():
        flat = [x.view(-1) for x in drawn if x.dtype == dtype]
        if flat:
            fill(flat, word)
    return drawn


def fill(flat: list[Tensor], word: Word) -> None:
    """Fill vectors of one dtype with numbers; a block of numbers may cross their borders."""
    stream = keystream()
    with one_thread():
        for block in blocks(flat):
            numbers = normal(stream, (sum(x.numel() for x in block) + 1) // 2, word)
            start = 0
            for x in block:
                x.copy_(numbers[start : start + x.numel()])
                start += x.numel()


def blocks(flat: list[Tensor]) -> Iterator[list[Tensor]]:
    """Vectors cut and put together to blocks of 2 * PAIRS numbers, the last one smaller."""
    block: list[Tensor] = []
    room = 2 * PAIRS
    for x in flat:
        start = 0
        while start < x.numel():
            part = x[start : start + room]
            block.append(part)
            start, room = start + part.numel(), room - part.numel()
            if room == 0:
                yield block
                block, room = [], 2 * PAIRS
    if block:
        yield block


def normal(stream: CipherContext, pairs: int, word: Word) -> Tensor:
    """2 * pairs numbers; Box and Muller, Ann. Math. Statist. 29 (1958)."""
    bits = torch.empty(2, pairs, dtype=word.dtype)
    size = bits.numel() * bits.element_size()
    stream.update_into(ZEROS[:size], memoryview(bits.numpy()).cast("B"))
    dtype = torch.float32 if word.bits == 31 else torch.float64
    # (0, 1], fine where it is small, which decides about large numbers.
    uniform = bits[0].bitwise_and_(2**word.bits - 1).to(dtype).add_(0.5).mul_(2.0**-word.bits)
    radius = uniform.log_().mul_(-2).sqrt_()
    angle = bits[1].to(dtype).mul_(math.pi * 2.0**-word.bits)
    out = torch.empty(2, pairs, dtype=dtype)
    torch.mul(torch.cos(angle), radius, out=out[0])
    torch.mul(angle.sin_(), radius, out=out[1])
    return out.view(-1)


def keystream() -> CipherContext:
    """AES-128 in counter mode; the key and the first counter are drawn from torch's generator."""
    words = torch.randint(-(2**63), 2**63 - 1, (4,), dtype=torch.int64)
    seed = words.numpy().tobytes()
    return Cipher(algorithms.AES(seed[:16]), modes.CTR(seed[16:])).encryptor()


@contextmanager
def one_thread() -> Iterator[None]:
    """Blocks are too small to be shared by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
