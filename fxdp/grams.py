"""Ghost norms: squared norms of sums of outer products, without the sums.

A ghost norm multiplies two Gram matrices, each of all pairs of positions, number by number. Both
are symmetric, so what lies above the diagonal need not be worked out; and on a CPU a few rows at a
time are enough, so that the T x T numbers of a batch are never stored at once.

Where a sample's positions cancel, its norm is a small difference of large numbers, and what is
left may be less than what was rounded away: a gradient of any size could pass for one of norm 0,
and would not be clipped. So ghost norms are rounded up.
"""

import math

import torch
from torch import Tensor

from fxdp.definition import define, fake

ROWS = 64  # of a Gram matrix at a time: fewer make products small, more waste the upper half
CACHED = 1 << 19  # numbers of one Gram matrix that are worked out at once
# Errors of a ghost norm, in units in the last place of (sum_t |a_t| |b_t|)^2, which no product of
# its sum exceeds: a search among operands that cancel finds 2.5 at most (tests/test_grams.py).
SLACK = 8.0
# What a product of float32 numbers is rounded to, by torch.get_float32_matmul_precision().
UNITS = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}


def rounded_up(square: Tensor, gross: Tensor) -> Tensor:
    """Squared norms that no rounding has made smaller than they are.

    Args:
        square: sums of products, as they were worked out.
        gross: sum_t |a_t| |b_t|, of the same shape.
    """
    return (square + slack(square.dtype) * gross.square()).clamp(min=0)


def slack(dtype: torch.dtype) -> float:
    """How far a sum of products may be from what it should be, for absolute values that add
    up to 1."""
    unit = UNITS[torch.get_float32_matmul_precision()] if dtype == torch.float32 else 2.0**-53
    return SLACK * unit


def ghost(a: Tensor, b: Tensor) -> Tensor:
    """[N, ...] squared norms of sum_t a[n, ..., t] b[n, ..., t]^T, of ordinary torch functions."""
    square = ((a @ a.transpose(-2, -1)) * (b @ b.transpose(-2, -1))).sum((-2, -1))
    lengths = [torch.linalg.vector_norm(x, dim=-1) for x in (a, b)]
    return rounded_up(square, (lengths[0] * lengths[1]).sum(-1))


def spans(size: int, most: int) -> list[tuple[int, int]]:
    """Starts and stops of equal parts, none larger than `most`."""
    count = math.ceil(size / most)
    return [(size * k // count, size * (k + 1) // count) for k in range(count)]


@define("ghost_outers")
def ghost_outers(a: Tensor, others: list[Tensor]) -> Tensor:
    """[k, N] squared norms of sum_t a[n, t] b[n, t]^T, from a [N, t, i], for k tensors b [N, t, o],
    at least one.

    The Gram matrix of `a` is worked out once for all of them.
    """
    square, gross = a.new_zeros(2, len(others), len(a))
    length = a.shape[1]
    rows = spans(length, ROWS)
    for first, last in spans(len(a), max(1, CACHED // max(1, length * ROWS))):
        part = slice(first, last)
        for start, stop in rows:
            mine = pairs(a[part], start, stop, start, stop)
            for k, b in enumerate(others):
                found = products(mine, pairs(b[part], start, stop, start, stop))
                square[k, part] += found[0]
                gross[k, part] += found[1]
            if not start:
                continue
            mine = pairs(a[part], start, stop, 0, start)
            for k, b in enumerate(others):  # both halves of what is off the diagonal
                both = pairs(b[part], start, stop, 0, start).mul_(mine)
                square[k, part] += 2 * both.flatten(1).sum(1)
    return rounded_up(square, gross)


def pairs(x: Tensor, start: int, stop: int, left: int, right: int) -> Tensor:
    """A part of the Gram matrix [N, rows, columns] of x [N, t, i]."""
    return torch.bmm(x[:, start:stop], x[:, left:right].transpose(1, 2))


def products(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """[N] sums of all products of two Gram matrices [N, t, t], and of |a_t| |b_t|.

    The second is overwritten.
    """
    lengths = one.diagonal(dim1=1, dim2=2).sqrt() * other.diagonal(dim1=1, dim2=2).sqrt()
    return other.mul_(one).flatten(1).sum(1), lengths.sum(1)


@fake("ghost_outers")
def _(a: Tensor, others: list[Tensor]) -> Tensor:
    return a.new_empty(len(others), a.shape[0])


@define("ghost_outer")
def ghost_outer(a: Tensor, b: Tensor) -> Tensor:
    """[N] squared norms of sum_t a[n, t] b[n, t]^T, from a [N, t, i] and b [N, t, o]."""
    return ghost_outers(a, [b])[0]


@fake("ghost_outer")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0])
