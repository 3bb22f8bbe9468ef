"""The batch size as a symbol: torch learns which axes hold samples before it captures a step."""

from typing import Any

from torch import Tensor

from fxdp.capture.inputs import Inputs
from fxdp.torch_internals import mark_dynamic


def with_symbolic_batch(
    inputs: Inputs, mask: Tensor, rows: int | None
) -> tuple[tuple[Any, ...], Tensor]:
    """The leaves of the inputs and the mask, detached, with the axis of the samples a symbol.

    Args:
        mask: [N] bool.
        rows: the batch size that code is made for, and is best at; None for the one at hand.
    """

    def marked(x: Tensor, axis: int) -> Tensor:
        x = x.detach()
        mark_dynamic(x, axis, hint_override=rows)
        return x

    leaves = [
        leaf if axis is None else marked(leaf, axis)
        for leaf, axis in zip(inputs.leaves, inputs.dims, strict=True)
    ]
    return tuple(leaves), marked(mask, 0)
