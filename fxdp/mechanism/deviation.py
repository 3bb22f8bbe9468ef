"""Checks that the noise which is counted is the noise which is released, in floating point.

The noise of a sum has the deviation sigma C, and is added in float32 (float64 for parameters in
it). Below the normal numbers it would come out coarser than a normal distribution, or as none at
all; above, infinite. What is released is that over L, rounded to the parameter's dtype: rounding
what has its noise already takes nothing from privacy, but infinity is no gradient.
"""

from collections.abc import Iterable

import torch

FARTHEST = 10.0  # deviations: no noise is beyond 9.5 (`fxdp.mechanism.keystream.normals`)


def check_deviation(
    bound: float, sigma: float, expected: float, dtypes: Iterable[torch.dtype], tangent: float = 1.0
) -> None:
    """Refuse noise that some dtype does not hold.

    ==========================================  =============================================
    case                                        what happens
    ==========================================  =============================================
    no noise                                    nothing
    sigma C too small for normal numbers        ValueError: less noise than is counted
    sigma C, or sigma C / L, infinite           ValueError
    sigma C / L small in half precision         nothing: it is rounded after the noise is there
    ==========================================  =============================================

    Args:
        bound, sigma, expected: C, sigma and L.
        dtypes: of the parameters.
        tangent: the constant that the loss was scaled by.

    Raises:
        ValueError: as in the table.
    """
    if sigma == 0:
        return
    deviation = sigma * bound
    for dtype in dtypes:
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        limits = torch.finfo(sums)
        if deviation < limits.tiny / limits.eps:
            raise ValueError(
                f"noise_multiplier * max_grad_norm is {deviation:g}, which {sums} does not hold in "
                "full precision: there would be less noise than is counted; scale the loss and "
                "max_grad_norm up"
            )
        out = deviation / expected * abs(tangent)
        for size, held in ((deviation, sums), (out, dtype)):
            if size * FARTHEST > torch.finfo(held).max:
                scaled = "" if tangent == 1 else f" times {tangent:g}, the scale of the loss,"
                raise ValueError(
                    f"noise of deviation {size:g} (noise_multiplier * max_grad_norm / "
                    f"expected_batch_size{scaled}) overflows {held}: keep the parameters in "
                    "float32 and use torch.autocast, or scale the loss and max_grad_norm down"
                )
