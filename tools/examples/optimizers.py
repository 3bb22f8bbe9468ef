"""Any torch optimizer, groups of parameters, a schedule, and batches larger than memory.

Optimizer and schedule see private gradients, as if they were plain ones. One logical batch may be
worked on in pieces (`microbatch_size`), or come in pieces (`private.accumulate()`): it is one
release, with noise once. Calling backward() twice before optimizer.step() would be two releases,
each with its noise.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import fxdp
from tools.examples import digits


def network() -> nn.Sequential:
    """A layer for the features, and one for the classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def sgd(model: nn.Sequential) -> torch.optim.Optimizer:
    """Momentum, and a learning rate for each layer."""
    groups = [
        {"params": model[1].parameters(), "lr": 0.5},
        {"params": model[3].parameters(), "lr": 0.1},
    ]
    return torch.optim.SGD(groups, momentum=0.9)


def fused(model: nn.Sequential) -> torch.optim.Optimizer:
    """Adam in one kernel."""
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


def foreach(model: nn.Sequential) -> torch.optim.Optimizer:
    """Adam over lists of tensors."""
    return torch.optim.Adam(model.parameters(), lr=0.01, foreach=True)


def main(make=sgd, epochs: int = 3, samples: int = 1500, **options):
    """Train, and return the private module and the schedule."""
    torch.manual_seed(0)
    model = network()
    private, optimizer, loader = fxdp.make_private(
        model,
        make(model),
        DataLoader(digits.load(samples), batch_size=128),
        F.cross_entropy,
        epsilon=3.0,
        delta=1e-5,
        epochs=epochs,
        max_grad_norm=1.0,
        microbatch_size=32,
        **options,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [g["lr"] for g in optimizer.param_groups], total_steps=epochs * len(loader)
    )
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            # The batch arrives in two parts; each is worked on in pieces of 32.
            half = len(x) // 2
            with private.accumulate():
                for part in (slice(None, half), slice(half, None)):
                    private(x[part], y[part]).backward()
            optimizer.step()
            schedule.step()
    print(f"{make.__name__}: epsilon {private.privacy_spent(1e-5):.2f}")
    return private, schedule


if __name__ == "__main__":
    for optimizer in (sgd, fused, foreach):
        main(optimizer)
