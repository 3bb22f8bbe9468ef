"""Convolutions with a kernel for each sample: the samples are among the groups.

Styles that modulate weights (StyleGAN2), a template that is looked for in an image (siamese
trackers), hypernetworks.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.oracle import score
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")
C, D = 2, 3
Use = Callable[["Layers", Tensor, Tensor], Tensor]


class Layers(nn.Module):
    def __init__(self, use: Use) -> None:
        super().__init__()
        self.conv, self.style, self.use = nn.Conv2d(C, D, 3, padding=1), nn.Linear(4, C), use

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return score(self.use(self, x, z))

    def modulated(self, z: Tensor) -> Tensor:
        """[N, D, C, 3, 3]"""
        return self.conv.weight * (self.style(z) + 1)[:, None, :, None, None]


def style(net: Layers, x: Tensor, z: Tensor) -> Tensor:
    (n, c, h, w), own = x.shape, net.modulated(z)
    own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    out = F.conv2d(
        x.sin().reshape(1, n * c, h, w), own.flatten(0, 1), bias=net.conv.bias.repeat(n),
        padding="same", groups=n,
    )  # fmt: skip
    return out.view(n, D, h, w)


def upsampled(net: Layers, x: Tensor, z: Tensor) -> Tensor:
    n, c, h, w = x.shape
    own = net.modulated(z).transpose(1, 2).reshape(n * c, D, 3, 3)
    x = (x * net.style(z)[:, :, None, None]).reshape(1, n * c, h, w)
    return F.conv_transpose2d(x, own, stride=2, output_padding=1, groups=n).unflatten(1, (n, D))[0]


def template(net: Layers, x: Tensor, z: Tensor) -> Tensor:
    seen, part = net.conv(x), net.conv(x[:, :, :3, :3])
    n, d, h, w = seen.shape
    found = F.conv2d(seen.reshape(1, n * d, h, w), part.reshape(n * d, 1, 3, 3), groups=n * d)
    return found.reshape(n, d, h - 2, w - 2)


def correlated(net: Layers, x: Tensor, z: Tensor) -> Tensor:
    seen, part = net.conv(x), net.conv(x[:, :, :3, :3])
    n, d, h, w = seen.shape
    return F.conv2d(seen.reshape(1, n * d, h, w), part, groups=n, stride=2, dilation=1)[0]


def filtered(net: Layers, x: Tensor, z: Tensor) -> Tensor:
    return F.conv1d(x[:, 0, :, 0][None], net.style(z)[:, None], groups=x.shape[0])[0]


class AllUses(nn.Module):
    """Each with layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.style, self.upsampled = Layers(style), Layers(upsampled)
        self.template, self.correlated = Layers(template), Layers(correlated)
        self.filtered = Layers(filtered)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return sum(layers(x, z) for layers in self.children())


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_own_kernels(backend: str):
    def draw(n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, C, 5, 5), torch.randn(n, 4)

    private = compare_at((7, D, C, 1), AllUses(), draw, backend=backend)
    assert not private.certificate(*draw(2)).fallbacks


def other_groups(net: Layers, x: Tensor, z: Tensor) -> Tensor:
    n, c, h, w = x.shape
    kernels = net.modulated(z).flatten(0, 1)  # [N*D, C, 3, 3], for the channels of all samples
    return F.conv2d(x.transpose(0, 1).reshape(1, c * n, h, w), kernels, groups=n).unflatten(
        1, (n, D)
    )[0]


def shared_bias(net: Layers, x: Tensor, z: Tensor) -> Tensor:
    n, c, h, w = x.shape
    bias = (net.style(z)[:, :1] * net.conv.bias).T.reshape(-1)  # [D*N], others' numbers
    kernels = net.modulated(z).flatten(0, 1)
    return F.conv2d(x.reshape(1, n * c, h, w), kernels, bias, groups=n).unflatten(1, (n, D))[0]


@pytest.mark.parametrize("n", [C, D, 7])
@pytest.mark.parametrize("use", [other_groups, shared_bias])
def test_kernels_of_other_samples_are_refused(use: Use, n: int):
    with pytest.raises(fxdp.BatchMixingError):
        fxdp.prove(Layers(use), torch.randn(n, C, 5, 5), torch.randn(n, 4))
