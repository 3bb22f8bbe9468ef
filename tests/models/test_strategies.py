"""Strategies differ in cost and in nothing else; and the release is the formula, noise included."""

import functools
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.backend.options import Auto
from fxdp.mechanism.gaussian import released
from tests.oracle import clipped_sum, per_sample
from tools.examples.demo import network

BATCH, BOUND = 10, 0.3


def gradcnn_net() -> nn.Module:
    """The net of gradcnn's gradient check (arXiv:1912.06015): 2 layers of 25 channels, kernel 5."""
    torch.manual_seed(42)
    return nn.Sequential(
        nn.Conv2d(3, 25, 5, padding=2), nn.ReLU(), nn.Conv2d(25, 25, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(25 * 16 * 16, 10),
    )  # fmt: skip


@functools.cache
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))


@functools.cache
def wanted() -> tuple[dict[str, Tensor], Tensor]:
    return per_sample(gradcnn_net(), F.cross_entropy, batch(), {}, BATCH)


@pytest.mark.parametrize("strategy", get_args(Auto))
def test_every_strategy_releases_the_same(strategy: str) -> None:
    model, (x, y) = gradcnn_net(), batch()
    each, norms = wanted()
    private = fxdp.compile(
        model,
        loss_fn=F.cross_entropy,
        max_grad_norm=BOUND,
        noise_multiplier=0.0,
        expected_batch_size=BATCH,
        backend="eager",
        options={"strategy": strategy},
    )
    private(x, y).backward()
    torch.testing.assert_close(private._stepper.record.extras["norms"], norms, rtol=5e-5, atol=1e-6)
    for name, clipped in clipped_sum(each, BOUND, BATCH).items():
        got = model.get_parameter(name).grad
        assert got is not None
        torch.testing.assert_close(got, clipped, rtol=1e-4, atol=1e-6)
    used = {row.strategy for row in private.report().rows if row.parameter.endswith("weight")}
    if strategy in ("instantiate", "naive", "multi", "ghost", "stream"):
        assert used == {strategy}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_is_the_formula(optimizer: type[torch.optim.Optimizer]) -> None:
    """With known noise, any optimizer sees (sum_i min(1, C / n_i) g_i + sigma C Z) / L.

    The norms run over both of the optimizer's parameter groups.
    """
    sigma, expected = 1.1, 7.0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    twin = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(6, 5, dtype=torch.double), torch.randint(3, (6,))
    private = fxdp.compile(
        model, loss_fn=F.cross_entropy, max_grad_norm=BOUND, noise_multiplier=sigma,
        expected_batch_size=expected, backend="eager",
    )  # fmt: skip
    steps = [
        optimizer([{"params": m[0].parameters()}, {"params": m[2].parameters()}], lr=0.1)
        for m in (model, twin)
    ]
    each, _ = per_sample(twin, F.cross_entropy, (x, y), {}, 6)
    sums = clipped_sum(each, BOUND, expected)
    private(x, y).backward()
    key, one = private._stepper.key, torch.tensor(1.0)
    for draw, (name, p) in enumerate(twin.named_parameters()):
        known = released(torch.zeros_like(p), one, one, one, None, key, draw, 1)
        p.grad = sums[name] + sigma * BOUND * known / expected
    for step in steps:
        step.step()
    for mine, formula in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, formula, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strategy", ["auto", "instantiate", "multi"])
def test_the_net_of_the_demo_compiles(strategy: str) -> None:
    """Its pictures have one channel: some strategies' operands are then views of the pictures."""
    torch.manual_seed(0)
    model, x, y = network(), torch.randn(BATCH, 1, 8, 8), torch.randint(10, (BATCH,))
    each, _ = per_sample(model, F.cross_entropy, (x, y), {}, BATCH)
    private = fxdp.compile(
        model,
        loss_fn=F.cross_entropy,
        max_grad_norm=BOUND,
        noise_multiplier=0.0,
        expected_batch_size=BATCH,
        options={"strategy": strategy},
    )
    private(x, y).backward()
    for name, clipped in clipped_sum(each, BOUND, BATCH).items():
        torch.testing.assert_close(model.get_parameter(name).grad, clipped, rtol=1e-4, atol=1e-6)
