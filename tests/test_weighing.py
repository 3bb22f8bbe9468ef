"""The ops of clipped sums and of the release, beyond what the forms' tests hold them to."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from fxdp.weighing import BLOCK

SHAPES = [(), (0,), (3, 4), (BLOCK + 5,), (2, BLOCK)]


def released(total: Tensor, scale: float, public: Tensor | None = None, draw: int = 0) -> Tensor:
    scalars = [torch.tensor(v, dtype=torch.float64) for v in (scale, 4.0, 3.0)]
    return torch.ops.fxdp.released(total, *scalars, public, draw)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """(total / L + public) * tangent, also of tensors that are no whole rows."""
    total, public = (torch.randn(shape, dtype=dtype) for _ in range(2))
    torch.testing.assert_close(released(total, 0.0), total / 4 * 3)
    torch.testing.assert_close(released(total, 0.0, public), (total / 4 + public) * 3)
    if total.dim() == 2:
        torch.testing.assert_close(released(total.T, 0.0), total.T / 4 * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_normal_and_of_its_scale(dtype: torch.dtype) -> None:
    """The seed is fixed: a bound of 5 deviations, and a Kolmogorov-Smirnov test at 1e-6."""
    torch.manual_seed(0)
    total = torch.randn(3 * BLOCK + 7, dtype=dtype)
    noise = (released(total, 8.0) - total / 4 * 3) / 6
    assert abs(float(noise.var()) - 1) < 5 * math.sqrt(2 / noise.numel())
    assert stats.kstest(noise.double().numpy(), "norm").pvalue > 1e-6
    blocks = noise[: 3 * BLOCK].view(3, BLOCK)
    off = torch.corrcoef(blocks) - torch.eye(3, dtype=dtype)
    assert float(off.abs().max()) < 5 / math.sqrt(BLOCK)


def test_the_seed_decides() -> None:
    total = torch.zeros(100)
    torch.manual_seed(0)
    first, second = released(total, 1.0), released(total, 1.0)
    torch.manual_seed(0)
    assert torch.equal(released(total, 1.0), first)
    assert not torch.equal(first, second)


def test_the_sum_is_left_alone() -> None:
    total = torch.randn(10)
    before = total.clone()
    released(total, 1.0)
    assert torch.equal(total, before)
