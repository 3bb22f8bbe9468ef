"""Noise of ChaCha: its bits are those of another implementation, its numbers those that a CPU makes
of the same bits, and a slice's are a slice."""

import struct
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats
from torch import Tensor

import fxdp
from fxdp.diagnostics.errors import StepError
from fxdp.mechanism import gaussian
from fxdp.mechanism.chacha import ROUNDS, device_key, noise_of, trouble_of
from fxdp.mechanism.correlated import BandMF
from fxdp.mechanism.gaussian import add_device_noise, released
from fxdp.mechanism.keystream import normals
from fxdp.privacy import CyclicPoisson

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


def test_secure_noise_is_rounded_once(device: str) -> None:
    """Added in float64, as on a CPU."""
    from fxdp.kernels.triton.noise import add_noise

    total, xi = torch.randn(500) * 100, noise(device, 0, 500, 4, torch.float64)
    one, two = (torch.tensor(v, dtype=torch.float64, device=device) for v in (1.0, 2.0))
    flat = total.clone().to(device)
    add_noise(flat, two, one, one, KEY, NUMBER, 4, 20)
    assert torch.equal(flat.cpu(), (total.double() + 2 * xi).float())


@pytest.mark.parametrize(
    ("dtype", "terms"), [(torch.float32, 1), (torch.float64, 1), (torch.float32, 4)]
)
def test_it_is_what_it_stands_for(device: str, dtype: torch.dtype, terms: int) -> None:
    """As a release asks before its first noise: all rounds in use, and all magnitudes."""
    from fxdp.kernels.triton import noise

    assert trouble_of(noise, torch.zeros(0, device=device).device, dtype, terms) is None


def test_correlated_noise(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three steps, of nothing but noise: B y is what ChaCha makes of each step's key."""

    def by_device(
        flat: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, bits: Any, _: Any
    ) -> None:
        key, number, terms, _ = bits.args
        add_device_noise(flat, scale, expected, tangent, key, number, terms)

    if device == "cpu":
        monkeypatch.setattr(gaussian, "add_noise", by_device)
    model = torch.nn.Linear(4, 3, bias=False).to(device)
    private = fxdp.compile(
        model, loss_fn=F.cross_entropy, max_grad_norm=0.5, noise_multiplier=2.0,
        expected_batch_size=4.0, backend="eager", noise=BandMF(2),
        accounting=fxdp.Accounting(CyclicPoisson(0.5, 4), accountant="rdp"),
    )  # fmt: skip
    x, nobody = torch.zeros(2, 4, device=device), torch.zeros(2, dtype=torch.bool, device=device)
    released, fresh = [], []
    for _ in range(3):
        private(x, nobody.long(), sample_mask=nobody).backward()
        released.append(model.weight.grad.flatten().cpu().double() / 0.25)
        model.weight.grad = None
        key = device_key(private._stepper.key, ROUNDS)
        fresh.append(noise_of(key, 0, 0, 12, torch.float32, 1, ROUNDS).double())
    first, second = BandMF(2).coefficients
    for t in range(3):
        before = second * released[t - 1] if t else 0.0
        torch.testing.assert_close(
            first * released[t] + before, fresh[t], rtol=1e-4, atol=1e-4
        )  # fmt: skip


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


@pytest.mark.cuda
def test_a_release_waits_for_nothing_and_is_not_recorded() -> None:
    total, public = (torch.zeros(1000, device="cuda") for _ in range(2))
    numbers = [torch.tensor(v, dtype=torch.float64, device="cuda") for v in (2.0, 4.0, 1.0)]
    key, graph = torch.tensor([5, 6]), torch.cuda.CUDAGraph()
    released(total, *numbers, public, key, 0, 1)  # compiled and compared
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        released(total, *numbers, public, key, 0, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    def record() -> None:
        with torch.cuda.graph(graph):
            total.add(1)
            released(total, *numbers, public, key, 0, 1)

    with pytest.raises(StepError, match="is recorded by a CUDA graph"):
        record()
