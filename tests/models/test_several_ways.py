"""Parameters that reach the output by several ways: a gradient is all of them together.

The norm of w + w.T's gradient is that of a sum and its transpose, not of the sum alone, and what
is released is the clipped one of both.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracle import Branches, compare

pytestmark = pytest.mark.usefixtures("double")
N = 5


class Product(nn.Module):
    """x by a matrix that is made of a parameter [4, 4]."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.made = nn.Parameter(torch.randn(4, 4)), made

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.made(self.w)


MADE: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda w: w + w,
    lambda w: w + w + w,
    lambda w: w + w.T,
    lambda w: w - w.T,
    lambda w: w + w.flip(0),
    lambda w: w + w.reshape(2, 8).reshape(4, 4).roll(1, 1),
    lambda w: w + w[0],
    lambda w: torch.add(w, w, alpha=3),
    lambda w: w.triu() + w.triu(1).T,
    lambda w: torch.cat([w, -w], 1),
    lambda w: torch.stack([w, w.T, w]).sum(0),
    lambda w: w.expand(3, 4, 4).sum(0),
)


@pytest.mark.parametrize("strategy", ["auto", "ghost", "instantiate"])
def test_a_weight_and_itself(strategy: str) -> None:
    each = strategy == "instantiate"
    compare(Branches(*map(Product, MADE)), torch.randn(N, 4), strategy=strategy, each=each)


class Looked(nn.Module):
    """A table that is looked up and is the head, each time made otherwise of one parameter."""

    def __init__(self, table: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.table, self.head = nn.Parameter(torch.randn(6, 6)), table, head

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(F.embedding(ids, self.table(self.w)).tanh(), self.head(self.w))


class Filtered(nn.Module):
    """Two convolutions by kernels of one parameter."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.made = nn.Parameter(torch.randn(3, 3, 3, 3)), made

    def forward(self, ids: Tensor) -> Tensor:
        x = F.one_hot(ids, 9).to(self.w.dtype).reshape(-1, 3, 6, 6)
        return F.conv2d(F.conv2d(x, self.w).tanh(), self.made(self.w))


def plain(w: Tensor) -> Tensor:
    return w


def turned(w: Tensor) -> Tensor:
    return w.transpose(0, 1)


def both(w: Tensor) -> Tensor:
    return w + w.transpose(0, 1)


@pytest.mark.parametrize("strategy", ["auto", "ghost"])
def test_tied_and_reused_weights(strategy: str) -> None:
    pairs = ((plain, plain), (plain, turned), (both, plain), (torch.neg, plain), (turned, turned))
    tables = [Looked(table, head) for table, head in pairs]
    kernels = [Filtered(made) for made in (plain, turned, both, torch.neg)]
    compare(Branches(*tables, *kernels), torch.randint(6, (N, 12)), strategy=strategy)


class Scaled(torch.autograd.Function):
    """4 x w, with the sum over samples of the gradient, and three times the same."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return 4 * x * w

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        once = (grad * x).sum(0)
        return 4 * grad * w, torch.add(once, once, alpha=3)


class Apart(torch.autograd.Function):
    """(x + 3 x^2) w, with a sum over samples for each term."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return (x + 3 * x.square()) * w

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grad * w, torch.add((grad * x).sum(0), (grad * x.square()).sum(0), alpha=3)


class Weighted(nn.Module):
    """Both, each with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.apart = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return (Scaled.apply(x, self.once) + Apart.apply(x, self.apart).cos()).sin().sum(1)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_sum_that_is_scaled_where_it_is_added() -> None:
    compare(Weighted(), torch.randn(N, 4))


class Total(nn.Module):
    """A loss of a total over the batch that is added to itself, and to others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        once, other = self.linear(x).sin().sum(0), self.linear(x).cos().sum(0)
        return (once + once).mean() + torch.add(other, once, alpha=3).sum()


def test_a_total_and_itself() -> None:
    """The loss that is reported, which is of each sample alone, too."""
    model, x = Total(), torch.randn(N, 4)
    private = compare(model, x)
    each = torch.stack([model(row.unsqueeze(0)) for row in x])
    torch.testing.assert_close(private(x).detach(), each.mean().detach())
