"""Noise of ChaCha: its bits are those of another implementation, its numbers those that a CPU makes
of the same bits, and a slice's are a slice."""

import struct

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats
from torch import Tensor

from fxdp.mechanism.gaussian import device_key, released
from fxdp.mechanism.keystream import normals

KEY = (0x0706050403020100, -0x1112131415161718, 3, -4)  # one that fills its words, and none
NUMBER = 2**33 + 7
SIDE = 256
# Of (float32, one term), and of all other noise: numbers of a block, and numpy's name of a half.
NARROW, WIDE = (16, "<i4"), (8, "<i8")


def bits(start: int, groups: int, terms: int, kind: tuple[int, str]) -> Tensor:
    """[groups * pairs, terms, 2, SIDE] integers of ChaCha20, from a group of elements on."""
    size, name = kind
    nonce = struct.pack("<QQ", start * terms * SIDE, NUMBER)
    cipher = Cipher(algorithms.ChaCha20(struct.pack("<4q", *KEY), nonce), None).encryptor()
    words = np.frombuffer(cipher.update(bytes(64 * groups * terms * SIDE)), dtype=name)
    each = torch.tensor(words.reshape(groups, terms, SIDE, size // 2, 2))
    return each.permute(0, 3, 1, 4, 2).reshape(-1, terms, 2, SIDE)


def noise(
    device: str, start: int, length: int, terms: int, dtype: torch.dtype, **how: int
) -> Tensor:
    from fxdp.kernels.triton.noise import add_noise

    flat = torch.zeros(length, dtype=dtype, device=device)
    one = torch.ones((), dtype=torch.float64, device=device)
    how = {"number": NUMBER, "rounds": 20} | how
    add_noise(flat, one, one, one, KEY, how["number"], terms, how["rounds"], start)
    return flat.cpu()


@pytest.mark.parametrize(
    ("dtype", "terms", "start"),
    [
        *((torch.float32, 1, start) for start in (0, 4095, 2**32 + 5, 2**40 + 4090)),
        *((torch.float64, 1, start) for start in (2047, 2**40 + 4090)),
        (torch.float32, 4, 2**32 + 2040),
    ],
)
def test_the_numbers_are_of_chacha20(
    device: str, dtype: torch.dtype, terms: int, start: int
) -> None:
    """From any element on, also behind 2^32, over the end of a group."""
    kind = NARROW if (dtype, terms) == (torch.float32, 1) else WIDE
    group = kind[0] * SIDE
    want = torch.stack(normals(bits(start // group, 2, terms, kind)), 1).flatten()
    got = noise(device, start, 300, terms, dtype)
    close = 1e-6 if device == "cpu" else 2e-5
    close = close if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        got, want[start % group :][:300].to(dtype), rtol=close, atol=close
    )  # fmt: skip


def test_a_slice_is_a_slice(device: str) -> None:
    whole = noise(device, 0, 4100, 1, torch.float32)
    for start, length in ((0, 1), (4090, 10), (17, 4000)):
        assert torch.equal(noise(device, start, length, 1, torch.float32), whole[start:][:length])


def test_number_and_rounds_decide(device: str) -> None:
    first = noise(device, 0, 64, 1, torch.float32)
    for how in ({"number": NUMBER + 1}, {"number": NUMBER % 2**32}, {"rounds": 12}):
        other = noise(device, 0, 64, 1, torch.float32, **how)
        assert not bool((first == other).any())


@pytest.mark.parametrize("terms", [1, 4])
def test_noise_is_normal(device: str, terms: int) -> None:
    """The key is fixed: a Kolmogorov-Smirnov test at 1e-6."""
    drawn = noise(device, 0, 4000, terms, torch.float32, rounds=12)
    assert stats.kstest(drawn.double().numpy(), "norm").pvalue > 1e-6


def test_it_is_added_and_scaled(device: str) -> None:
    """(sum + scale xi) / expected * tangent; without a scale nothing is added."""
    from fxdp.kernels.triton.noise import add_noise

    total = torch.randn(50)
    xi = noise(device, 0, 50, 1, torch.float32)
    for scale, factor in ((0.0, 0.5), (3.0, -0.25)):
        flat = total.clone().to(device)
        one, by, times = (
            torch.tensor(v, dtype=t, device=device)
            for v, t in ((2.0, torch.float64), (scale, torch.float32), (2 * factor, torch.float32))
        )
        add_noise(flat, by, one, times, KEY, NUMBER, 1, 20)
        torch.testing.assert_close(flat.cpu(), (total + scale * xi) * factor)


def test_keys_of_the_two_ciphers_differ() -> None:
    key = torch.tensor([1, 2])
    assert device_key(key) != device_key(torch.tensor([1, 3]))
    assert not {1, 2} & set(device_key(key))
    with pytest.raises(AssertionError, match="has no key"):
        device_key(torch.zeros(2, dtype=torch.int64))


@pytest.mark.cuda
@pytest.mark.parametrize("terms", [1, 4])
def test_a_release_on_a_gpu(terms: int) -> None:
    """By its key alone; another parameter, or release, has other noise."""
    total = torch.zeros(1000, device="cuda")
    numbers = [torch.tensor(v, dtype=torch.float64, device="cuda") for v in (2.0, 4.0, 1.0)]
    key = torch.tensor([5, 6])

    def drawn(key: Tensor, number: int) -> Tensor:
        torch.rand(3, device="cuda")  # no generator has a part in it
        return released(total, *numbers, None, key, number, terms)

    first = drawn(key, 0)
    assert torch.equal(drawn(key, 0), first)
    assert abs(float(first.std()) * 2 - 1) < 0.15
    for other in (drawn(key, 1), drawn(torch.tensor([5, 7]), 0)):
        assert not bool((other == first).any())
