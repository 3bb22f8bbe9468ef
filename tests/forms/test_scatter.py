"""Rows added up at ids."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxdp.forms import Scatter
from tests.forms.loops import DTYPES, QUICK, drawn, hold, silent

size = st.integers(1, 4)


def ids_of(seed: int, n: int, t: int, rows: int) -> torch.Tensor:
    return torch.randint(rows, (n, t), generator=torch.Generator().manual_seed(seed))


def loop(form: Scatter) -> torch.Tensor:
    """[N, rows, d]"""
    out = torch.zeros(form.g.shape[0], form.rows, form.g.shape[-1], dtype=form.g.dtype)
    for n, (ids, rows) in enumerate(zip(form.ids, form.g, strict=True)):
        for i, row in zip(ids, rows, strict=True):
            out[n, i] += row
    return out


@QUICK
@given(st.integers(0, 4), st.integers(1, 6), size, size, st.sampled_from(DTYPES))
def test_every_strategy(n: int, t: int, d: int, rows: int, dtype: torch.dtype) -> None:
    """Few rows and many positions: ids repeat."""
    form = Scatter(ids_of(3, n, t, rows), drawn(1, n, t, d, dtype=dtype), rows)
    hold(form, loop(form))


@QUICK
@given(st.lists(size, min_size=1, max_size=3))
def test_joined_lookups_of_one_table(lengths: list[int]) -> None:
    forms = [Scatter(ids_of(k, 3, t, 3), drawn(k, 3, t, 2), 3) for k, t in enumerate(lengths)]
    hold(Scatter.joined(forms), torch.stack([loop(f) for f in forms]).sum(0))


@pytest.mark.parametrize("t", [1, 4])
def test_factor_zero_is_silence(t: int) -> None:
    ids = ids_of(3, 3, t, 3)
    silent(lambda g: Scatter(ids, g, 3), drawn(1, 3, t, 2))
