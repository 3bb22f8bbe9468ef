"""Clip factors: how norms become what each sample counts.

What factor a norm asks for, a clipping says. Padding, and a sample whose gradient is not finite,
get factor 0.
"""

import torch
from torch import Tensor

from fxdp.kernels.precision import cast
from fxdp.mechanism.clipping_rule import Clipping


def underflow(numbers: int, dtype: torch.dtype) -> float:
    """What the squared norm of so many numbers may lack because numbers underflow: squares of
    elements, of the lengths of rows of them, and of the length of all rows."""
    return 4 * numbers * torch.finfo(dtype).tiny


def widest(squares: list[Tensor]) -> torch.dtype:
    """The dtype of norms over several parameters."""
    return max((s.dtype for s in squares), key=lambda d: d.itemsize, default=torch.float32)


def total(squares: list[Tensor], mask: Tensor) -> Tensor:
    """[N] squared norms over several parameters, in float64; 0 where there are none."""
    if len(squares) == 1:
        return cast(squares[0], torch.float64)
    found = torch.zeros_like(mask, dtype=torch.float64)
    for square in squares:
        found = found + square
    return found


def safe_norm(squares: Tensor, lost: float) -> Tensor:
    """[N] norms of several parameters that are not too small, in float64.

    Args:
        lost: what the squared norms may lack (`underflow`).
    """
    return (squares + lost).sqrt()


def finite_samples(norms: Tensor, loss: Tensor | None) -> Tensor:
    """bool [N]: are a sample's gradient and, where it is known, its own loss [N] finite?

    A loss that is NaN, and has a finite gradient, is that of a sample without a valid target,
    0 / 0: its gradient is right, and counts.
    """
    found = torch.isfinite(norms)
    return found if loss is None else found & ~torch.isinf(loss)


def clip_factor(
    clipping: Clipping, share: float, norms: Tensor, finite: Tensor, bound: Tensor, mask: Tensor
) -> Tensor:
    """[N] factors of a group of parameters.

    Guarantees:
        No factor is more than the group's bound over the norm, whatever `clipping` asks for.

    ==================================================  ==========================
    case                                                factor
    ==================================================  ==========================
    a norm of whichever group infinite or NaN           0, in all groups
    a loss infinite                                     0, in all groups
    padding                                             0
    else                                                what `clipping` asks for
    ==================================================  ==========================

    Args:
        share: the group's part of the bound.
        norms: of the group.
        finite: of all parameters (`finite_samples`).
    """
    bound = cast(bound, norms.dtype)
    bound = bound if share == 1 else bound * share
    factor = clipping.factor(norms, bound)
    if not clipping.factor_is_bounded:
        factor = torch.where(norms == 0, factor, torch.minimum(factor, bound / norms))
    return factor.masked_fill(~(mask & finite), 0)


def narrowed(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Factors in a dtype; 0 where that has no normal number for them, as it might be half as much
    again, and the largest number where they are larger."""
    limits = torch.finfo(dtype)
    return cast(factor.clamp(max=limits.max).masked_fill(factor < limits.tiny, 0), dtype)
