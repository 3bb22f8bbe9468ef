"""A sample whose positions cancel: its gradient is small, its terms are not.

Where per-sample gradients are measured and thrown away, the clipped sum adds up the terms of all
samples in another order, and rounds as much as the terms are large. Found with a sample that was
measured as 0 and moved a sum by 12 to 700 times the bound.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxdp
from fxdp.passes.plan import within

plan = sys.modules[within.__module__]  # the package has a function of that name
N, T, D = 64, 16, 8
HUGE = 1e8


class Signed(nn.Module):
    """A layer over positions, and the sum of what it gives, each number times a sign."""

    def __init__(self, layer: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, x: Tensor, signs: Tensor) -> Tensor:
        return (self.run(self.layer, x) * signs).flatten(1).sum(1)


def last_axis(layer: nn.Module, x: Tensor) -> Tensor:
    """Positions in front of the samples, which makes one product of both."""
    return layer(x.transpose(0, 1).contiguous()).transpose(0, 1)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(D, 4, bias=False), last_axis, lambda: torch.ones(N, T, D)),
    "bias": (lambda: nn.Linear(D, 4), last_axis, lambda: torch.ones(N, T, D)),
    "conv": (
        lambda: nn.Conv1d(2, 3, 2, stride=2, bias=False),
        lambda layer, x: layer(x),
        lambda: torch.ones(N, 2, 2 * T),
    ),
    "embedding": (
        lambda: nn.Embedding(5, D),
        lambda layer, x: layer(x),
        lambda: torch.ones(N, T, dtype=torch.int64),
    ),
}


def released(private: Any, model: nn.Module, *batch: Tensor) -> Tensor:
    model.zero_grad(set_to_none=True)
    private(*batch).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    "strategy", ["auto", "instantiate", "unfold", "crb", "naive", "ghost", "stream"]
)
@pytest.mark.parametrize("name", LAYERS)
def test_it_moves_a_sum_by_no_more_than_the_bound(
    name: str, strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, and where no per-sample gradient is kept for the clipped sum."""
    if strategy != "auto":
        nothing = lambda choices, *_: [replace(c, keep=False) for c in choices]  # noqa: E731
        monkeypatch.setattr(plan, "within", nothing)
    make, run, inputs = LAYERS[name]
    torch.manual_seed(0)
    model, x = Signed(make(), run), inputs()
    signs = torch.full(run(model.layer, x).shape, 0.02)
    ends = signs[-1].transpose(-1, -2) if name == "conv" else signs[-1]
    ends.zero_()
    ends[0], ends[-1] = HUGE, -HUGE
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=1.0, backend="eager",
        options={"strategy": strategy},
    )  # fmt: skip
    whole, rest = released(private, model, x, signs), released(private, model, x[:-1], signs[:-1])
    assert float(rest.norm()) > 5
    assert float((whole - rest).norm()) <= 1.05
