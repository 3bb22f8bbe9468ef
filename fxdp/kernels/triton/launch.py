"""What launching a kernel takes: the device it runs on, tiles that fit, products of tiles."""

import contextlib
import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

# Without a device Triton's interpreter runs the kernels. It multiplies no numbers in bfloat16:
# there they are float32 numbers before they are multiplied, which gives the same products.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
ROOM = 128 << 10  # bytes of shared memory: more than three stages of the largest tiles take


@triton.jit
def product(left, right):
    """Sums of products in float32, of exact products; both operands have one dtype."""
    if INTERPRETED:
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, input_precision="ieee")


def on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where the kernels for a tensor are launched: they take the current device's stream."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def processors(device: torch.device) -> int:
    """How many programs a device runs at a time, at least."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def stages(device: torch.device) -> int:
    """How many tiles are on their way from memory while one is multiplied."""
    if device.type != "cuda":
        return 1
    room = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return 3 if room >= ROOM else 2


def tile(size: int, most: int) -> int:
    """The side of a tile along an axis: a power of two that a tensor core takes."""
    return max(16, min(triton.next_power_of_2(size), most))
