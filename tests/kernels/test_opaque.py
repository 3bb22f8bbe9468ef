"""Kernels that read their operands as if they were contiguous get them so."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fxdp.kernels.opaque as opaque

Layout = Callable[[Tensor], Tensor]
LAYOUTS: dict[str, Layout] = {
    "channels last": lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "turned": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "repeated": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout: str) -> None:
    torch.manual_seed(0)
    lay = LAYOUTS[layout]
    x, g = (lay(torch.randn(3, 4, 5, 2)) for _ in range(2))
    mean, rstd = (lay(torch.rand(3, 2)) for _ in range(2))
    weight = torch.randn(4)
    plain = [t.contiguous() for t in (g, x, mean, rstd)]
    torch.testing.assert_close(
        opaque.group_norm_backward(g, x, mean, rstd, weight, 2),
        opaque.group_norm_backward(*plain, weight, 2),
    )
    for got, wanted in zip(
        opaque.group_norm(x, weight, None, 2, 1e-5),
        opaque.group_norm(plain[1], weight, None, 2, 1e-5),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
    mean, rstd = (lay(torch.rand(3, 4, 5, 1)) for _ in range(2))
    plain = [t.contiguous() for t in (g, x, mean, rstd)]
    torch.testing.assert_close(
        opaque.layer_norm_backward(g, x, [2], mean, rstd, None, None),
        opaque.layer_norm_backward(plain[0], plain[1], [2], plain[2], plain[3], None, None),
    )
