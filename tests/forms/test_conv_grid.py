"""Every convolution of gradcnn's grid (arXiv:1912.06015), by the two forms that rewrite it."""

import itertools

import pytest
import torch
from torch import Tensor

from fxdp.forms.conv import Conv, Spec

BATCH, CHANNELS, FILTERS = 2, 4, 4


def configurations(nd: int) -> list[Spec]:
    """Kernel 1-5, stride 1-3, padding 0-2, dilation 1-2, groups 1, 2, 4."""
    return [
        Spec((FILTERS, CHANNELS // groups, *[k] * nd), (s,) * nd, (p,) * nd, (d,) * nd, groups)
        for k, s, p, d, groups in itertools.product(
            (1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2), (1, 2, 4)
        )
    ]


def alone(conv: Conv) -> Tensor:
    """Each sample's weight gradient, by the convolution's own backward."""
    return torch.stack([conv.replica(x, g) for x, g in zip(conv.x, conv.g, strict=True)])


@pytest.mark.parametrize("size", [9, 12])
@pytest.mark.parametrize("nd", [1, 2])
def test_grid(nd: int, size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(BATCH, 1, CHANNELS, *[size] * nd, dtype=torch.double)
    checked = truncated = 0
    for spec in configurations(nd):
        k, s, p, d = spec.kernel[0], spec.stride[0], spec.padding[0], spec.dilation[0]
        stops, left = divmod(size + 2 * p - d * (k - 1) - 1, s)
        g = torch.randn(BATCH, 1, FILTERS, *[stops + 1] * nd, dtype=torch.double)
        conv = Conv(x, g, spec)
        wanted = alone(conv)
        for strategy in ("instantiate", "crb", "unfold"):
            got = conv.per_sample(strategy)
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
        checked += 1
        truncated += left >= d
    assert checked == 216
    assert truncated > 0
