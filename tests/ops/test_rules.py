"""Every op of the table meets the oracle."""

import pytest
import torch

from fxdp.ops import RULES, decompositions
from tests.ops import (
    test_contraction,
    test_ctc,
    test_distance,
    test_factory,
    test_index,
    test_linalg,
    test_norm,
    test_pointwise,
    test_pool,
    test_recurrent,
    test_reduce,
    test_views,
)

aten = torch.ops.aten

# Ops without sample arguments, with the reason. This set may only shrink.
UNTRIED = {
    # kernels of other devices
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_backward.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_efficient_attention_backward.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_cudnn_attention_backward.default,
    # results that no two runs have in common: random, or left as they were
    aten.rand.default,
    aten.randn.default,
    aten.randperm.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.empty_permuted.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    # no tensor, no symbolic shape, or never in a graph: see test_pointwise
    aten.equal.default,
    aten.softshrink_backward.default,
    aten.hardshrink_backward.default,
    aten.contiguous.default,
    *(getattr(aten, name).default for name in test_pool.UNSIZED),
}


def tried() -> set[object]:
    modules = (
        test_contraction, test_ctc, test_distance, test_factory, test_index, test_linalg, test_norm,
        test_pointwise, test_recurrent, test_reduce, test_views,
    )  # fmt: skip
    cases = [c.op for m in modules for c in m.CASES] + [c.op for c in test_pool.cases()]
    cases += [c.op for c in test_factory.BLIND] + list(test_pointwise.LISTED)
    return {*cases, aten._scaled_dot_product_flash_attention_for_cpu_backward.default}


def test_every_rule_is_tried() -> None:
    assert not {str(op) for op in RULES.keys() - tried() - UNTRIED}


def test_the_list_of_untried_ops_only_shrinks() -> None:
    assert RULES.keys() >= UNTRIED
    assert not UNTRIED & tried()
    assert len(UNTRIED) <= 30


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    ("first", "mask", "values"),
    [
        (0, (2, 3, 4), ()),
        (0, (2, 3), (4,)),
        (0, (2,), (1, 4)),
        (0, (2,), (1, 3, 4)),
        (1, (3,), ()),
        (1, (3, 4), (2, 1)),
        (1, (3,), (2, 1, 4)),
        (2, (4,), (3, 1)),
    ],
)
def test_one_value_for_what_a_mask_selects(
    first: int, mask: tuple[int, ...], values: tuple[int, ...], accumulate: bool
) -> None:
    x, selects, given = torch.randn(2, 3, 4), torch.rand(mask) < 0.5, torch.randn(values)
    indices = [*[None] * first, selects]
    got = decompositions.index_put(x, indices, given, accumulate)
    torch.testing.assert_close(got, aten.index_put(x, indices, given, accumulate))


def test_as_many_values_as_a_mask_selects_are_another_matter() -> None:
    x = torch.randn(3, 4)
    found = decompositions.index_put(x, [torch.tensor([True, False, True])], torch.randn(2, 4))
    assert found is NotImplemented
