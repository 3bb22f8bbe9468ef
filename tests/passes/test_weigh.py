"""Clip factors."""

import math

import pytest
import torch

from fxdp.graph.study import Factors, PerSample
from fxdp.mechanism.clipping import Flat
from fxdp.passes.weigh import clip_factor, finite_samples
from tests.passes.graphs import block, cut, linear, shape


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


def test_factor_text() -> None:
    """The same, as nodes; squared norms add up over parameters first."""
    texts = linear().texts
    assert "factor" not in texts["measure"]
    assert cut(texts["weigh"], "zeros_like(mask", "factor =") == block("""
        zeros_like = zeros_like(mask)
        add = add(zeros_like, ^add)
        add_2 = add(add, ^square)
        sqrt = sqrt(add_2)
        norms = to(sqrt, torch.float32)
        isfinite = isfinite(norms)
        isinf = isinf(^expand)
        bitwise_not = bitwise_not(isinf)
        finite = __and__(isfinite, bitwise_not)
        add_3 = add(add_2, 3.76158192263132e-37)
        sqrt_2 = sqrt(add_3)
        div = div(C, sqrt_2)
        clamp = clamp(div, None, 1)
        and = __and__(mask, finite)
        bitwise_not_2 = bitwise_not(and)
        masked_fill = masked_fill(clamp, bitwise_not_2, 0)
        clamp_2 = clamp(masked_fill, None, 3.4028234663852886e+38)
        lt = lt(masked_fill, 1.1754943508222875e-38)
        masked_fill_2 = masked_fill(clamp_2, lt, 0)
        factor = to(masked_fill_2, torch.float32)
    """)


def test_norms() -> None:
    """A number for each sample, in the study too."""
    run = linear("weigh")
    found = run.study.of(Factors)
    assert {shape(run, n) for n in (found.norms, *found.nodes.values())} == {"[N]"}
    assert list(run.study.of(PerSample).nodes) == ["bias"]  # the weight's norms need no gradients
