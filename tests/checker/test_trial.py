"""Trials on random tensors: what they take, what they refuse, and what they find."""

from typing import Any

import pytest
import sympy
import torch

from fxdp.checker.call import Call, Operand
from fxdp.checker.claims import Iota, Partial, Replicate, Shard
from fxdp.checker.trial import Untried, tried
from tests.checker.calls import ONE, N, T, shapes_of

aten = torch.ops.aten
ROWS = Shard(0, ONE)


def call(op: Any, *args: Any, claims: tuple[Any, ...] = (ROWS,)) -> Call:
    """A call whose tensors, in order, have these claims."""
    left = list(claims)
    own = tuple(Operand(left.pop(0), a.shape, a.dtype) if isinstance(a, T) else a for a in args)
    schema = op._schema.arguments
    named = {a.name: a.default_value for a in schema}
    named |= dict(zip((a.name for a in schema), own, strict=False))
    return Call(op, own, {}, named, shapes_of(op, args, {}), N)


def test_what_mixes() -> None:
    assert tried(call(aten.cumsum.default, T(N, 3), 1), (ROWS,), {}) is None
    why = tried(call(aten.cumsum.default, T(N, 3), 0), (ROWS,), {})
    assert why == "a sample's part is not what it is for that sample alone (2 samples)"


def test_what_is_a_sum() -> None:
    assert tried(call(aten.sum.dim_IntList, T(N, 3), [0]), (Partial(),), {}) is None
    for op in (aten.mean.dim, aten.amax.default):
        assert "not the sum" in str(tried(call(op, T(N, 3), [0]), (Partial(),), {}))
    shared = call(aten.add.Tensor, T(3), T(3), claims=(Partial(), Replicate()))
    assert tried(shared, (Partial(public=True),), {}) is None
    assert "not the sum" in str(tried(shared, (Partial(),), {}))


def test_rare_events() -> None:
    """Values that are equal are drawn, and results that hold no samples are never believed."""
    pairs = call(aten.isin.Tensor_Tensor, T(N, 3), T(N, 3), claims=(ROWS, ROWS))
    assert tried(pairs, (ROWS,), {}) is not None
    assert "made of samples" in str(tried(call(aten.any.dim, T(N), 0), (Replicate(),), {}))


def test_a_total_is_each_samples_own() -> None:
    """Of whoever has samples; so the batch is not compared with itself."""
    scaled = call(aten.mul.Tensor, T(2 * N, 3), T(), claims=(Shard(0, ONE * 2), Partial()))
    assert tried(scaled, (Shard(0, ONE * 2),), {}) is None
    assert tried(scaled, (ROWS,), {}) is not None


def test_counts() -> None:
    """The first ids of samples that lie in rows of two."""
    claim = Iota(0, ONE * 2, ONE * 3)
    doubled = call(aten.mul.Scalar, T(2 * N, ids=True), 2, claims=(claim,))
    assert tried(doubled, (Iota(0, ONE * 2, ONE * 6),), {}) is None
    assert tried(doubled, (claim,), {}) == "it does not count the samples (2 samples)"


@pytest.mark.parametrize(
    ("tried_call", "why"),
    [
        (call(aten.bernoulli.default, T(N, 3)), "draws random numbers"),
        (call(aten.cumsum.default, T(N, 3000000), 1), "too large"),
        (call(aten.linalg_cholesky.default, T(N, 3, 3)), "does not run"),
    ],
)  # fmt: skip
def test_what_is_not_tried(tried_call: Call, why: str) -> None:
    with pytest.raises(Untried, match=why):
        tried(tried_call, (ROWS,) * len(tried_call.shapes), {})


def test_a_size_that_is_not_known() -> None:
    """A symbol of which capture has no value."""
    sizes = (N, sympy.Symbol("u0"))
    x = Operand(ROWS, sizes, torch.float64)
    unknown = Call(aten.cumsum.default, (x, 1), {}, {"self": x, "dim": 1}, (sizes,), N)
    with pytest.raises(Untried, match="not known before the model runs"):
        tried(unknown, (ROWS,), {})
