"""Private training in half precision: torch.autocast, or parameters in bfloat16.

Norms, clipped sums and noise are float32 in both; p.grad has the dtype of its parameter. Nothing
scales the loss: bfloat16 has float32's range. With float16 a GradScaler would not help: a factor on
the loss scales what is released, and does not reach the gradients of the samples, which underflow.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import fxdp
from tools.examples import digits


def main(epochs: int = 3, samples: int = 1500, whole: bool = False, **options):
    """Train; with `whole` in bfloat16 altogether, else under autocast.

    Returns:
        The private module.
    """
    torch.manual_seed(0)
    dtype = torch.bfloat16 if whole else torch.float32
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(dtype)
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
    with fxdp.Progress(private, epochs * len(loader), delta=1e-5) as progress:
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
                    loss = private(x.to(dtype), y)
                loss.backward()
                optimizer.step()
                progress.step(loss)
    print(f"epsilon {private.privacy_spent(1e-5):.2f}, last loss {loss.item():.3f}")
    return private


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whole", action="store_true", help="parameters in bfloat16")
    main(whole=parser.parse_args().whole)
