"""Bits from a cipher, and normal numbers made of them."""

import math

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from fxdp.mechanism.keystream import GROUP, HALF, Bits, no_key, noise_of, normals

KEY = torch.tensor([1, 2])
WORDS = {1: torch.int32, 4: torch.int64}


def test_bits_are_the_cipher_of_a_counter() -> None:
    """AES of 7|0, 7|1, 7|2, ... by blocks, for parameter 7."""
    bits = Bits.of(KEY, 7, 1, torch.float32)
    got = torch.cat([bits.next(16).flatten(), bits.next(3).flatten()])
    blocks = b"".join((7).to_bytes(8) + k.to_bytes(8) for k in range(len(got) // 4))
    secret = algorithms.AES128(KEY.numpy().tobytes())
    wanted = Cipher(secret, modes.ECB()).encryptor().update(blocks)
    assert got.numpy().tobytes() == wanted


def test_room_is_used() -> None:
    bits, other = (Bits.of(KEY, 0, 1, torch.float32) for _ in range(2))
    room = bits.room(8)
    found = bits.next(3, room)
    assert found.data_ptr() == room.data_ptr()
    assert torch.equal(found, other.next(3))


@pytest.mark.parametrize(
    ("dtype", "terms", "word"),
    [
        (torch.float32, 1, torch.int32),
        (torch.float32, 4, torch.int64),
        (torch.float64, 1, torch.int64),
    ],
)
def test_words(dtype: torch.dtype, terms: int, word: torch.dtype) -> None:
    bits = Bits.of(KEY, 0, terms, dtype)
    assert bits.next(5).shape == (5, terms, 2, HALF)
    assert bits.dtype == word


def test_no_bits_without_a_key() -> None:
    with pytest.raises(AssertionError, match="no key"):
        Bits.of(no_key(), 0, 1, torch.float32)


@pytest.mark.parametrize("terms", WORDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slice_of_the_noise_is_the_noise_of_the_slice(dtype: torch.dtype, terms: int) -> None:
    whole = noise_of(KEY, 3, 0, 3 * GROUP + 5, dtype, terms)
    for start, length in ((0, 7), (5, GROUP), (GROUP - 1, 2), (2 * GROUP, GROUP + 5), (9, 0)):
        part = noise_of(KEY, 3, start, length, dtype, terms)
        assert torch.equal(part, whole[start : start + length])
    assert not torch.isin(noise_of(KEY, 4, 0, GROUP, dtype, terms), whole).any()


@pytest.mark.parametrize("terms", WORDS)
def test_every_integer_makes_a_finite_number(terms: int) -> None:
    info = torch.iinfo(WORDS[terms])
    ends = torch.tensor([0, 1, -1, info.min, info.min + 1, info.max], dtype=WORDS[terms])
    lengths, angles = (m.flatten() for m in torch.meshgrid(ends, ends, indexing="ij"))
    found = torch.stack(normals(torch.stack([lengths, angles]).expand(1, terms, 2, -1)))
    assert found.isfinite().all()
    # The longest are as long as the docstring says, all terms pulling one way.
    most = math.sqrt(2 * math.log(2) * {1: 33, 4: 65}[terms]) * math.sqrt(terms)
    assert float(found.abs().max()) == pytest.approx(most, rel=1e-6)


@pytest.mark.parametrize("terms", WORDS)
def test_tails(terms: int) -> None:
    """Of 4 million numbers as many lie beyond 3, 4 and 5 as should; false alarms: 1 in a million
    each, were the key not fixed."""
    found = noise_of(KEY, 0, 0, 1 << 22, torch.float32, terms).abs()
    for limit in (3.0, 4.0, 5.0):
        expected = 2 * stats.norm.sf(limit)
        count = int((found > limit).sum())
        assert stats.binomtest(count, found.numel(), expected).pvalue > 1e-6
