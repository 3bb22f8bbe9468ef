"""ChaCha: its blocks are those of published vectors and of another implementation."""

import struct

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fxdp.kernels.chacha import SIDE, Key, bits, blocks, numbers

KEY: Key = (0x0706050403020100, -0x1112131415161718, 3, -4)


def block(key: bytes, counter: int, nonce: int, rounds: int) -> bytes:
    a, b, c, d = struct.unpack("<4q", key)
    return blocks((a, b, c, d), np.array([counter]), nonce, rounds).astype("<u4").tobytes()


def test_the_vector_of_rfc_8439() -> None:
    """Section 2.3.2, whose counter has 32 bits: the nonce's first word is our counter's upper."""
    got = block(bytes(range(32)), 1 | 0x09000000 << 32, 0x4A000000, 20)
    assert got.hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


@pytest.mark.parametrize(
    ("rounds", "begins"),
    [
        (8, "3e00ef2f895f40d67f5bb8e81f09a5a12c840ec3ce9a7f3b181be188ef711a1e"),
        (12, "9bf49a6a0755f953811fce125f2683d50429c3bb49e074147e0089a52eae155f"),
        (20, "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"),
    ],
)
def test_vectors_of_fewer_rounds(rounds: int, begins: str) -> None:
    """Of a key of zeros: draft-strombergson-chacha-test-vectors-01, TC1."""
    assert block(bytes(32), 0, 0, rounds).hex().startswith(begins)


@pytest.mark.parametrize("counter", [0, 2**32 - 1, 2**32, 2**40 + 3])
def test_blocks_of_another_implementation(counter: int) -> None:
    nonce = 2**63 + 2**33 + 7
    got = blocks(KEY, np.array([counter]), nonce, 20).astype("<u4").tobytes()
    secret = algorithms.ChaCha20(struct.pack("<4q", *KEY), struct.pack("<QQ", counter, nonce))
    assert got == Cipher(secret, None).encryptor().update(bytes(64))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("terms", [1, 4])
def test_bits_of_any_group(wide: bool, terms: int) -> None:
    """Each word of the cipher once; a group's are the same however many are made."""
    found = bits(KEY, 7, terms, 12, wide, 5, 2)
    pairs = numbers(wide) // 2
    assert found.shape == (2 * pairs, terms, 2, SIDE)
    assert found.dtype == (torch.int64 if wide else torch.int32)
    assert torch.equal(bits(KEY, 7, terms, 12, wide, 6, 1), found[pairs:])
    made = blocks(KEY, np.arange(5 * terms * SIDE, 7 * terms * SIDE), 7, 12)
    words = np.ascontiguousarray(made)
    assert sorted(found.contiguous().numpy().view("<u4").flatten()) == sorted(words.flatten())
    # The length of the first number, and its angle.
    first = words.view("<u8" if wide else "<u4")[0, :2].astype("<i8" if wide else "<i4")
    assert found[0, 0, :, 0].tolist() == first.tolist()
