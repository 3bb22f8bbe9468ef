"""Registers fxdp's own ops with torch.

`torch.library.custom_op` wraps every call in Python that handles gradients and unusual
operands: some 30 microseconds each, a hundred times a step. The ops that stand in graphs that are
compiled already need neither.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What Triton kernels take; other operands are computed with as they are without triton.
DEVICES = ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ABLE = (8, 0)  # the first devices that multiply numbers in bfloat16
LIBRARY = torch.library.Library("fxdp", "FRAGMENT")  # lives as long as the process


def define(
    name: str, mutates_args: tuple[str, ...] = (), tags: tuple[torch.Tag, ...] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Make a function with types an op `fxdp::name`, for all devices, without gradients.

    What stands under the function's name afterwards is `torch.ops.fxdp.name`: whoever writes the op
    into a graph, or looks for it there, imports it from where it is made.

    Args:
        mutates_args: the tensors that it writes to; it returns none of its arguments.
        tags: what else torch is to know of it.
    """

    def known(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=mutates_args)
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
        LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        return getattr(torch.ops.fxdp, name)

    return known


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say what an op returns for tensors that have a shape and no numbers."""
    return torch.library.register_fake(f"fxdp::{name}", lib=LIBRARY)


def on_cuda(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give an op an implementation of its own for CUDA devices."""

    def known(function: Callable[..., Any]) -> Callable[..., Any]:
        LIBRARY.impl(name, function, "CUDA")
        return function

    return known


@functools.cache
def has_triton() -> bool:
    """Is triton there, for the devices that torch calls cuda?"""
    return torch.version.hip is None and importlib.util.find_spec("triton") is not None


def is_tiled(*operands: Tensor) -> bool:
    """Do Triton kernels take these?"""
    taken = all(x.device.type in DEVICES and x.dtype in DTYPES for x in operands)
    return taken and has_triton()


def runs_tiled(*operands: Tensor) -> bool:
    """The same of the very device that they are on, which has to be there."""
    return is_tiled(*operands) and is_able(operands[0].device)


@functools.cache
def is_able(device: torch.device) -> bool:
    """Does a device multiply numbers in bfloat16?"""
    return torch.cuda.get_device_capability(device) >= ABLE
