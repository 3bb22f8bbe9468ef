"""Totals used as values become each sample's own."""

from tests.passes.graphs import block, cross_entropy, cut, linear, op, shape


def test_division_by_n() -> None:
    """In the loss and in its gradient, where N is a value it is 1."""
    texts = linear().texts
    assert cut(texts["prove"], "div(sum") == "div = div(^sum, N)"
    assert cut(texts["prove"], "div(seed", "expand(") == block("""
        div = div(^seed, N)
        expand = expand(div, [N])
    """)
    assert cut(texts["localize"], "div(sum", "expand(") == block("""
        div = div(^sum, N)
        div_2 = div(^sum, 1)
        expand = expand(div_2, [N])
    """)
    assert cut(texts["localize"], "div(seed, 1", "[N])") == block("""
        div = div(^seed, 1)
        expand = expand(div, [N])
    """)


def test_loss() -> None:
    """The mean of the local losses of the rows that are no padding."""
    texts = linear().texts
    assert (
        cut(texts["prove"], "release(")
        == "release = fxdp.release(^div, C, sigma, L, key, mask, '')"
    )
    assert cut(texts["localize"], "isnan(", "loss =") == block("""
        isnan = isnan(^expand)
        bitwise_not = bitwise_not(isnan)
        and = __and__(mask, bitwise_not)
        sum = sum(and)
        bitwise_not_2 = bitwise_not(and)
        masked_fill = masked_fill(^expand, bitwise_not_2, 0)
        sum_2 = sum(masked_fill)
        clamp = clamp(sum, 1)
        div = div(sum_2, clamp)
        any = any(mask)
        eq = eq(sum, 0)
        and_2 = __and__(any, eq)
        loss = masked_fill(div, and_2, nan)
    """)


def test_twins() -> None:
    """Every 0-d total has its N local values."""
    run = linear("localize")
    with_twin = [n for n in run.gm.graph.nodes if "twin" in n.meta]
    assert [op(n) for n in with_twin] == ["sum", "div", "div"]
    assert {shape(run, n) for n in with_twin} == {"[]"}
    assert {shape(run, n.meta["twin"]) for n in with_twin} == {"[N]"}


def test_valid_targets() -> None:
    """Cross entropy divides by the sample's own valid targets, not by those of the batch."""
    text = cross_entropy().texts["localize"]
    assert cut(text, "unsqueeze(ne", "expand(") == block("""
        unsqueeze = unsqueeze(^ne, 1)
        sum = sum(unsqueeze, [1])
        _to_copy = _to_copy(^sum)
        _to_copy_2 = _to_copy(sum)
        expand = expand(_to_copy_2, [N])
    """)
    assert cut(text, "div(seed, expand") == "div = div(^seed, ^expand)"
