"""Every sum over samples again, weighed by the clip factors."""

from torch.fx import Node

from fxdp.graph.study import ClippedSums, Factors, GradientSums
from tests.passes.graphs import block, conv, cut, linear, sequence, shape


def ancestors(node: Node) -> set[Node]:
    """A node and what it is computed from."""
    found: set[Node] = set()
    open_ends = [node]
    while open_ends:
        if (at := open_ends.pop()) not in found:
            found.add(at)
            open_ends += at.all_input_nodes
    return found


def test_plain_gradient_is_left() -> None:
    """No clipped sum is computed from a plain one, and each from the factors."""
    for run in (linear("clip"), sequence("clip"), conv("clip")):
        plain = {n for g in run.study.of(GradientSums).all for n in (*g.sums, *g.linear)}
        for clipped in run.study.of(ClippedSums).all:
            assert clipped.total is not None
            assert clipped.public is None
            assert not plain & ancestors(clipped.total)
            assert run.study.of(Factors).nodes[clipped.gradient.parameter] in ancestors(
                clipped.total
            )
            assert shape(run, clipped.total) == shape(run, clipped.gradient.node)


def test_weighed_form() -> None:
    """Sums that were not instantiated: the factors go into the product."""
    texts = linear().texts
    assert cut(texts["measure"], "permute(mul", "permute(permute") == block("""
        permute = permute(^mul, [1, 0])
        mm = mm(permute, ^samples)
        permute_2 = permute(mm, [1, 0])
        sum = sum(^mul, [0], True)
        view = view(sum, [2])
        permute_3 = permute(permute_2, [1, 0])
    """)
    assert cut(texts["clip"], "weighed_outer(", "weighed_sum(") == block("""
        weighed_outer = fxdp.weighed_outer(^unsqueeze, ^unsqueeze, ^factor)
        weighed_sum = fxdp.weighed_sum(^unsqueeze, ^factor)
    """)


def test_weighed_each() -> None:
    """Per-sample gradients that exist: weighed and added up."""
    texts = sequence("clip", "instantiate").texts
    assert "(factor" not in texts["measure"]
    assert cut(texts["clip"], "weighed_sum(", "permute(permute") == block("""
        weighed_sum = fxdp.weighed_sum(^einsum, ^factor)
        permute = permute(weighed_sum, [1, 0])
        permute_2 = permute(permute, [1, 0])
    """)
