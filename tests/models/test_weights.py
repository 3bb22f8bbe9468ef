"""Functions of weights: between the sum over samples and the parameter stand linear maps.

What a layer is given is computed from a parameter: normalised, inverted, pooled, joined. The
gradient then goes back through that, and so must the gradient of every sample alone.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.oracle import compare, score
from tools.census.functions import OF_WEIGHTS, OfWeight

pytestmark = pytest.mark.usefixtures("double")
N = 5
# Spread over a few models, each of which is compiled once.
GROUPS = {
    "normalised": ("layer norm", "group norm", "batch norm", "instance norm", "distance"),
    "solved": ("inverse", "solve", "qr", "cholesky", "determinant", "matrix exponential"),
    "images": ("max pool", "average pool", "convolved", "convolved, transposed", "grid"),
    "joined": ("padded", "joined and cut", "cumprod", "taken", "convolved with itself"),
}


class Several(nn.Module):
    """Many functions of weights, each with a weight of its own."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        makers = {n: OF_WEIGHTS[n] for n in names}
        self.parts = nn.ModuleDict(
            {n.replace(".", ""): OfWeight(f, *shape) for n, (f, shape) in makers.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts.values())


@pytest.mark.parametrize("theme", GROUPS)
def test_functions_of_weights(theme: str):
    compare(Several(GROUPS[theme]), torch.randn(N, 4))


def test_what_is_spelled_with_products_of_gradients_is_refused():
    with pytest.raises(fxdp.ProofError, match="FXD"):
        fxdp.prove(Several(("logcumsumexp",)), torch.randn(N, 4))


class Head(nn.Module):
    """A loss of a linear layer's output and its input."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.loss = loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.linear(x), x)


MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "losses over N": lambda y, x: (y.square().sum(1) / len(x)).sum(),
    "elements over N": lambda y, x: (y.sin() / x.shape[0]).sum(),
    "samples first": lambda y, x: y.square().sum(0).mean(),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_by_hand(name: str):
    compare(Head(MEANS[name]), torch.randn(N, 4))


NO_MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrast": lambda y, x: -(y[:, 0] - y[:, 0].exp().sum().log()).mean(),
    "share": lambda y, x: (y[:, 0] / y[:, 0].sum()).mean(),
    "feature": lambda y, x: (y / len(x)).sin().sum(1),
}


@pytest.mark.parametrize("name", NO_MEANS)
def test_what_is_no_mean_is_refused(name: str):
    with pytest.raises(fxdp.BatchMixingError):
        fxdp.prove(Head(NO_MEANS[name]), torch.randn(N, 4))


class Own(nn.Module):
    """Functions with a batch of their own for each sample, or kernels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        n, t = h.shape[:2]
        kernels = h[:, :2, :3].flatten(0, 1)[:, None]
        own = F.conv1d(h[:, :2].reshape(1, 2 * n, 6), kernels, groups=2 * n).unflatten(1, (n, 2))[0]
        frames = F.conv1d(h.flatten(0, 1)[:, None], torch.ones(2, 1, 3)).unflatten(0, (n, t))
        solved = torch.linalg.solve(h @ h.mT + torch.eye(t), h)
        tokens = h.flatten(0, 1)  # a router picks for every token, in a batch of N * t
        best = tokens.softmax(1).gather(1, tokens.topk(2, 1).indices).unflatten(0, (n, t))
        return score(own) + score(frames) + score(solved) + score(best)


def test_kernels_of_a_sample_and_systems_of_equations():
    compare(Own(), torch.randn(N, 4, 6))
