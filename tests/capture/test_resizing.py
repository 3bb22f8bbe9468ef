"""Resizing with antialiasing computes what torch's own does, and N stays a symbol."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxdp.capture.resizing import bicubic_antialiased, linear_antialiased
from tests.oracle import score
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")


MODES = {"bicubic": bicubic_antialiased, "bilinear": linear_antialiased}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(7, 6), (3, 2), (5, 5), (1, 9), (11, 2)])
def test_as_torch_does(size: tuple[int, int], align: bool, mode: str):
    x = torch.randn(2, 3, 5, 8)
    wanted = F.interpolate(x, size, mode=mode, antialias=True, align_corners=align)
    torch.testing.assert_close(MODES[mode](x, list(size), align), wanted)


def test_to_a_width_of_one():
    """torch's own kernel (2.13, CPU) then mixes up the axes, unless the height comes first."""
    x = torch.randn(2, 3, 5, 8)
    tall = F.interpolate(x, (11, 8), mode="bicubic", antialias=True)
    wanted = F.interpolate(tall, (11, 1), mode="bicubic", antialias=True)
    torch.testing.assert_close(bicubic_antialiased(x, [11, 1], False), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [0.5, 0.7, 1.3, 2.0])
def test_by_a_factor(factor: float, mode: str):
    x = torch.randn(2, 3, 10, 8)
    wanted = F.interpolate(x, scale_factor=factor, mode=mode, antialias=True)
    got = MODES[mode](x, list(wanted.shape[2:]), False, factor, factor)
    torch.testing.assert_close(got, wanted)


class Resized(nn.Module):
    """Images, and places of a vision transformer, in another size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.places = nn.Conv2d(2, 3, 1), nn.Parameter(torch.randn(1, 3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        places = F.interpolate(self.places, x.shape[2:], mode="bicubic", antialias=True)
        h = self.conv(x) + places.expand(x.shape[0], -1, -1, -1)
        h = F.interpolate(h, (4, 6), mode="bilinear", antialias=True)
        return score(F.interpolate(h, (3, 7), mode="bicubic", antialias=True))


class Smaller(nn.Module):
    """One resizing, the one with fewer taps: what compiles quickly."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return score(F.interpolate(self.conv(x), (3, 7), mode="bilinear", antialias=True))


@pytest.mark.parametrize(
    ("model", "backend"), [(Resized, "eager"), (Smaller, "inductor")], ids=["eager", "inductor"]
)
def test_within_a_step(model: type[nn.Module], backend: str):
    compare_at((7, 5, 2, 1), model(), lambda n: (torch.randn(n, 2, 5, 5),), backend=backend)
