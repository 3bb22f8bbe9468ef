"""Plain sums over samples, and tensors that know where their samples are."""

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxdp.forms import Reduce
from fxdp.forms.batch import Batch, sq_sum
from fxdp.placement import Shard
from tests.forms.loops import DTYPES, QUICK, drawn, hold, silent


@QUICK
@given(st.integers(0, 4), st.lists(st.integers(1, 3), max_size=3), st.sampled_from(DTYPES))
def test_every_shape(n: int, shape: list[int], dtype: torch.dtype) -> None:
    x = drawn(1, n, *shape, dtype=dtype)
    hold(Reduce(x), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_summed_is_no_longer_than_what_was_measured(dtype: torch.dtype) -> None:
    """Measured before it was rounded and summed afterwards, as generated code may do."""
    half = torch.finfo(dtype).eps / 2
    exact = torch.tensor([[1 + half * 1.001]])
    rounded = exact.to(dtype)
    measured = Reduce(rounded).sq_norm() * (exact / rounded.float()).square().squeeze(1)
    assert float(measured.sqrt()) >= float(rounded) * (1 - 1e-6)
    if dtype == torch.float32:
        assert torch.equal(Reduce(exact).sq_norm(), exact.square().squeeze(1))


def test_factor_zero_is_silence() -> None:
    silent(Reduce, drawn(1, 3, 2, 4))


@QUICK
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_batches_are_taken_apart(n: int, outer: int, inner: int, dim: int) -> None:
    """`kept` gives the local values; the others the same with the positions elsewhere."""
    shape = [2, 3, 4]
    shape[dim] = outer * inner
    each = [drawn(i, *shape) for i in range(n)]
    split = [x.unflatten(dim, (outer, inner)) for x in each]
    whole = torch.stack(split, dim + 1).flatten(dim, dim + 2)
    batch = Batch(whole, Shard(dim, sympy.Integer(inner)), n)
    wanted = torch.stack(each)
    assert torch.equal(batch.kept(), wanted)
    assert torch.equal(batch.samples_first(), wanted.movedim(dim + 1, 1))
    assert torch.equal(batch.positions(), wanted.movedim(dim + 1, 1).movedim(1, -2))


def test_norms_of_many_numbers() -> None:
    """Three million of one sample: summed up at once in float32, their norm is too small."""
    each = drawn(0, 1, 3000, 1000, dtype=torch.float32)
    want = each.double().square().sum().sqrt()
    assert abs(float(sq_sum(each).sqrt().double() / want - 1)) < 1e-6
