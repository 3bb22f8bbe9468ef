"""What launching a kernel takes: the device it runs on, what it can do, products of tiles."""

import contextlib
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

# Without a device Triton's interpreter runs the kernels. It multiplies no numbers in bfloat16:
# there they are float32 numbers before they are multiplied, which gives the same products.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
ROOM = 200 << 10  # bytes of shared memory: more than four stages of the largest tiles take


@triton.jit
def product(left, right, before=None):
    """`before`, plus sums of products in float32, of exact products; both operands have one dtype.

    `before + product(left, right)` is the same to Triton, which makes it one sum of a tensor core.
    """
    if INTERPRETED:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, before, input_precision="ieee")


def on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where the kernels for a tensor are launched: they take the current device's stream."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


@functools.cache
def processors(device: torch.device) -> int:
    """How many programs a device runs at a time, at least."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def stages(device: torch.device, most: int) -> int:
    """How many tiles are on their way from memory while one is multiplied."""
    if device.type != "cuda":
        return 1
    room = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return most if room >= ROOM else 2


@functools.cache
def copies_tiles(device: torch.device) -> bool:
    """Does a device copy tiles by itself?"""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def describable(x: Tensor) -> bool:
    """Can a device that copies tiles by itself copy those of x, whose last stride is 1?"""
    units = 16 // x.element_size()  # what it copies at least
    if x.data_ptr() % 16 or any(s <= 0 or s % units for s in x.stride()[:-1]):
        return False
    return copies_tiles(x.device)
