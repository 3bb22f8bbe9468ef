"""Clipped sums of outer products: sum_n factor[n] sum_t a[n, t, :] b[n, t, :]^T.

What is summed is what was measured: the operands as they are, their products summed in float32, and
the factor in float32, too. Two kernels, both of which read no sample whose factor is 0:

`blocks_kernel`, for half precision, takes a block of positions of one sample at a time; its
products are summed, and that sum is multiplied by the factor. No operand is rounded again.

`rows_kernel`, for samples with few positions and for float32, takes positions of several samples at
once, so the factor must meet one of the operands, in float32. In half precision the result would
have to be rounded to be multiplied by a tensor core: to bfloat16 that would move each number by a
part in 256, which is not what was clipped. So it is cut into three numbers in bfloat16 of 8 bits
each, which make up the 24 of float32, and each is multiplied: three products on a tensor core where
a plain sum takes one. One of float16 takes two numbers in bfloat16, and the product six.

A sum whose tiles are too few for the device is made in parts, each of some of the samples, which
are added up afterwards, always in one order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxdp.kernels.triton.launch import on, processors, product, stages, tile

FEW = 16  # positions: below, a block of one sample would leave a tensor core idle
LEAST = 4  # blocks that a part of a sum is worth
PART = 16  # blocks that could be multiplied while a tile is written and read again, at a guess


@triton.jit
def slab(x, at, live, columns, size, stride):
    """[rows, columns] of a tensor at offsets `at` of rows; 0, and not read, where not `live`."""
    return tl.load(
        x + at[:, None] + columns[None, :] * stride,
        mask=live[:, None] & (columns[None, :] < size),
        other=0.0,
    )


@triton.jit
def columns_of(axis: tl.constexpr, SIDE: tl.constexpr):
    """The columns of a program's tile."""
    return (tl.program_id(axis) * SIDE + tl.arange(0, SIDE)).to(tl.int64)


@triton.jit
def write(out, total, i, o, D, P):
    """Write a tile into this part of out [PARTS, D, P]."""
    at = out + tl.program_id(2).to(tl.int64) * D * P + i[:, None] * P + o[None, :]
    tl.store(at, total, mask=(i[:, None] < D) & (o[None, :] < P))


@triton.jit
def share(count):
    """The first of this part's equal share of something, and the one behind the last."""
    each = tl.cdiv(count, tl.num_programs(2))
    first = tl.program_id(2) * each
    return first, tl.minimum(first + each, count)


