"""Clipped sums of outer products: sum_n factor[n] sum_t a[n, t, :] b[n, t, :]^T.

What is summed is what was measured: the operands as they are, their products summed in float32, and
the factor in float32, too. Two kernels, both of which read no sample whose factor is 0:

`blocks_kernel`, for half precision, takes a block of positions of one sample at a time; a tensor
core sums their products, and that sum is multiplied by the factor. No operand is rounded again.

`rows_kernel`, for samples with few positions and for float32, takes positions of several samples at
once, so the factor must meet one of the operands, in float32. In half precision the result would
have to be rounded to be multiplied by a tensor core: to bfloat16 that would move each number by a
part in 256, which is not what was clipped. So it is cut into three numbers in bfloat16 of 8 bits
each, which make up the 24 of float32, and each is multiplied: three products on a tensor core where
a plain sum takes one. One of float16 takes two numbers in bfloat16, and the product six.

A sum whose tiles are too few for the device is made in parts, each of some of the blocks, which
are added up afterwards, always in one order.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fxdp.kernels.triton.launch import describable, on, processors, product, stages
from fxdp.kernels.triton.tiles import Tiles, of_blocks, of_rows, over, side

FEW = 16  # positions: below, a block of one sample would leave a tensor core idle
CHAIN = 512  # positions whose sum is a tensor core's, which cuts off and does not round
LEAST = 4  # blocks that a part of a sum is worth
PART = 16  # blocks that could be multiplied while a tile is written and read again, at a guess
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)  # of parts


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


@triton.jit
def block(
    x, n, t, first, of, size, live,
    BT: tl.constexpr, SIDE: tl.constexpr, EVEN: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """[BT, SIDE] of x [N, T, size] at sample n, from position t and column `first`; 0 outside.

    Args:
        of: strides of x.
        live: positions behind these are not read.
        EVEN: whether no column is outside.
        DESCRIBED: whether x is a descriptor of a tensor: what is outside of it is 0.
    """
    if DESCRIBED:
        found = x.load([n, t, first]).reshape(BT, SIDE)
    else:
        row = t + tl.arange(0, BT)
        column = first + tl.arange(0, SIDE)
        at = x + n.to(tl.int64) * of[0] + (row.to(tl.int64) * of[1])[:, None] + column[None, :]
        mask = (row < live)[:, None]
        if not EVEN:
            mask = mask & (column < size)[None, :]
        found = tl.load(at, mask=mask, other=0.0)
    return found


@triton.jit(do_not_specialize=["N"])
def blocks_kernel(
    a, b, factor, out, N, T, D, P, of_a, of_b,
    BD: tl.constexpr, BP: tl.constexpr, BT: tl.constexpr, CHAIN: tl.constexpr,
    EVEN: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """One sample's positions at a time, and its factor times their sum.

    One loop over the blocks of all samples: while one is multiplied, the next are on their way,
    be they of the next sample.

    Args:
        a, b: [N, T, D] and [N, T, P], whose last stride is 1, or descriptors of them.
        of_a, of_b: strides of a and b.
        CHAIN: blocks whose sum is a tensor core's.
    """
    i, o = tl.program_id(0) * BD, tl.program_id(1) * BP
    total = tl.zeros((BD, BP), tl.float32)
    part = tl.zeros((BD, BP), tl.float32)
    blocks = tl.cdiv(T, BT)
    first, last = share(N * blocks)
    n, k = first // blocks, first % blocks
    weight, live = 0.0, 0
    for step in range(first, last):
        if (k == 0) | (step == first):
            weight = tl.load(factor + n).to(tl.float32)
            live = tl.where(weight != 0, T, 0)
        read = tl.where(weight != 0, n, N) if DESCRIBED else n  # there is no sample N
        x = block(a, read, k * BT, i, of_a, D, live, BT, BD, EVEN, DESCRIBED)
        y = block(b, read, k * BT, o, of_b, P, live, BT, BP, EVEN, DESCRIBED)
        part = product(tl.trans(x), y, part)
        if (k == blocks - 1) | (k % CHAIN == CHAIN - 1) | (step == last - 1):
            total += weight * part
            part = tl.zeros((BD, BP), tl.float32)
        n = tl.where(k == blocks - 1, n + 1, n)
        k = tl.where(k == blocks - 1, 0, k + 1)
    write(out, total, columns_of(0, BD), columns_of(1, BP), D, P)


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
        found = product(high, one, product(high, two, product(high, three)))
    else:
        whole = x.to(tl.float32)
        head = leading(whole)
        low = tl.trans((whole - head).to(tl.bfloat16))
        high = tl.trans(head.to(tl.bfloat16))
        found = product(high, three, product(low, two, product(low, three)))
        found = product(high, one, product(high, two, product(low, one, found)))
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
    (_, t, d), p = a.shape, b.shape[2]
    if not a.numel() or not b.numel():
        return a.new_zeros(d, p, dtype=torch.float32)
    halves = a.dtype == b.dtype and a.element_size() == 2
    if halves and t >= FEW:
        return by_blocks(a, b, factor, of_blocks(t, d, p))
    tiles = of_rows(a.dtype if halves else torch.float32, d, p)
    return by_rows(a, b, factor, tiles, wide=not halves)


def by_blocks(a: Tensor, b: Tensor, factor: Tensor, tiles: Tiles) -> Tensor:
    """A clipped sum of operands in one dtype of 16 bits."""
    a, b = (x if x.stride(2) == 1 else x.contiguous() for x in (a, b))
    (n, t, d), p = a.shape, b.shape[2]
    rows, columns = side(d, tiles.rows), side(p, tiles.columns)
    step = length(t, tiles.step)
    grid = over(d, rows), over(p, columns)
    out = empty(a, p, grid[0] * grid[1], n * over(t, step), tiles.together)
    described = tiles.described and describable(a) and describable(b)
    given = a, b
    if described:
        sides = rows, columns
        given = tuple(
            TensorDescriptor(x, list(x.shape), list(x.stride()), [1, step, k])
            for x, k in zip((a, b), sides, strict=True)
        )
    with on(a):
        blocks_kernel[(*grid, len(out))](
            *given, factor, out, n, t, d, p, a.stride()[:2], b.stride()[:2],
            rows, columns, step, CHAIN // step, not (d % rows or p % columns), described,
            num_warps=tiles.warps_of(rows, columns), num_stages=stages(a.device, tiles.stages),
        )  # fmt: skip
    return added(out)


def by_rows(a: Tensor, b: Tensor, factor: Tensor, tiles: Tiles, *, wide: bool) -> Tensor:
    """A clipped sum of operands in any dtypes, or in one of 16 bits if they are not `wide`."""
    (n, t, d), p = a.shape, b.shape[2]
    rows, columns = side(d, tiles.rows), side(p, tiles.columns)
    grid = over(d, rows), over(p, columns)
    out = empty(a, p, grid[0] * grid[1], over(n * t, tiles.step), tiles.together)
    with on(a):
        rows_kernel[(*grid, len(out))](
            a, b, factor, out, n, t, d, p, a.stride(), b.stride(),
            rows, columns, tiles.step, wide, a.dtype == torch.bfloat16,
            num_warps=tiles.warps_of(rows, columns), num_stages=stages(a.device, tiles.stages),
        )  # fmt: skip
    return added(out)


def empty(a: Tensor, p: int, tiles: int, steps: int, together: int) -> Tensor:
    """Room for the parts [PARTS, D, P] of a sum that has so many tiles, each of so many steps."""
    count = parts(tiles, steps, processors(a.device) * together)
    return a.new_empty(count, a.shape[2], p, dtype=torch.float32)


def added(out: Tensor) -> Tensor:
    """The sum of its parts."""
    return out[0] if len(out) == 1 else out.sum(0)


@functools.lru_cache(1024)
def length(t: int, most: int) -> int:
    """How many positions make a block: few are left over, and no more blocks than need be."""
    sides = [x for x in (64, 32, 16) if x <= most]
    return min(sides, key=lambda x: over(t, x) * (x + 16))


@functools.lru_cache(1024)
def parts(tiles: int, steps: int, programs: int) -> int:
    """In how many parts a sum is made, to be done soonest.

    Args:
        tiles: of the sum.
        steps: how many blocks are multiplied for each.
        programs: how many run at a time.
    """

    def time(count: int) -> int:
        return over(tiles * count, programs) * (over(steps, count) + (PART if count > 1 else 0))

    most = max(1, min(steps // LEAST, programs))
    return min((count for count in COUNTS if count <= most), key=time)
