"""Ghost norms in pieces, for a CPU.

A ghost norm multiplies two Gram matrices, each of all pairs of positions, number by number. Both
are symmetric, so what lies above the diagonal need not be worked out; and a few rows at a time
are enough, so that the T x T numbers of a batch are never stored at once.
"""

import math

import torch
from torch import Tensor

from fxdp.definition import define, fake

ROWS = 64  # of a Gram matrix at a time: fewer make products small, more waste the upper half
CACHED = 1 << 19  # numbers of one Gram matrix that are worked out at once


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
    out = a.new_zeros(len(others), len(a))
    length = a.shape[1]
    rows = spans(length, ROWS)
    for first, last in spans(len(a), max(1, CACHED // max(1, length * ROWS))):
        own, rest = out[:, first:last], [b[first:last] for b in others]
        for start, stop in rows:
            own += products(a[first:last], rest, start, stop, start, stop)
            if start:  # both halves of what is off the diagonal
                own += 2 * products(a[first:last], rest, start, stop, 0, start)
    return out


def products(
    a: Tensor, others: list[Tensor], start: int, stop: int, left: int, right: int
) -> Tensor:
    """[k, N] sums of (a_t . a_s)(b_t . b_s) over rows t and columns s."""

    def gram(x: Tensor) -> Tensor:
        return torch.bmm(x[:, start:stop], x[:, left:right].transpose(1, 2))

    common = gram(a)
    return torch.stack([gram(b).mul_(common).flatten(1).sum(1) for b in others])


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
