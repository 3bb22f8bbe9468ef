"""Sums over rows that belong to samples."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fxdp.forms import Outer, Segmented
from tests.forms.loops import QUICK, drawn, hold


@QUICK
@given(st.integers(1, 4), st.integers(0, 6), st.integers(0, 9))
def test_rows_are_added_up_for_each_sample(n: int, rows: int, seed: int) -> None:
    owner = torch.randint(n, (rows,), generator=torch.Generator().manual_seed(seed))
    a, b = drawn(seed, rows, 2, 3), drawn(seed + 1, rows, 2, 4)
    wanted = torch.zeros(n, 3, 4, dtype=a.dtype)
    for row, sample in enumerate(owner.tolist()):
        wanted[sample] += a[row].T @ b[row]
    hold(Segmented(Outer(a, b), owner, n), wanted)


def test_the_rows_of_a_sample_with_factor_zero_are_silent() -> None:
    owner = torch.tensor([1, 0, 1, 2])
    a, b = drawn(0, 4, 1, 3), drawn(1, 4, 1, 4)
    factor = torch.tensor([1.0, 0.0, 0.5], dtype=a.dtype)
    want = Segmented(Outer(a, b), owner, 3).total(factor)
    a[0], b[2] = torch.nan, torch.inf
    form = Segmented(Outer(a, b), owner, 3)
    assert torch.equal(form.total(factor), want)
    assert form.sq_norm().isfinite().tolist() == [True, False, True]
