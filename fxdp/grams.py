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


@define("ghost_outer")
def ghost_outer(a: Tensor, b: Tensor) -> Tensor:
    """[N] squared norms of sum_t a[n, t] b[n, t]^T, from a [N, t, i] and b [N, t, o]."""
    out = a.new_zeros(len(a))
    length = a.shape[1]
    rows = spans(length, ROWS)
    for first, last in spans(len(a), max(1, CACHED // max(1, length * ROWS))):
        x, y = a[first:last], b[first:last]
        for start, stop in rows:
            out[first:last] += products(x, y, start, stop, start, stop)
            if start:  # both halves of what is off the diagonal
                out[first:last] += 2 * products(x, y, start, stop, 0, start)
    return out


def products(a: Tensor, b: Tensor, start: int, stop: int, left: int, right: int) -> Tensor:
    """[N] sums of (a_t . a_s)(b_t . b_s) over rows t and columns s."""
    both = torch.bmm(a[:, start:stop], a[:, left:right].transpose(1, 2))
    both.mul_(torch.bmm(b[:, start:stop], b[:, left:right].transpose(1, 2)))
    return both.flatten(1).sum(1)


@fake("ghost_outer")
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0])
