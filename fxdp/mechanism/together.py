"""Noise on the clipped sums of many small parameters, as a single op.

An op of its own for each takes longer to be called than to make the noise of a bias. The noise is
that of `fxdp.mechanism.gaussian`, bit for bit: a function of the key, of the parameter's number and
of the element, whichever parameters share an op.
"""

from typing import Any

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake
from fxdp.mechanism.gaussian import release_, released
from fxdp.mechanism.native import ALONE, native
from fxdp.torch_internals import auto_functionalized


def is_small(total: Tensor) -> bool:
    """Has it so few elements that one thread makes their noise, and that to keep it until the last
    of many is there takes no memory to speak of?"""
    count: Any = total.numel()
    return isinstance(count, int) and count <= ALONE


@define("released_together", tags=(torch.Tag.cudagraph_unsafe,))
def released_together(
    totals: list[Tensor], scale: Tensor, expected: Tensor, tangent: Tensor, key: Tensor,
    draws: list[int], terms: int,
) -> list[Tensor]:  # fmt: skip
    """`released` of each sum, without public parts.

    Args:
        totals: of one dtype and device.
        draws: one for each; no two of a graph are equal.
    """
    pairs = zip(totals, draws, strict=True)
    return [released(x, scale, expected, tangent, None, key, draw, terms) for x, draw in pairs]


@fake("released_together")
def _(
    totals: list[Tensor], scale: Tensor, expected: Tensor, tangent: Tensor, key: Tensor,
    draws: list[int], terms: int,
) -> list[Tensor]:  # fmt: skip
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in totals]


@define("release_together_", mutates_args=("totals",), tags=(torch.Tag.cudagraph_unsafe,))
def release_together_(
    totals: list[Tensor], scale: Tensor, expected: Tensor, tangent: Tensor, key: Tensor,
    draws: list[int], terms: int,
) -> None:  # fmt: skip
    """The same, in place of contiguous totals."""
    code = native() if totals[0].device.type == "cpu" else None
    if code is not None and (by := float(scale)) != 0:
        code.add_all(totals, key, draws, by, float(tangent) / float(expected), terms)
        return
    for x, draw in zip(totals, draws, strict=True):
        release_(x, scale, expected, tangent, None, key, draw, terms)


@fake("release_together_")
def _(
    totals: list[Tensor], scale: Tensor, expected: Tensor, tangent: Tensor, key: Tensor,
    draws: list[int], terms: int,
) -> None:  # fmt: skip
    pass


def released_in_place(
    totals: list[Tensor], scale: Tensor, expected: Tensor, tangent: Tensor, key: Tensor,
    draws: list[int], terms: int,
) -> list[Tensor]:  # fmt: skip
    """`released_together` by the op that works in place, where Inductor finds that nobody else
    reads a total; of a copy, where somebody does."""
    found: Any = auto_functionalized(
        release_together_.default,
        totals=[x.contiguous() for x in totals], scale=scale, expected=expected, tangent=tangent,
        key=key, draws=draws, terms=terms,
    )  # fmt: skip
    return found[1]


FOR_INDUCTOR = {released_together.default: released_in_place}
