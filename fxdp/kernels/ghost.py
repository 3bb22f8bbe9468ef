"""Ghost norms: squared norms of sums of outer products, without the sums.

A ghost norm multiplies two Gram matrices, each of all pairs of positions, number by number. Both
are symmetric, so what lies above the diagonal need not be computed; and on a CPU a few rows at a
time are enough, so that the T x T numbers of a batch are never stored at once.

Where a sample's positions cancel, its norm is a small difference of large numbers, and what is
left may be less than what was rounded away: a gradient of any size could pass for one of norm 0,
and would not be clipped. So ghost norms are rounded up. So are those of operands so small that
their squares underflow, while the other operand may be large.
"""

import math

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake, on_cuda, runs_tiled
from fxdp.kernels.precision import HALVES, wide, wide_dtype

ROWS = 64  # of a Gram matrix at a time: fewer make products small, more waste the upper half
CACHED = 1 << 19  # numbers of one Gram matrix that are computed at once
# Errors of a ghost norm, in units in the last place of (sum_t |a_t| |b_t|)^2, which no product of
# its sum exceeds: a search among operands that cancel finds 2.5 at most (its test).
SLACK = 8.0
# On CUDA, where cuBLAS multiplies float32 numbers sooner than Triton, except for few positions.
FEW = 128  # positions, from which on it does
CUDA_ROWS = 512  # on an H100 faster than 256 and than all, from 512 positions on
CUDA_CACHED = 1 << 24


def rounded_up(square: Tensor, gross: Tensor, lost: Tensor) -> Tensor:
    """Squared norms that no rounding has made smaller than they are.

    Args:
        square: sums of products, as they were computed.
        gross: sum_t |a_t| |b_t|, of the same shape.
        lost: what underflow may have taken (`underflow`).
    """
    return (square + slack(square.dtype) * gross.square() + lost).clamp(min=0)


def covered(square: Tensor, gross: Tensor) -> Tensor:
    """Squared norms of sums of which the clipped sum is computed apart, in another order: what
    that rounds must not be more than was measured.

    Args:
        gross: [N], what the lengths of a sum's terms add up to, or more.
    """
    return square + slack(square.dtype) * gross.square()


def slack(dtype: torch.dtype) -> float:
    """How far a sum of products may be from what it should be, for absolute values that add
    up to 1; computed in full precision (`fxdp.kernels.precision`)."""
    return SLACK * torch.finfo(dtype).eps / 2


def underflow(a: Tensor, b: Tensor, sizes: tuple[int, int], positions: int) -> Tensor:
    """What squared norms of sum_t a_t b_t^T may lack because products underflow.

    A product that does lacks at most the smallest normal number, so a scalar product of two
    positions of `a` at most `i` times that; and it is multiplied by one of `b`.

    Args:
        a, b: sum_t |a_t| and sum_t |b_t|, of one shape.
        sizes: i and o, the axes of the weight.
        positions: how many t there are.
    """
    tiny = torch.finfo(a.dtype).tiny
    of_a, of_b = (math.sqrt(size * tiny) for size in sizes)
    return (a * of_b).square() + (b * of_a).square() + positions**2 * tiny


@define("ghost_whole")
def ghost_whole(a: Tensor, b: Tensor) -> Tensor:
    """[N, ...] squared norms of sum_t a[n, ..., t] b[n, ..., t]^T, in float32 at least.

    One op, so that no Gram matrix is left to the forward half, where products may be rounded.
    """
    return of_matrices(wide(a), wide(b))


@on_cuda("ghost_whole")
def _(a: Tensor, b: Tensor) -> Tensor:
    if not runs_tiled(a, b) or a.dim() < 3:
        return of_matrices(wide(a), wide(b))
    return on_a_device(a.flatten(0, -3), [b.flatten(0, -3)]).view(a.shape[:-2])


def on_a_device(a: Tensor, others: list[Tensor]) -> Tensor:
    """[k, N] squared norms, by Triton's kernel or by cuBLAS, whichever is sooner."""
    if a.shape[1] >= FEW and all(x.dtype not in HALVES for x in (a, *others)):
        return by_rows(a, others, CUDA_ROWS, CUDA_CACHED, growth=1.0)
    from fxdp.kernels.triton.ghost import ghost  # triton is optional

    return ghost(a, others)


def of_matrices(a: Tensor, b: Tensor) -> Tensor:
    """[N, ...] squared norms from the whole of both Gram matrices."""
    square = ((a @ a.transpose(-2, -1)) * (b @ b.transpose(-2, -1))).sum((-2, -1))
    lengths = [torch.linalg.vector_norm(x, dim=-1) for x in (a, b)]
    sums = [x.sum(-1) for x in lengths]
    lost = underflow(sums[0], sums[1], (a.shape[-1], b.shape[-1]), a.shape[-2])
    return rounded_up(square, (lengths[0] * lengths[1]).sum(-1), lost)


@fake("ghost_whole")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[:-2], dtype=wide_dtype(a))


