"""Ghost norms over pairs of tiles of positions, with no T x T matrix in memory.

A program computes one tile of the Gram matrix of `a`, on the diagonal or below it, and for each `b`
the same tile of its Gram matrix; it keeps the sum of their products, and on the diagonal those of
the lengths |a_t| and |b_t|. A second kernel adds up a sample's tiles in float64 and rounds up what
it finds, for the reasons that `fxdp.kernels.ghost` gives. With few positions one tile is all, which
one kernel computes and rounds up.

Operands stay what they are: products of numbers in half precision are exact in float32, those of
float32 numbers are rounded as IEEE has it, and so the sums alone are inexact. A tensor core cuts a
sum off, always towards 0, and does not round it to the nearest number, which adds up along an axis.
So each CHAIN products make a sum of their own; these are added as float32 numbers are elsewhere.

With one position a norm is the product of two lengths, whose squares are added up in float64.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxdp.kernels.triton.launch import on, product, stages
from fxdp.kernels.triton.tiles import VECTOR, of_grams, over, side

CHAIN = 256  # products of two positions whose sum is a tensor core's
# Errors of a ghost norm, in units in the last place of (sum_t |a_t| |b_t|)^2: those of two sums of
# CHAIN products, each cut off CHAIN / 16 times; sums of these add the root of their number. On an
# H100 its test found 13.1 at most where up to 1,500 products made a sum; along 16,384 numbers at
# once it would be hundreds.
SLACK = 32.0
MOST = 4  # norms in one program, which share the Gram matrix of `a`
TINY = torch.finfo(torch.float32).tiny
BLOCK = 256  # numbers that are added up at once where there are no tiles


@triton.jit
def positions(x, rows, T, D, stride_t, stride_d, k, BK: tl.constexpr):
    """[BT, BK] of the positions of one sample [T, D], at `rows`, from column k; 0 outside."""
    d = (k + tl.arange(0, BK)).to(tl.int64)
    at = x + rows[:, None] * stride_t + d[None, :] * stride_d
    return tl.load(at, mask=(rows[:, None] < T) & (d[None, :] < D), other=0.0)


@triton.jit
def gram(
    x, r, c, T, D, stride_t, stride_d,
    BT: tl.constexpr, BK: tl.constexpr, CHAIN: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """[BT, BT] scalar products of the positions r of one sample [T, D] with its positions c.

    The sum of CHAIN blocks is a value that is used: what Triton does with `whole += product(...)`
    is one sum along the whole axis.

    Args:
        ALONE: whether r and c are the same.
    """
    whole = tl.zeros((BT, BT), tl.float32)
    part = tl.zeros((BT, BT), tl.float32)
    blocks = tl.cdiv(D, BK)
    for k in range(0, blocks):
        left = positions(x, r, T, D, stride_t, stride_d, k * BK, BK)
        right = left if ALONE else positions(x, c, T, D, stride_t, stride_d, k * BK, BK)
        part = product(left, tl.trans(right), part)
        if (k % CHAIN == CHAIN - 1) | (k == blocks - 1):
            whole += part
            part = tl.zeros((BT, BT), tl.float32)
    return whole


@triton.jit
def lengths(matrix, r, c):
    """[BT] lengths of positions, from a tile on the diagonal."""
    return tl.sqrt(tl.sum(tl.where(r[:, None] == c[None, :], matrix, 0.0), 1))


@triton.jit
def rounded_up(square, gross, of_a, of_b, T, size_a, size_b, slack, TINY: tl.constexpr):
    """A squared norm that no rounding has made smaller than it is, from numbers in float64.

    Args:
        gross, of_a, of_b: sums of |a_t| |b_t|, |a_t| and |b_t|.
    """
    # What underflow may have taken: `fxdp.kernels.ghost.underflow`.
    lost = (of_a * of_a * size_b + of_b * of_b * size_a + 1.0 * T * T) * TINY
    found = square + gross * gross * slack + lost
    return tl.where(found < 0, 0.0, found).to(tl.float32)  # what is no number stays none


@triton.jit
def pair_of(pair):
    """The row and the column of a pair in the lower triangle."""
    i = ((tl.sqrt(8.0 * pair + 1.0) - 1.0) * 0.5).to(tl.int32)  # may be off by one
    i = tl.where((i + 1) * (i + 2) // 2 <= pair, i + 1, i)
    i = tl.where(i * (i + 1) // 2 > pair, i - 1, i)
    return i, pair - i * (i + 1) // 2


@triton.jit(do_not_specialize=["N"])
def tiles_kernel(
    a, others, square, sums, N, T, D, strides, sizes, others_strides,
    K: tl.constexpr, TILES: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    CHAIN: tl.constexpr,
):  # fmt: skip
    """For each sample and pair of tiles: square [K, N, PAIRS], and sums [3, K, N, TILES] of
    |a_t| |b_t|, |a_t| and |b_t|.

    Args:
        others: K pointers; `sizes` and `others_strides` are theirs.
        sizes: the last axis of each.
        strides: of a [N, T, D].
        CHAIN: blocks of BK products whose sum is a tensor core's.
    """
    PAIRS: tl.constexpr = TILES * (TILES + 1) // 2
    n = tl.program_id(0) // PAIRS
    pair = tl.program_id(0) % PAIRS
    i, j = pair_of(pair)
    r = (i * BT + tl.arange(0, BT)).to(tl.int64)
    c = (j * BT + tl.arange(0, BT)).to(tl.int64)
    wide = n.to(tl.int64)
    x = a + wide * strides[0]
    mine = gram(x, r, c, T, D, strides[1], strides[2], BT, BK, CHAIN, False)
    for k in tl.static_range(K):
        s = others_strides[k]
        y = others[k] + wide * s[0]
        theirs = gram(y, r, c, T, sizes[k], s[1], s[2], BT, BK, CHAIN, False)
        own = tl.sum(tl.sum(mine * theirs, 1), 0)
        row = (k * N + n).to(tl.int64)
        tl.store(square + row * PAIRS + pair, tl.where(i == j, own, 2.0 * own))
        if i == j:
            of_a = lengths(mine, r, c)
            of_b = lengths(theirs, r, c)
            at = sums + row * TILES + i
            part = (K * TILES) * N.to(tl.int64)
            tl.store(at, tl.sum(of_a * of_b, 0))
            tl.store(at + part, tl.sum(of_a, 0))
            tl.store(at + 2 * part, tl.sum(of_b, 0))


@triton.jit(do_not_specialize=["N"])
def tile_kernel(
    a, others, out, N, T, D, strides, sizes, others_strides, slacks,
    K: tl.constexpr, TINY: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    """out [K, N], where a sample's positions are BT at most; arguments as above."""
    n = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BT).to(tl.int64)
    x = a + n * strides[0]
    mine = gram(x, r, r, T, D, strides[1], strides[2], BT, BK, CHAIN, True)
    for k in tl.static_range(K):
        s = others_strides[k]
        y = others[k] + n * s[0]
        theirs = gram(y, r, r, T, sizes[k], s[1], s[2], BT, BK, CHAIN, True)
        of_a, of_b = lengths(mine, r, r), lengths(theirs, r, r)
        found = rounded_up(
            tl.sum(tl.sum(mine * theirs, 1), 0).to(tl.float64),
            tl.sum(of_a * of_b, 0).to(tl.float64),
            tl.sum(of_a, 0).to(tl.float64),
            tl.sum(of_b, 0).to(tl.float64),
            T, D, sizes[k], slacks[k], TINY,
        )  # fmt: skip
        tl.store(out + k * N.to(tl.int64) + n, found)


