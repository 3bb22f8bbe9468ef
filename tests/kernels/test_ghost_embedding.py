"""Norms of lookups: what has one id is added up before it is squared."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxdp.forms import Scatter
from fxdp.kernels.ghost_embedding import segment_squares, segments
from tests.forms.loops import QUICK, drawn


@QUICK
@given(st.integers(0, 4), st.integers(1, 9), st.integers(1, 5))
def test_equal_ids_have_equal_numbers(n: int, length: int, rows: int) -> None:
    """And different ids different ones, below the length."""
    ids = torch.randint(rows, (n, length), generator=torch.manual_seed(n))
    found = segments(ids)
    same = ids.unsqueeze(1) == ids.unsqueeze(2)
    assert torch.equal(found.unsqueeze(1) == found.unsqueeze(2), same)
    assert ((found >= 0) & (found < length)).all()


def test_a_sample_that_is_infinite_is_alone_in_that() -> None:
    """Samples have rows of their own, so that nothing of one is added to another's."""
    ids, g = torch.zeros(3, 4, dtype=torch.long), drawn(0, 3, 4, 2)
    g[1, 2] = torch.inf
    found = segment_squares(ids, g)
    assert torch.isinf(found).tolist() == [False, True, False]
    want = g[[0, 2]].sum(1).square().sum(1)
    torch.testing.assert_close(found[[0, 2]], want)


def test_it_does_not_cancel() -> None:
    """What is added up first is not the small difference of large products."""
    one = torch.tensor([1.0, 1e-4], dtype=torch.float32)
    g = torch.stack([1e4 * one, -1e4 * one, one]).unsqueeze(0)
    ids = torch.zeros(1, 3, dtype=torch.long)
    want = one.double().square().sum()
    found = segment_squares(ids, g).double()
    torch.testing.assert_close(found, want.unsqueeze(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("length", [2, 7])
def test_without_the_op(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other devices have no op: the same functions are traced."""
    form = Scatter(torch.arange(3 * length).reshape(3, length) % 3, drawn(1, 3, length, 2), 3)

    def norms() -> Tensor:
        return form.sq_norm("ghost")

    with_op = norms()
    monkeypatch.setattr("fxdp.forms.scatter.has_ops", lambda *_: False)
    assert torch.equal(norms(), with_op)
    assert torch.allclose(with_op, form.sq_norm("instantiate"))