def spans(size: int, most: int) -> list[tuple[int, int]]:
    """Starts and stops of equal parts, none larger than `most`."""
    count = math.ceil(size / most)
    return [(size * k // count, size * (k + 1) // count) for k in range(count)]


@define("ghost_outers")
def ghost_outers(a: Tensor, others: list[Tensor]) -> Tensor:
    """[k, N] squared norms of sum_t a[n, t] b[n, t]^T, from a [N, t, i], for k tensors b [N, t, o],
    at least one; in float32 at least.

    The Gram matrix of `a` is computed once for all of them.
    """
    return by_rows(wide(a), [wide(b) for b in others], ROWS, CACHED)


@on_cuda("ghost_outers")
def _(a: Tensor, others: list[Tensor]) -> Tensor:
    if not runs_tiled(a, *others):
        return by_rows(wide(a), [wide(b) for b in others], ROWS, CACHED)
    return on_a_device(a, others)


def by_rows(a: Tensor, others: list[Tensor], most: int, cached: int, growth: float = 0.0) -> Tensor:
    """[k, N] squared norms from a few rows of Gram matrices at a time.

    Args:
        most: rows of a Gram matrix at a time.
        cached: numbers of one that are computed at once.
        growth: units in the last place for the root of the length of a sum. cuBLAS adds products
            one by one along an axis; sums of few sums, as on a CPU, need none.
    """
    square, gross, of_b = a.new_zeros(3, len(others), len(a))
    of_a, length = a.new_zeros(len(a)), a.shape[1]
    rows = spans(length, most)
    for first, last in spans(len(a), max(1, cached // max(1, length * most))):
        part = slice(first, last)
        for start, stop in rows:
            mine = pairs(a[part], start, stop, start, stop)
            lengths = diagonal(mine)
            of_a[part] += lengths.sum(1)
            for k, b in enumerate(others):
                theirs = pairs(b[part], start, stop, start, stop)
                beside = diagonal(theirs)
                of_b[k, part] += beside.sum(1)
                gross[k, part] += beside.mul_(lengths).sum(1)
                square[k, part] += theirs.mul_(mine).flatten(1).sum(1)
            if not start:
                continue
            mine = pairs(a[part], start, stop, 0, start)
            for k, b in enumerate(others):  # both halves of what is off the diagonal
                both = pairs(b[part], start, stop, 0, start).mul_(mine)
                square[k, part] += 2 * both.flatten(1).sum(1)
    lost = [
        underflow(of_a, own, (a.shape[-1], b.shape[-1]), length)
        for own, b in zip(of_b, others, strict=True)
    ]
    for own, beside, b in zip(lost, gross, others, strict=True):
        units = growth * math.sqrt(a.shape[-1] + b.shape[-1])
        own += beside.square() * (units * torch.finfo(a.dtype).eps / 2)
    return rounded_up(square, gross, torch.stack(lost))


def pairs(x: Tensor, start: int, stop: int, left: int, right: int) -> Tensor:
    """A part of the Gram matrix [N, rows, columns] of x [N, t, i]."""
    return torch.bmm(x[:, start:stop], x[:, left:right].transpose(1, 2))


def diagonal(gram: Tensor) -> Tensor:
    """[N, t] lengths of the positions of a Gram matrix [N, t, t]."""
    return gram.diagonal(dim1=1, dim2=2).sqrt()


def products(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """[N] sums of all products of two Gram matrices [N, t, t], and of |a_t| |b_t|.

    The second is overwritten.
    """
    gross = (diagonal(one) * diagonal(other)).sum(1)
    return other.mul_(one).flatten(1).sum(1), gross


def at_once(a: Tensor, b: Tensor) -> Tensor:
    """[N] squared norms of sum_t a[n, t] b[n, t]^T, from the whole of both Gram matrices."""
    length = a.shape[1]
    one, other = pairs(a, 0, length, 0, length), pairs(b, 0, length, 0, length)
    sums = [diagonal(x).sum(1) for x in (one, other)]
    lost = underflow(sums[0], sums[1], (a.shape[-1], b.shape[-1]), length)
    return rounded_up(*products(one, other), lost)


@fake("ghost_outers")
def _(a: Tensor, others: list[Tensor]) -> Tensor:
    return a.new_empty(len(others), a.shape[0], dtype=wide_dtype(a))


@define("ghost_outer")
def ghost_outer(a: Tensor, b: Tensor) -> Tensor:
    """[N] squared norms of sum_t a[n, t] b[n, t]^T, from a [N, t, i] and b [N, t, o]; in float32 at
    least."""
    return ghost_outers(a, [b])[0]


@fake("ghost_outer")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], dtype=wide_dtype(a))


def inner(at: Tensor, h: Tensor, g: Tensor) -> Tensor:
    """[N] inner products of a head and a lookup, sum_{t,s} at[n, s, t] (g[n, t] . h[n, s]), from
    at [N, S, T], h [N, S, d] and g [N, T, d]; rounded up, as ghost norms are."""
    lengths = [torch.linalg.vector_norm(x, dim=-1) for x in (h, g)]
    share = slack(at.dtype) * lengths[0].unsqueeze(2) * lengths[1].unsqueeze(1)
    tiny = torch.finfo(at.dtype).tiny
    # What a product may lack, that of two positions and that with `at`.
    lost = at.abs() * (share + h.shape[-1] * tiny) + tiny
    return (at * (h @ g.transpose(-2, -1)) + lost).flatten(1).sum(1)
