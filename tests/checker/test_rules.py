"""The checker's rules against its trials: what a rule lets follow must be so on random tensors."""

from typing import Any

import pytest
import torch

from fxdp.checker.claims import Partial, Shard
from fxdp.checker.trial import Untried, tried
from fxdp.checker.walk import by_rule
from tests.checker.calls import N, T, calls

aten = torch.ops.aten
X = T(N, 2, 4)
FLAT = T(4 * N, 2)
# Each: an op, its arguments, and whether samples pass through it by a rule.
CASES: dict[str, tuple[Any, ...]] = {
    "add": (aten.add.Tensor, X, X),
    "add, broadcast": (aten.add.Tensor, X, T(4)),
    "add, a column": (aten.add.Tensor, T(N, 4), T(N, 1)),
    "add, of sums": (aten.add.Tensor, T(3), T(3)),
    "sub, aligned": (aten.sub.Tensor, T(N, 2), T(2, N, 1)),
    "mul": (aten.mul.Tensor, FLAT, T(2)),
    "mul, of sums": (aten.mul.Tensor, T(3), T(3)),
    "mul, by a total": (aten.mul.Tensor, X, T()),
    "div": (aten.div.Tensor, T(3), T(3)),
    "div, rounded": (aten.div.Tensor_mode, T(3), T(3), {"rounding_mode": "floor"}),
    "relu": (aten.relu.default, T(3)),
    "where": (aten.where.self, T(N, 1, 1, mask=True), X, T()),
    "cast": (aten._to_copy.default, T(3), {"dtype": torch.int64}),
    "view, in": (aten.view.default, X, [4 * N, 2]),
    "view, out": (aten.view.default, FLAT, [N, 4, 2]),
    "view, merged": (aten.view.default, X, [N, 8]),
    "view, all": (aten.view.default, X, [8 * N]),
    "view, of bytes": (aten.view.dtype, FLAT, torch.float32),
    "unsqueeze": (aten.unsqueeze.default, X, 1),
    "permute": (aten.permute.default, X, [2, 0, 1]),
    "transpose": (aten.transpose.int, X, 0, -1),
    "t": (aten.t.default, FLAT),
    "expand": (aten.expand.default, T(N, 1, 4), [N, 2, 4]),
    "expand, of one": (aten.expand.default, T(1, 2), [4 * N, 2]),
    "slice": (aten.slice.Tensor, X, 2, 1, 3),
    "slice, of samples": (aten.slice.Tensor, T(2 * N, 2), 0, 0, N),
    "select": (aten.select.int, T(2, N, 4), 0, 1),
    "cat": (aten.cat.default, [X, X], 1),
    "cat, of batches": (aten.cat.default, [FLAT, FLAT]),
    "sum": (aten.sum.dim_IntList, X, [0, 1]),
    "sum, inside": (aten.sum.dim_IntList, X, [1], True),
    "sum, all": (aten.sum.default, FLAT),
    "mean": (aten.mean.dim, X, [0]),
    "amax": (aten.amax.default, X, [0, 2]),
    "cumsum": (aten.cumsum.default, X, 1),
    "cumsum, of samples": (aten.cumsum.default, X, 0),
    "sort": (aten.sort.default, X, -1),
    "mm": (aten.mm.default, T(4 * N, 2), T(2, 3)),
    "mm, summed": (aten.mm.default, T(3, 4 * N), T(4 * N, 2)),
    "mm, of sums": (aten.mm.default, T(2, 3), T(3, 2)),
    "mm, columns": (aten.mm.default, T(3, 2), T(2, 2 * N)),
    "bmm": (aten.bmm.default, T(2 * N, 3, 2), T(2 * N, 2, 3)),
    "bmm, of heads": (aten.bmm.default, T(2, N, 3), T(2, 3, 2)),
    "addmm": (aten.addmm.default, T(3), T(2 * N, 2), T(2, 3)),
    "addmm, summed": (aten.addmm.default, T(3, 2), T(3, N), T(N, 2)),
    "softmax": (aten._softmax.default, X, -1, False),
    "softmax, of samples": (aten._softmax.default, X, 0, False),
    "softmax, backward": (
        aten._softmax_backward_data.default, T(N, 2), T(N, 2), 1, torch.float64,
    ),
    "gather": (aten.gather.default, T(N, 4), 1, T(N, 2, ids=True)),
    "flip": (aten.flip.default, X, [0]),
    "embedding": (aten.embedding.default, T(4, 2), T(N, 3, ids=True)),
    "embedding, backward": (
        aten.embedding_dense_backward.default, T(N, 2, 3), T(N, 2, ids=True), 4, -1, False,
    ),
    "embedding, by frequency": (
        aten.embedding_dense_backward.default, T(N, 2, 3), T(N, 2, ids=True), 4, -1, True,
    ),
    "convolution": (
        aten.convolution.default, T(N, 2, 5), T(2, 2, 3), None, [1], [0], [1], False, [0], 1,
    ),
    "convolution, backward": (
        aten.convolution_backward.default, T(N, 2, 3), T(N, 2, 5), T(2, 2, 3), None, [1], [0], [1],
        False, [0], 1, [True, True, False],
    ),
    "layer norm": (aten.native_layer_norm.default, X, [4], T(4), T(4), 1e-5),
    "attention": (
        aten._scaled_dot_product_flash_attention_for_cpu.default, *[T(N, 2, 3, 4)] * 3, 0.0,
    ),
    "attention, of heads": (
        aten._scaled_dot_product_flash_attention_for_cpu.default, T(2, 2 * N, 3, 4),
        *[T(2, 2 * N, 3, 4)] * 2, 0.0,
    ),
    "attention, backward": (
        aten._scaled_dot_product_flash_attention_for_cpu_backward.default, *[T(N, 2, 3, 4)] * 5,
        T(N, 2, 3), 0.0, False,
    ),
    "zeros": (aten.zeros_like.default, X),
    "full": (aten.full.default, [N, 2], 2.5),
}  # fmt: skip
CLOSED = {
    "add, of sums", "mul, of sums", "div", "div, rounded", "relu", "cast",
    "mm, of sums", "cumsum, of samples", "softmax, of samples", "flip", "mean", "amax",
    "slice, of samples", "view, of bytes", "embedding, by frequency", "addmm, summed",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_follows_is_so(name: str) -> None:
    """Of all claims of operands and results; and a rule that lets nothing follow is noticed."""
    op, *args = CASES[name]
    kwargs = args.pop() if isinstance(args[-1], dict) else {}
    followed = 0
    for call, claims in calls(op, *args, **kwargs):
        if not by_rule(call, claims):
            continue
        held = any(isinstance(c, Shard) for c in (*claims, *(x.claim for x in call.tensors)))
        if call.is_shared and not held:
            continue
        if call.shapes == ((),) and not held and isinstance(claims[0], Partial):
            continue  # a total of totals need not be their sum
        try:
            why = tried(call, claims, {})
        except Untried as error:
            if "nothing finite" in str(error):  # divided by zeros
                continue
            pytest.fail(f"{call.args} -> {claims}: {error}")
        assert why is None, f"{call.args} -> {claims}: {why}"
        followed += held
    assert bool(followed) == (name not in CLOSED)


@pytest.mark.parametrize(
    ("name", "count"), [("flip", 0), ("mean", 0), ("cumsum, of samples", 0), ("add", 1)]
)
def test_trials_tell_samples_apart(name: str, count: int) -> None:
    """Trials alone, without a rule, of results that hold samples or are their sum."""
    op, *args = CASES[name]
    found = 0
    for call, claims in calls(op, *args):
        held = [x.claim for x in call.tensors if isinstance(x.claim, Shard)]
        if held and call.shapes != ((),):
            found += tried(call, claims, {}) is None
    assert (found >= count) if count else found == 0
