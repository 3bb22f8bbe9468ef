"""ChaCha in numpy: the bits that Triton's kernel makes noise of, and which element has which.

The cipher is Bernstein's (2008), whose block function RFC 8439 has with 20 rounds, with a counter
and a nonce of 64 bits each. The nonce is a parameter's number, and the counter goes by the element,
so that the noise of a slice is the slice of the noise.

A group of elements is made by SIDE blocks side by side. Each gives one number to each part of the
group, of SIDE elements: so a device's threads write side by side. A pair of a block's integers is
the length and the angle of two normal numbers, in parts that follow each other.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Key = tuple[int, int, int, int]  # of 8 bytes each, as int64 numbers
Words = NDArray[np.uint32]

SIDE = 256  # blocks that are made together
WORDS = 16  # of 32 bits, in a block
CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def numbers(wide: bool) -> int:
    """How many normal numbers a block gives: of two words each if wide, else of one."""
    return WORDS // 2 if wide else WORDS


def blocks(key: Key, counters: NDArray[np.int64], nonce: int, rounds: int) -> Words:
    """The words of the cipher's blocks.

    Args:
        counters: of the blocks, int64 [n].
        nonce: at most 64 bits.
        rounds: an even number.

    Returns:
        uint32 [n, 16].
    """
    given = np.empty((WORDS, len(counters)), np.uint32)
    given[:4] = np.array(CONSTANTS, np.uint32)[:, None]
    given[4:12] = np.array(key, "<i8").view("<u4")[:, None]
    given[12:14] = counters.astype("<i8").view("<u4").reshape(-1, 2).T
    given[14:] = np.array([nonce & 0xFFFFFFFF, nonce >> 32], np.uint32)[:, None]
    w = given.copy()

    def mixed(into: int, by: int, other: int, turn: int) -> None:
        w[into] += w[by]
        x = w[other] ^ w[into]
        w[other] = x << np.uint32(turn) | x >> np.uint32(32 - turn)

    for _ in range(rounds // 2):
        for a, b, c, d in (*COLUMNS, *DIAGONALS):
            for turn, other in zip((16, 8), (12, 7), strict=True):
                mixed(a, b, d, turn)
                mixed(c, d, b, other)
    return (w + given).T


def bits(
    key: Key, number: int, terms: int, rounds: int, wide: bool, group: int, groups: int
) -> Tensor:
    """The integers of some groups of elements, as `fxdp.mechanism.keystream.normals` takes them.

    Args:
        number: of the parameter.
        terms: how many normal numbers each one of the noise is made of.
        wide: whether an integer has two words.
        group: the first of them.

    Returns:
        int32, or int64 if wide, [groups * pairs, terms, 2, SIDE], where pairs are a block's.
    """
    first, last = (g * terms * SIDE for g in (group, group + groups))
    words = blocks(key, np.arange(first, last), number, rounds)
    whole = np.ascontiguousarray(words).view("<i8" if wide else "<i4")
    each = torch.from_numpy(whole.reshape(groups, terms, SIDE, numbers(wide) // 2, 2).copy())
    return each.permute(0, 3, 1, 4, 2).reshape(-1, terms, 2, SIDE)
