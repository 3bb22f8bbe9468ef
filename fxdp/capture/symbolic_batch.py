"""The batch size as a symbol: torch learns which axes hold samples before it captures a step."""

from typing import Any

from torch import Tensor

from fxdp.capture.inputs import Inputs
from fxdp.capture.segments import Role
from fxdp.torch_internals import mark_dynamic


def with_symbolic_batch(
    inputs: Inputs, mask: Tensor, rows: int | None
) -> tuple[tuple[Any, ...], Tensor, tuple[Tensor, ...]]:
    """The leaves of the inputs, the mask and the samples of rows, detached, with the axis of the
    samples a symbol, and that of rows, too.

    Args:
        mask: [N] bool.
        rows: the batch size that code is made for, and is best at; None for the one at hand.
    """

    def marked(x: Tensor, axis: int | Role) -> Tensor:
        x = x.detach()
        of_rows = isinstance(axis, Role) and axis.kind != "starts"
        at = axis.dim if isinstance(axis, Role) else axis
        mark_dynamic(x, at, hint_override=None if of_rows else rows)
        return x

    leaves = [
        leaf if axis is None else marked(leaf, axis)
        for leaf, axis in zip(inputs.leaves, inputs.dims, strict=True)
    ]
    owners = [marked(owner, Role("owner", k, 0, k)) for k, owner in enumerate(inputs.owners)]
    return tuple(leaves), marked(mask, 0), tuple(owners)
