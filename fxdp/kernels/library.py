"""Registers fxdp's own ops with torch.

`torch.library.custom_op` wraps every call in Python that handles gradients and unusual
operands: some 30 microseconds each, a hundred times a step. The ops that stand in graphs that are
compiled already need neither.
"""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("fxdp", "FRAGMENT")  # lives as long as the process


def define(name: str, mutates_args: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Make a function with types an op `fxdp::name`, for all devices, without gradients.

    What stands under the function's name afterwards is `torch.ops.fxdp.name`: whoever writes the op
    into a graph, or looks for it there, imports it from where it is made.

    Args:
        mutates_args: the tensors that it writes to; it returns none of its arguments.
    """

    def known(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=mutates_args)
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return getattr(torch.ops.fxdp, name)

    return known


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say what an op returns for tensors that have a shape and no numbers."""
    return torch.library.register_fake(f"fxdp::{name}", lib=LIBRARY)