@triton.jit
def added(x, size, BLOCK: tl.constexpr):
    """The sum of `size` numbers at x, in float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x + at, mask=at < size, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["N"])
def norms_kernel(
    square, sums, out, N, T, D, sizes, slacks,
    K: tl.constexpr, TILES: tl.constexpr, TINY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [K, N], squared norms that no rounding has made smaller than they are."""
    PAIRS: tl.constexpr = TILES * (TILES + 1) // 2
    n = tl.program_id(0)
    part = (K * TILES) * N.to(tl.int64)
    for k in tl.static_range(K):
        row = (k * N + n).to(tl.int64)
        at = sums + row * TILES
        gross = added(at, TILES, BLOCK)
        of_a = added(at + part, TILES, BLOCK)
        of_b = added(at + 2 * part, TILES, BLOCK)
        found = added(square + row * PAIRS, PAIRS, BLOCK)
        found = rounded_up(found, gross, of_a, of_b, T, D, sizes[k], slacks[k], TINY)
        tl.store(out + row, found)


@triton.jit
def square_length(x, size, stride, BLOCK: tl.constexpr):
    """|x|^2 of a vector, in float64: no square of a float32 number overflows or underflows."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, size, BLOCK):
        at = (start + tl.arange(0, BLOCK)).to(tl.int64)
        each = tl.load(x + at * stride, mask=at < size, other=0.0).to(tl.float32).to(tl.float64)
        total += each * each
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["N"])
def lengths_kernel(
    a, others, out, N, D, strides, sizes, others_strides, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out [K, N], where a sample has one position: the product of two squared lengths."""
    n = tl.program_id(0).to(tl.int64)
    mine = square_length(a + n * strides[0], D, strides[2], BLOCK)
    for k in tl.static_range(K):
        s = others_strides[k]
        theirs = square_length(others[k] + n * s[0], sizes[k], s[2], BLOCK)
        tl.store(out + k * N.to(tl.int64) + n, (mine * theirs).to(tl.float32))


