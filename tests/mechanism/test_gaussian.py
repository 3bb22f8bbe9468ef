"""The op that adds the noise, on its own, in place, and with a compiled loop."""

import functools
import itertools
import math
import warnings

import pytest
import torch
from scipy import stats
from torch import Tensor

from fxdp.mechanism import gaussian as module
from fxdp.mechanism.gaussian import BLOCK, add_device_noise, add_noise, compiled, release_
from fxdp.mechanism.gaussian import released as op
from fxdp.mechanism.keystream import HALF, Bits, no_key

SHAPES = [(), (0,), (3, 4), (BLOCK + 5,), (2, BLOCK)]
DTYPES = [torch.float32, torch.float64]
KEY = torch.tensor([1, 2])


def scalars(scale: float) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64) for v in (scale, 4.0, 3.0)]


def released(
    total: Tensor, scale: float, public: Tensor | None = None, draw: int = 0, terms: int = 1,
    key: Tensor = KEY,
) -> Tensor:  # fmt: skip
    return op(total, *scalars(scale), public, key, draw, terms)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_noise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """(total / L + public) * tangent, also of tensors that are no whole rows."""
    total, public = (torch.randn(shape, dtype=dtype) for _ in range(2))
    torch.testing.assert_close(released(total, 0.0), total / 4 * 3)
    torch.testing.assert_close(released(total, 0.0, public), (total / 4 + public) * 3)
    if total.dim() == 2:
        torch.testing.assert_close(released(total.T, 0.0), total.T / 4 * 3)


@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_normal_and_of_its_scale(dtype: torch.dtype, terms: int) -> None:
    """The key is fixed: a bound of 5 deviations, and a Kolmogorov-Smirnov test at 1e-6."""
    total = torch.randn(3 * BLOCK + 7, dtype=dtype)
    noise = (released(total, 8.0, terms=terms) - total / 4 * 3) / 6
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / noise.numel())
    assert stats.kstest(noise.double().numpy(), "norm").pvalue > 1e-6
    halves = noise[: 3 * BLOCK].view(-1, 2, HALF).transpose(0, 1).reshape(2, -1)
    off = torch.corrcoef(torch.cat([halves, halves**2])) - torch.eye(4, dtype=dtype)
    assert float(off.abs().max()) < 5 / math.sqrt(halves.shape[1])  # made of the same lengths


def test_a_device_without_a_key_draws_nothing() -> None:
    """With no noise to make the sum is divided; with some to make it is lost, never released."""
    total = torch.randn(5)
    for scale, same in ((0.0, True), (1.0, False)):
        out = total.clone()
        add_device_noise(out, *scalars(scale), no_key(), 0, 1)
        torch.testing.assert_close(
            out, total / 4 * 3 if same else torch.full((5,), torch.nan), equal_nan=True
        )


def test_key_and_number_decide() -> None:
    total = torch.zeros(100)
    first = released(total, 1.0)
    assert torch.equal(released(total, 1.0), first)
    assert torch.equal(released(torch.zeros(50), 1.0), first[:50])  # and no length
    others = [released(total, 1.0, draw=1), released(total, 1.0, key=torch.tensor([1, 3]))]
    for a, b in itertools.combinations([first, *others], 2):
        assert not torch.isin(a, b).any()


def test_noise_needs_a_key() -> None:
    none = torch.zeros(2, dtype=torch.int64)
    assert released(torch.ones(2), 0.0, key=none).tolist() == [0.75, 0.75]
    with pytest.raises(AssertionError, match="no key"):
        released(torch.ones(2), 1.0, key=none)


def test_the_sum_is_left_alone() -> None:
    total = torch.randn(10)
    before = total.clone()
    released(total, 1.0)
    assert torch.equal(total, before)


@pytest.mark.parametrize("by", ["instructions", "loop"])
@pytest.mark.parametrize("terms", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(
    shape: tuple[int, ...], dtype: torch.dtype, terms: int, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, by compiled code, in the memory of the sum."""
    if by == "loop":
        monkeypatch.setattr(module, "native", lambda: None)
    total, public = (torch.randn(shape, dtype=dtype) for _ in range(2))
    wanted = released(total, 8.0, public, 5, terms)
    release_(total, *scalars(8.0), public, KEY, 5, terms)
    torch.testing.assert_close(total, wanted)
    assert compiled(dtype, terms) is not module.blend


@pytest.mark.parametrize("start", [0, 3, 1024, 5000])
def test_a_part_of_a_parameter(start: int) -> None:
    """Noised on its own, with the noise that it has in the whole."""
    whole, one = torch.zeros(9000), torch.tensor(1.0)
    bits = functools.partial(Bits.of, KEY, 2, 1, torch.float32)
    add_noise(whole, one, one, one, bits, module.blend)
    part = torch.zeros(2500)
    add_noise(part, one, one, one, bits, module.blend, start)
    torch.testing.assert_close(part, whole[start : start + 2500])


def test_a_loop_that_was_compiled_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> object:
        return lambda args: args[0].mul_(args[3])  # no noise

    monkeypatch.setattr(module, "compile_fx_inner", wrong)
    compiled.cache_clear()
    with pytest.warns(UserWarning, match="loop of the noise differs"):
        assert compiled(torch.float32, 1) is module.blend
    compiled.cache_clear()
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(torch.float32, 1) is not module.blend
