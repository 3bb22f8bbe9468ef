"""Clip factors."""

from fxdp.graph.study import Factors, PerSample
from tests.passes.graphs import block, cut, linear, shape


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
