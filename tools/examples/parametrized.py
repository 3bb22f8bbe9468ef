"""Parameters behind torch.nn.utils.parametrize: weight norm, orthogonal, and one of your own.

What is trained, clipped and noised are the parameters underneath; their gradients go through the
parametrization sample by sample, and need no code of yours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader

import fxdp
from tools.examples import digits


class Symmetric(nn.Module):
    """A weight that is equal to its transpose."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


def network() -> nn.Module:
    """A layer of each kind."""
    symmetric = nn.Linear(32, 32)
    parametrize.register_parametrization(symmetric, "weight", Symmetric())
    return nn.Sequential(
        nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(64, 32)),
        nn.Tanh(),
        parametrizations.orthogonal(nn.Linear(32, 32)),
        nn.Tanh(),
        symmetric,
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def main(epochs: int = 3, samples: int = 1500, **options):
    """Train, and return the private module."""
    torch.manual_seed(0)
    model = network()
    private, optimizer, loader = fxdp.make_private(
        model,
        torch.optim.Adam(model.parameters(), lr=0.01),
        DataLoader(digits.load(samples), batch_size=128),
        F.cross_entropy,
        epsilon=3.0,
        delta=1e-5,
        epochs=epochs,
        max_grad_norm=1.0,
        **options,
    )
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            private(x, y).backward()
            optimizer.step()
    q = model[3].weight
    print(f"epsilon {private.privacy_spent(1e-5):.2f}; orthogonal to {(q @ q.T).trace() / 32:.4f}")
    return private


if __name__ == "__main__":
    main()
