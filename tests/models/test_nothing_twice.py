"""A private step does no large product that a plain step does not do."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

import fxdp

N = 51
# Not `convolution_backward`: one call of it gives both gradients in a plain step, two calls give
# one each in a private one.
PRODUCTS = {"aten::mm", "aten::addmm", "aten::mkldnn_convolution"}


def products(step: Callable[[], object]) -> int:
    """Matrix products and convolutions that a step does."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    found = Counter({e.key: e.count for e in seen.key_averages()})
    return sum(found[name] for name in PRODUCTS)


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "mlp": lambda: (
        nn.Sequential(
            nn.Linear(78, 102), nn.ReLU(), nn.Linear(102, 102), nn.ReLU(), nn.Linear(102, 3)
        ),
        torch.randn(N, 78),
    ),
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3)
        ),
        torch.randn(N, 2, 8, 8),
    ),
}


@pytest.mark.parametrize(("name", "backend"), [("mlp", "inductor"), ("convolutions", "eager")])
@pytest.mark.filterwarnings("ignore")  # the profiler's own, on machines without its parts
def test_no_product_is_done_twice(name: str, backend: str) -> None:
    model, x = MODELS[name]()
    y = torch.randint(3, (N,))
    private = fxdp.compile(
        model,
        loss_fn=F.cross_entropy,
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        expected_batch_size=N,
        backend=backend,
        options={"strategy": "ghost"},
    )
    # The clipped sums are the only weight gradients; ghost norms are batched products.
    assert products(lambda: private(x, y).backward()) == products(
        lambda: F.cross_entropy(model(x), y).backward()
    )
