"""A table that is also a head."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxdp.forms import Conv, Outer, Scatter, Tied, joined
from fxdp.forms.conv import Spec
from tests.forms.loops import DTYPES, QUICK, close, drawn, hold, silent

size = st.integers(1, 4)


def ids_of(seed: int, n: int, t: int, rows: int) -> torch.Tensor:
    return torch.randint(rows, (n, t), generator=torch.Generator().manual_seed(seed))


def tied(n: int, t: int, s: int, d: int, rows: int, dtype: torch.dtype = torch.float64) -> Tied:
    head = drawn(2, n, s, rows, dtype=dtype), drawn(4, n, s, d, dtype=dtype)
    return Tied(*head, ids_of(3, n, t, rows), drawn(1, n, t, d, dtype=dtype))


def loop(form: Tied) -> torch.Tensor:
    """[N, v, d]"""
    out = torch.zeros(len(form.z), form.rows, form.h.shape[-1], dtype=form.z.dtype)
    for n in range(len(form.z)):
        for z, h in zip(form.z[n], form.h[n], strict=True):
            out[n] += torch.outer(z, h)
        for i, row in zip(form.ids[n], form.g[n], strict=True):
            out[n, i] += row
    return out


@QUICK
@given(st.integers(0, 3), size, size, size, size, st.sampled_from(DTYPES))
def test_every_strategy(n: int, t: int, s: int, d: int, rows: int, dtype: torch.dtype) -> None:
    """Few rows and many positions: ids repeat."""
    form = tied(n, t, s, d, rows, dtype)
    hold(form, loop(form))


@QUICK
@given(st.integers(1, 3), size, size, size, size)
def test_cross_term(n: int, t: int, s: int, d: int, rows: int) -> None:
    form = tied(n, t, s, d, rows)
    close(form.cross(), (form.table.per_sample() * form.head.per_sample()).sum((1, 2)))


@pytest.mark.parametrize("t", [1, 4])
def test_factor_zero_is_silence(t: int) -> None:
    form = tied(3, t, 2, 2, 3)
    silent(lambda g: Tied(form.z, form.h, form.ids, g), drawn(1, 3, t, 2))
    silent(lambda z: Tied(z, form.h, form.ids, form.g), drawn(1, 3, 2, 3))
    silent(lambda h: Tied(form.z, h, form.ids, form.g), drawn(1, 3, 2, 2))


def test_what_is_joined() -> None:
    outer = Outer(drawn(1, 3, 2, 5), drawn(2, 3, 2, 4))
    scatter = Scatter(ids_of(1, 3, 2, 5), drawn(3, 3, 2, 4), 5)
    conv = Conv(drawn(1, 3, 1, 2, 8), drawn(2, 3, 1, 4, 7), Spec((4, 2, 2), (1,), (0,), (1,), 1))
    each = [f.per_sample() for f in (outer, scatter)]
    assert joined([conv]) is conv
    close(joined([outer, outer]).per_sample(), 2 * each[0])
    close(joined([scatter, scatter]).per_sample(), 2 * each[1])
    both = joined([outer, scatter, outer])
    assert isinstance(both, Tied)
    close(both.per_sample(), 2 * each[0] + each[1])
    assert joined([conv, conv]) is None
    assert joined([outer, conv]) is None


def test_many_heads_are_not_tied_to_a_table() -> None:
    many = Outer(drawn(1, 3, 2, 2, 5), drawn(2, 3, 2, 2, 4))
    assert joined([many, Scatter(ids_of(1, 3, 2, 5), drawn(3, 3, 2, 4), 5)]) is None
