"""Clip factors from norms."""

import math

import pytest
import torch

from fxdp.mechanism.clipping import Flat
from fxdp.mechanism.factors import clip_factor, finite_samples


@pytest.mark.parametrize(
    ("norm", "bound", "mask", "factor"),
    [
        (0.0, 2.0, True, 1.0),
        (1.0, 2.0, True, 1.0),
        (2.0, 2.0, True, 1.0),
        (8.0, 2.0, True, 0.25),
        (0.0, math.inf, True, 1.0),
        (8.0, math.inf, True, 1.0),
        (math.inf, 2.0, True, 0.0),
        (math.nan, 2.0, True, 0.0),
        (math.inf, math.inf, True, 0.0),
        (1.0, 2.0, False, 0.0),
        (math.nan, 2.0, False, 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factor(norm: float, bound: float, mask: bool, factor: float, dtype: torch.dtype) -> None:
    """The lines of the docstring's table."""
    scale = torch.tensor(bound, dtype=torch.float64)
    norms = torch.tensor([norm], dtype=dtype)
    finite = finite_samples(norms, torch.ones(1))
    found = clip_factor(Flat(), 1.0, norms, finite, scale, torch.tensor([mask]))
    assert found.dtype == dtype
    assert found.tolist() == [factor]


@pytest.mark.parametrize("loss", [math.inf, -math.inf])
def test_a_loss_that_is_not_finite(loss: float) -> None:
    norms, losses = (
        torch.tensor([1.0, 1.0, math.inf, 1.0]),
        torch.tensor([loss, 2.0, 2.0, math.nan]),
    )
    assert finite_samples(norms, losses).tolist() == [False, True, False, True]
    assert finite_samples(norms, None).tolist() == [True, True, False, True]
