"""The noise of a GPU: what its kernel stands for, and that no other is used.

Where there is no kernel, something that computes the same stands in for it.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from fxdp.diagnostics.errors import StepError
from fxdp.kernels import triton as package
from fxdp.mechanism import chacha as module
from fxdp.mechanism import gaussian
from fxdp.mechanism.chacha import (
    ROUNDS,
    SECURE_ROUNDS,
    device_key,
    draws_by_key,
    kernel,
    noise_of,
    refuse_recording,
    rounds_of,
    trouble_of,
)  # fmt: skip
from fxdp.mechanism.deviation import FARTHEST
from fxdp.mechanism.gaussian import add_device_noise, release_, released
from fxdp.mechanism.keystream import SECURE_TERMS, normals
from fxdp.mechanism.keystream import noise_of as noise_of_aes

KEY = torch.tensor([1, 2])
HOST = torch.device("cpu")
KINDS = [(torch.float32, 1), (torch.float64, 1), (torch.float32, SECURE_TERMS)]


def drawn(
    start: int, length: int, dtype: torch.dtype = torch.float32, terms: int = 1, number: int = 3
) -> Tensor:
    rounds = rounds_of(terms)
    return noise_of(device_key(KEY, rounds), number, start, length, dtype, terms, rounds)


@pytest.mark.parametrize(("dtype", "terms"), KINDS)
def test_a_slice_of_the_noise_is_the_noise_of_the_slice(dtype: torch.dtype, terms: int) -> None:
    whole = drawn(0, 9000, dtype, terms)
    for start, length in ((0, 1), (4090, 10), (17, 8000)):
        assert torch.equal(drawn(start, length, dtype, terms), whole[start:][:length])
    for other in (drawn(2**40, 9000, dtype, terms), drawn(0, 9000, dtype, terms, number=4)):
        assert not (other == whole).any()


@pytest.mark.parametrize(("dtype", "terms"), KINDS)
def test_it_is_normal_to_the_tails(dtype: torch.dtype, terms: int) -> None:
    """The key is fixed: moments within 5 deviations, and a Kolmogorov-Smirnov test at 1e-6."""
    x = drawn(5, 1 << 18, dtype, terms).double()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((x**power).mean()) - mean) < 5 * (variance / len(x)) ** 0.5
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-6
    assert stats.binomtest(int((x.abs() > 4).sum()), len(x), 2 * stats.norm.sf(4)).pvalue > 1e-6
    assert float(x.abs().max()) < FARTHEST


def test_keys_of_ciphers_and_rounds_have_nothing_in_common() -> None:
    keys = [device_key(KEY, r) for r in (ROUNDS, SECURE_ROUNDS)] + [device_key(KEY + 1, ROUNDS)]
    words = [*KEY.tolist(), *(word for key in keys for word in key)]
    assert len(set(words)) == len(words)
    with pytest.raises(AssertionError, match="has no key"):
        device_key(torch.zeros(2, dtype=torch.int64), ROUNDS)
    wide = torch.float64
    assert not torch.isin(drawn(0, 2000, wide), noise_of_aes(KEY, 3, 0, 2000, wide)).any()


def standing_in(
    wrong: Callable[[Tensor], Tensor] = lambda xi: xi,
    wrong_pair: Callable[[Tensor], Tensor] = lambda x: x,
    end: int = 0,
) -> Any:
    """What computes as the kernels do, on the CPU, but for what is made wrong in it."""

    def add_noise(
        flat: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, key: Any, number: int,
        terms: int, rounds: int, start: int = 0,
    ) -> None:  # fmt: skip
        xi = wrong(noise_of(key, number, start, len(flat), flat.dtype, terms, rounds))
        made = (flat + scale.to(xi.dtype) * xi).to(flat.dtype) * (tangent / expected)
        flat[: len(flat) - end] = made[: len(flat) - end].to(flat.dtype)

    def pairs(lengths: Tensor, angles: Tensor) -> tuple[Tensor, ...]:
        bits = torch.stack([lengths, angles])[None, None]
        return tuple(wrong_pair(x[0]) for x in normals(bits))

    return SimpleNamespace(add_noise=add_noise, pairs=pairs)


@pytest.mark.parametrize(("dtype", "terms"), KINDS)
def test_what_computes_the_same_is_used(dtype: torch.dtype, terms: int) -> None:
    assert trouble_of(standing_in(), HOST, dtype, terms) is None


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"wrong": lambda xi: xi.roll(1)}, "elements from 0"),
        ({"wrong": lambda xi: xi * (1 + 1e-8)}, "elements from 0"),  # pi in float32
        ({"end": 1}, "elements from 0"),
        ({"wrong_pair": lambda x: x.where(x < 3, 3.0)}, "numbers of torch.int64 bits"),
        ({"wrong_pair": lambda x: x.where(x != x.min(), torch.nan)}, "numbers of torch.int64"),
    ],
    ids=["order", "a constant", "end", "tail", "NaN"],
)
def test_what_computes_something_else_is_not(fault: Any, words: str) -> None:
    assert words in str(trouble_of(standing_in(**fault), HOST, torch.float64, 1))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts something in the place of the kernels."""
    kernel.cache_clear()

    def put(standing: Any) -> None:
        monkeypatch.setitem(sys.modules, f"{package.__name__}.noise", standing)
        monkeypatch.setattr(package, "noise", standing, raising=False)

    yield put
    kernel.cache_clear()


@pytest.mark.parametrize(("dtype", "terms"), KINDS)
def test_the_noise_of_a_kernel_that_differs_is_not_released(
    stand_in: Any, dtype: torch.dtype, terms: int
) -> None:
    """The host makes it, by AES; where the kernel is right it does."""
    numbers = [torch.tensor(v, dtype=torch.float64) for v in (8.0, 4.0, 3.0)]
    total = torch.randn(3000, dtype=dtype)

    def got() -> Tensor:
        flat = total.clone()
        add_device_noise(flat, *numbers, KEY, 3, terms)
        return flat

    def want(xi: Tensor) -> Tensor:
        return ((total + 8 * xi) * 0.75).to(dtype)

    stand_in(standing_in(wrong=lambda xi: xi * 0))
    with pytest.warns(UserWarning, match="the noise of cpu differs from what it stands for"):
        found = got()
    torch.testing.assert_close(found, want(noise_of_aes(KEY, 3, 0, 3000, dtype, terms)))
    kernel.cache_clear()
    stand_in(standing_in())
    torch.testing.assert_close(got(), want(drawn(0, 3000, dtype, terms)))


def test_a_cuda_graph_records_no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would add one noise again and again; Inductor leaves the ops out of its graphs."""
    recording = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: recording[0])
    refuse_recording(torch.device("cuda", 0))
    recording[0] = True
    refuse_recording(HOST)
    with pytest.raises(StepError, match="is recorded by a CUDA graph"):
        refuse_recording(torch.device("cuda", 0))
    asked: list[torch.device] = []
    monkeypatch.setattr(gaussian, "refuse_recording", asked.append)
    add_device_noise(torch.ones(2), *torch.tensor([0.0, 1.0, 1.0]), KEY * 0, 0, 1)
    assert asked == [HOST]
    for op in (released, release_):
        assert torch.Tag.cudagraph_unsafe in op.default.tags


def test_where_noise_is_a_function_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(module, "has_triton", lambda there=there: there)
        assert draws_by_key(HOST)
        assert draws_by_key(torch.device("cuda", 0)) == there
        assert not draws_by_key(torch.device("meta"))