def ghost(a: Tensor, others: list[Tensor]) -> Tensor:
    """float32 [k, N] squared norms of sum_t a[n, t] b[n, t]^T, rounded up.

    Args:
        a: [N, T, D] in float32, bfloat16 or float16, in any layout.
        others: k tensors b [N, T, P], likewise, each in a dtype and of a size of its own.
    """
    out = a.new_empty(len(others), len(a), dtype=torch.float32)
    for first in range(0, len(others), MOST):
        write(a, tuple(others[first : first + MOST]), out[first : first + MOST])
    return out


def write(a: Tensor, others: tuple[Tensor, ...], out: Tensor) -> None:
    """Write the norms of a few into out [k, N]."""
    (n, t, d), k = a.shape, len(others)
    if not n:
        return
    sizes, strides = tuple(b.shape[2] for b in others), tuple(b.stride() for b in others)
    if t == 1:
        with on(a):
            lengths_kernel[(n,)](
                a, others, out, n, d, a.stride(), sizes, strides,
                K=k, BLOCK=VECTOR.step, num_warps=VECTOR.warps,
            )  # fmt: skip
        return
    tiles = of_grams(t, max(x.element_size() for x in (a, *others)))
    rows, step = side(t, tiles.rows), side(max(d, *sizes), tiles.step)
    slacks, given = tuple(slack(d, p) for p in sizes), (a.stride(), sizes, strides)
    how = {"BT": rows, "BK": step, "CHAIN": CHAIN // step}
    how |= {"num_warps": tiles.warps_of(rows, rows), "num_stages": stages(a.device, tiles.stages)}
    count = over(t, rows)
    with on(a):
        if count == 1:
            tile_kernel[(n,)](a, others, out, n, t, d, *given, slacks, K=k, TINY=TINY, **how)
            return
        pairs = count * (count + 1) // 2
        square = a.new_empty(k, n, pairs, dtype=torch.float32)
        sums = a.new_empty(3, k, n, count, dtype=torch.float32)
        if t:
            tiles_kernel[(n * pairs,)](
                a, others, square, sums, n, t, d, *given, K=k, TILES=count, **how
            )
        norms_kernel[(n,)](
            square, sums, out, n, t, d, sizes, slacks,
            K=k, TILES=count, TINY=TINY, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip


@functools.cache
def slack(d: int, p: int) -> float:
    """How far a ghost norm may be from what it should be, as a share of the square of
    sum_t |a_t| |b_t|."""
    sums = math.sqrt(over(d, CHAIN)) + math.sqrt(over(p, CHAIN))
    return (SLACK + sums) * torch.finfo(torch.float32).eps / 2
