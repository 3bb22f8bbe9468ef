"""What all forms are held against: a loop over the samples."""

from typing import Any

import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

# The examples are the same in every run.
QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
DTYPES = (torch.float64, torch.float32)


def close(a: Tensor, b: Tensor) -> None:
    """Equal as far as the dtype allows."""
    near = (
        {"rtol": 1e-9, "atol": 1e-9} if a.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    )
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    torch.testing.assert_close(a / scale, b / scale, **near)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def hold(form: Any, wanted: Tensor) -> None:
    """Every strategy of a form gives the per-sample values [N, ...], their norms and sums; and its
    terms are no shorter than what they add up to."""
    n = wanted.shape[0]
    norms = wanted.double().square().unsqueeze(-1).flatten(1).sum(1).to(wanted.dtype)
    factor = torch.linspace(0, 2, max(n, 1), dtype=wanted.dtype)[:n]
    for strategy in form.strategies:
        close(form.per_sample(strategy), wanted)
        close(form.sq_norm(strategy), norms)
    if not wanted.is_complex():
        assert bool((form.gross() >= norms.sqrt() * (1 - 1e-3)).all()), "of terms, not of their sum"
    weights = factor.reshape(-1, *[1] * (wanted.dim() - 1))
    close(form.total(factor), (wanted * weights).sum(0))


def silent(make: Any, *tensors: Tensor) -> None:
    """A sample with factor 0 adds exactly nothing, whatever it holds; others add what they did."""
    factor = torch.ones(len(tensors[0]), dtype=tensors[0].dtype)
    factor[0] = 0
    zeroed, spoilt = [t.clone() for t in tensors], [t.clone() for t in tensors]
    for i, (z, s) in enumerate(zip(zeroed, spoilt, strict=True)):
        z[0] = 0
        s[0] = float("nan") if i % 2 else float("inf")
    assert torch.equal(make(*spoilt).total(factor), make(*zeroed).total(factor))
