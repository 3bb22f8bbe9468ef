"""Resizing with antialiasing, linear and cubic, as two products with matrices of weights.

torch's own kernels have backward passes that take no symbolic sizes. Resizing works along each axis
by itself and is linear, so that products of matrices compute the same.

Letters: I pixels of an axis become O, each a weighted mean of those around it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CURVE = -0.5  # of the cubic kernel, Keys' with torch's (and Pillow's) constant


@dataclass(frozen=True)
class Kernel:
    """How much a pixel weighs by its distance, and beyond which distance it weighs nothing."""

    weight: Callable[[Tensor], Tensor]
    radius: float


def triangle(x: Tensor) -> Tensor:
    """The kernel of linear interpolation."""
    return (1 - x.abs()).clamp(min=0)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel (Keys 1981, equation 4)."""
    x, a = x.abs(), CURVE
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


LINEAR, CUBIC = Kernel(triangle, 1.0), Kernel(cubic, 2.0)


def weights(
    kernel: Kernel, pixels: int, wanted: int, align_corners: bool, factor: float | None
) -> Tensor:
    """[O, I] in float64: how much of each pixel is in each new one."""
    if align_corners:
        scale = (pixels - 1) / (wanted - 1) if wanted > 1 else 0.0
    else:
        scale = 1 / factor if factor is not None and factor > 0 else pixels / wanted
    wide = max(scale, 1.0)  # shrunk, each new pixel is made of more of the old ones
    centre = scale * (torch.arange(wanted, dtype=torch.float64) + 0.5).unsqueeze(1)
    first = (centre - kernel.radius * wide + 0.5).trunc().clamp(min=0)
    end = (centre + kernel.radius * wide + 0.5).trunc().clamp(max=pixels)
    place = torch.arange(pixels, dtype=torch.float64)
    found = kernel.weight((place - centre + 0.5) / wide) * ((place >= first) & (place < end))
    return found / found.sum(1, keepdim=True)


def antialiased(kernel: Kernel) -> Callable[..., Tensor]:
    """Resizing by a kernel, in place of torch's own op."""

    def resized(
        x: Tensor, size: list[int], align_corners: bool, scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> Tensor:  # fmt: skip
        """[N, C, H, W] as [N, C, *size]."""
        rows = weights(kernel, x.shape[2], size[0], align_corners, scales_h).to(x)
        columns = weights(kernel, x.shape[3], size[1], align_corners, scales_w).to(x)
        return ((x @ columns.T).mT @ rows.T).mT

    return resized


linear_antialiased, bicubic_antialiased = antialiased(LINEAR), antialiased(CUBIC)
