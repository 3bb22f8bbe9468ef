"""Bicubic resizing with antialiasing, as two products with matrices of weights.

torch's own kernel has a backward pass that takes no symbolic sizes. Resizing works along each axis
by itself and is linear, so that products of matrices compute the same.

Letters: I pixels of an axis become O, each a weighted mean of those around it.
"""

import torch
from torch import Tensor

RADIUS, CURVE = 2.0, -0.5  # of the cubic kernel, Keys' with torch's (and Pillow's) constant


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel (Keys 1981, equation 4)."""
    x, a = x.abs(), CURVE
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def weights(pixels: int, wanted: int, align_corners: bool, factor: float | None) -> Tensor:
    """[O, I] in float64: how much of each pixel is in each new one."""
    if align_corners:
        scale = (pixels - 1) / (wanted - 1) if wanted > 1 else 0.0
    else:
        scale = 1 / factor if factor is not None and factor > 0 else pixels / wanted
    wide = max(scale, 1.0)  # shrunk, each new pixel is made of more of the old ones
    centre = scale * (torch.arange(wanted, dtype=torch.float64) + 0.5).unsqueeze(1)
    first = (centre - RADIUS * wide + 0.5).trunc().clamp(min=0)
    end = (centre + RADIUS * wide + 0.5).trunc().clamp(max=pixels)
    place = torch.arange(pixels, dtype=torch.float64)
    found = cubic((place - centre + 0.5) / wide) * ((place >= first) & (place < end))
    return found / found.sum(1, keepdim=True)


def bicubic_antialiased(
    x: Tensor, size: list[int], align_corners: bool, scales_h: float | None = None,
    scales_w: float | None = None,
) -> Tensor:  # fmt: skip
    """[N, C, H, W] as [N, C, *size]."""
    rows = weights(x.shape[2], size[0], align_corners, scales_h).to(x)
    columns = weights(x.shape[3], size[1], align_corners, scales_w).to(x)
    return ((x @ columns.T).mT @ rows.T).mT