@triton.jit(do_not_specialize=["N"])
def blocks_kernel(
    a, b, factor, out, N, T, D, P, of_a, of_b,
    BD: tl.constexpr, BP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """One sample's positions at a time, and its factor times their sum.

    Args:
        of_a, of_b: strides of a [N, T, D] and b [N, T, P].
    """
    i, o = columns_of(0, BD), columns_of(1, BP)
    total = tl.zeros((BD, BP), tl.float32)
    blocks = tl.cdiv(T, BT)
    first, last = share(N)
    for step in range(first * blocks, last * blocks):
        n = (step // blocks).to(tl.int64)
        weight = tl.load(factor + n).to(tl.float32)
        t = ((step % blocks) * BT + tl.arange(0, BT)).to(tl.int64)
        live = t < tl.where(weight != 0, T, 0)
        x = slab(a, n * of_a[0] + t * of_a[1], live, i, D, of_a[2])
        y = slab(b, n * of_b[0] + t * of_b[1], live, o, P, of_b[2])
        total += weight * product(tl.trans(x), y)
    write(out, total, i, o, D, P)


@triton.jit
def leading(x):
    """The first 8 bits of float32 numbers, cut off behind; exact in bfloat16."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def in_pieces(x, y, EXACT: tl.constexpr):
    """x^T y as a product of numbers in bfloat16, the smallest first.

    Args:
        x: numbers in half precision; those of float16 have 11 bits.
        y: float32 numbers.
        EXACT: whether x is in bfloat16.
    """
    one = leading(y)
    two = leading(y - one)
    three = (y - one - two).to(tl.bfloat16)
    one, two = one.to(tl.bfloat16), two.to(tl.bfloat16)
    if EXACT:
        high = tl.trans(x)
        found = product(high, three) + product(high, two) + product(high, one)
    else:
        whole = x.to(tl.float32)
        head = leading(whole)
        low = tl.trans((whole - head).to(tl.bfloat16))
        high = tl.trans(head.to(tl.bfloat16))
        found = product(low, three) + product(low, two) + product(high, three)
        found = found + product(low, one) + product(high, two) + product(high, one)
    return found


@triton.jit(do_not_specialize=["N"])
def rows_kernel(
    a, b, factor, out, N, T, D, P, of_a, of_b,
    BD: tl.constexpr, BP: tl.constexpr, BR: tl.constexpr, WIDE: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Positions of several samples at a time, each of b's times its sample's factor.

    Args:
        of_a, of_b: strides of a [N, T, D] and b [N, T, P].
        WIDE: whether operands are multiplied as float32 numbers.
        EXACT: whether a is in bfloat16.
    """
    i, o = columns_of(0, BD), columns_of(1, BP)
    total = tl.zeros((BD, BP), tl.float32)
    rows = N * T
    first, last = share(tl.cdiv(rows, BR))
    for step in range(first, last):
        row = step * BR + tl.arange(0, BR)
        n, t = (row // T).to(tl.int64), (row % T).to(tl.int64)
        weight = tl.load(factor + n, mask=row < rows, other=0.0).to(tl.float32)
        live = weight != 0
        x = slab(a, n * of_a[0] + t * of_a[1], live, i, D, of_a[2])
        y = slab(b, n * of_b[0] + t * of_b[1], live, o, P, of_b[2])
        y = y.to(tl.float32) * weight[:, None]
        if WIDE:
            total += product(tl.trans(x.to(tl.float32)), y)
        else:
            total += in_pieces(x, y, EXACT)
    write(out, total, i, o, D, P)


def clipped_sum(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """float32 [D, P], what `fxdp.kernels.clipped_sum.weighed_outer` computes.

    Args:
        a, b: [N, T, D] and [N, T, P] in float32, bfloat16 or float16, in any layout.
        factor: [N]; a sample whose factor is 0 is not read.
    """
    (n, t, d), p = a.shape, b.shape[2]
    if not a.numel() or not b.numel():
        return a.new_zeros(d, p, dtype=torch.float32)
    wide = not (a.dtype == b.dtype and a.element_size() == 2)
    by_block = not wide and t >= FEW
    most = 64 if wide else 128
    sides = tile(d, most), tile(p, most)
    length = block(t) if by_block else 16 if wide else 64  # more does not fit the registers
    grid = triton.cdiv(d, sides[0]), triton.cdiv(p, sides[1])
    steps = n * triton.cdiv(t, length) if by_block else triton.cdiv(n * t, length)
    count = parts(grid[0] * grid[1], steps, processors(a.device))
    out = a.new_empty(count, d, p, dtype=torch.float32)
    given = a, b, factor, out, n, t, d, p, a.stride(), b.stride(), *sides, length
    how = {"num_warps": 8 if min(sides) > 64 else 4, "num_stages": stages(a.device)}
    with on(a):
        if by_block:
            blocks_kernel[(*grid, count)](*given, **how)
        else:
            rows_kernel[(*grid, count)](*given, wide, a.dtype == torch.bfloat16, **how)
    return out[0] if count == 1 else out.sum(0)


def block(t: int) -> int:
    """How many positions make a block: few are left over, and no more blocks than need be."""
    return min((64, 32, 16), key=lambda side: triton.cdiv(t, side) * (side + 16))


def parts(tiles: int, steps: int, programs: int) -> int:
    """In how many parts a sum is made, to be done soonest.

    Args:
        tiles: of the sum.
        steps: how many blocks are multiplied for each.
        programs: how many run at a time.
    """

    def time(count: int) -> int:
        extra = PART if count > 1 else 0
        return triton.cdiv(tiles * count, programs) * (triton.cdiv(steps, count) + extra)

    return min(range(1, max(1, min(steps // LEAST, programs)) + 1), key=time)
