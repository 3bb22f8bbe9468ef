"""Gradients streamed through memory that stays, against loops over samples."""

import gc
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxdp.forms import Conv, Outer
from fxdp.forms.conv import Spec
from fxdp.forms.streamed import part_of, tensors
from fxdp.mechanism.clipping import Automatic, Flat, Normalize
from fxdp.mechanism.clipping_rule import Clipping
from fxdp.mechanism.streaming import Rule, Stream, Streams, streamed
from tests.forms.loops import QUICK, drawn

BOUND = torch.tensor(0.7, dtype=torch.float64)


def outers(n: int, dtype: torch.dtype = torch.float64) -> list[Outer]:
    """Two linear layers, at three positions and at one."""
    sizes = ((3, 4, 5), (1, 2, 6))
    return [
        Outer(drawn(k, n, t, i, dtype=dtype), drawn(-k - 1, n, t, o, dtype=dtype))
        for k, (t, i, o) in enumerate(sizes)
    ]


def convolution(n: int) -> Conv:
    """In two groups, of stride 2, folded twice."""
    spec = Spec((4, 1, 3, 3), (2, 2), (1, 1), (1, 1), 2)
    x, g = drawn(3, n, 2, 2, 6, 6), drawn(4, n, 2, 4, 3, 3)
    return Conv(x.double(), g.double(), spec)


def given_to(
    forms: list[Any], rows: int, groups: list[int] | None = None, clipping: Clipping | None = None,
    rest: Tensor | None = None, counts: Tensor | None = None, dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """Squared norms, factors and clipped sums, by the op."""
    groups = groups or [0] * len(forms)
    k, n = max(groups) + 1, len(next(iter(tensors(forms[0]).values())))
    streams = Streams()
    rule = Rule(clipping or Flat(), (1 / math.sqrt(k),) * k, (0.0,) * k, dtype)
    parts = tuple(part_of(f, g) for f, g in zip(forms, groups, strict=True))
    number = streams.add(Stream(parts, rule, rows))
    squares, factors, *sums = streamed(
        [x for f in forms for x in tensors(f).values()],
        torch.zeros(k, n, dtype=torch.float64) if rest is None else rest,
        torch.ones(n).bool() if counts is None else counts,
        BOUND, streams.number, number,
    )  # fmt: skip
    return squares, factors, sums


def whole(
    forms: list[Any], groups: list[int] | None = None, clipping: Clipping | None = None,
    rest: Tensor | None = None, counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """The same with all samples' gradients at once, and factors by their formula."""
    groups = groups or [0] * len(forms)
    k = max(groups) + 1
    each = [f.per_sample() for f in forms]
    n = len(each[0])
    squares = torch.zeros(k, n, dtype=torch.float64) if rest is None else rest.clone()
    for g, own in zip(groups, each, strict=True):
        squares[g] += own.double().flatten(1).square().sum(1)
    rule = clipping or Flat()
    factors = rule.factor(squares.sqrt(), BOUND / math.sqrt(k))
    alive = squares.sum(0).isfinite() & (torch.ones(n).bool() if counts is None else counts)
    factors = torch.where(alive, factors, 0.0)
    sums = [
        torch.einsum("n,n...->...", factors[g][alive].to(own.dtype), own[alive])
        for g, own in zip(groups, each, strict=True)
    ]
    return squares, factors, sums


def same(got: tuple[Any, ...], want: tuple[Any, ...], rtol: float = 1e-9) -> None:
    for g, w in zip((*got[:2], *got[2]), (*want[:2], *want[2]), strict=True):
        torch.testing.assert_close(g.double(), w.double(), rtol=rtol, atol=1e-3 * rtol)


@QUICK
@given(st.integers(1, 7), st.integers(1, 9), st.booleans())
def test_any_number_at_a_time(n: int, rows: int, apart: bool) -> None:
    """One group, or one each."""
    forms = [*outers(n), convolution(n)]
    groups = [0, 1, 2] if apart else [0, 0, 0]
    same(given_to(forms, rows, groups), whole(forms, groups))


@pytest.mark.parametrize("clipping", [Flat(), Automatic(), Normalize()], ids=repr)
def test_every_way_to_clip(clipping: Clipping) -> None:
    forms = outers(5)
    same(given_to(forms, 2, clipping=clipping), whole(forms, clipping=clipping))


def test_other_parameters_count() -> None:
    forms, rest = outers(5), torch.rand(1, 5, dtype=torch.float64)
    same(given_to(forms, 2, rest=rest), whole(forms, rest=rest))


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("groups", [[0, 0], [0, 1]])
def test_a_sample_that_is_not_finite_adds_nothing(rows: int, bad: float, groups: list[int]) -> None:
    """In any group: also where another group's gradient is finite."""
    forms = outers(5)
    forms[1].a[3, 0, 1] = bad
    squares, factors, sums = given_to(forms, rows, groups)
    assert factors[:, 3].tolist() == [0.0] * len(factors)
    assert not squares.sum(0)[3].isfinite()
    kept = [0, 1, 2, 4]
    others = [Outer(f.a[kept], f.b[kept]) for f in forms]
    _, _, wanted = whole(others, groups)
    for got, want in zip(sums, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_another_parameter_that_is_not_finite() -> None:
    forms, rest = outers(5), torch.zeros(1, 5, dtype=torch.float64)
    rest[0, 2] = math.nan
    _, factors, sums = given_to(forms, 2, rest=rest)
    _, wanted, clipped = whole(forms, rest=rest)
    torch.testing.assert_close(factors, wanted)
    for got, want in zip(sums, clipped, strict=True):
        torch.testing.assert_close(got, want)


def test_what_does_not_count_adds_nothing() -> None:
    forms, counts = outers(5), torch.tensor([True, False, True, True, False])
    same(given_to(forms, 3, counts=counts), whole(forms, counts=counts))
    _, factors, sums = given_to(forms, 3, counts=torch.zeros(5).bool())
    assert not factors.any()
    assert not any(s.any() for s in sums)


def test_memory_with_numbers_of_earlier_samples() -> None:
    """What a muted sample left behind in the memory is not taken for the next one's."""
    forms = outers(4)
    forms[0].b[0] = math.inf
    _, _, sums = given_to(forms, 1)
    assert all(s.isfinite().all() for s in sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_operands(dtype: torch.dtype) -> None:
    """Halves are computed with in float32."""
    forms = outers(4, dtype)
    got = given_to(forms, 2, dtype=torch.float32)
    assert {s.dtype for s in got[2]} == {got[1].dtype} == {torch.float32}
    same(got, whole([Outer(f.a.double(), f.b.double()) for f in forms]), 1e-5)


def test_two_dtypes() -> None:
    forms = [outers(4)[0], outers(4, torch.float32)[1]]
    got = given_to(forms, 2)
    assert [s.dtype for s in got[2]] == [torch.float64, torch.float32]
    same(got, whole([forms[0], Outer(forms[1].a.double(), forms[1].b.double())]), 1e-5)


def test_what_is_added_is_what_was_measured() -> None:
    """Positions that cancel leave what rounding left; its norm is measured, and no more added."""
    a = torch.randn(2, 1, 8).repeat(1, 2, 1) * 1e4
    b = torch.randn(2, 1, 8).repeat(1, 2, 1) * 1e4
    b[:, 1] *= -1 + 2e-7
    squares, factors, (total,) = given_to([Outer(a, b)], 1, dtype=torch.float32)
    reach = (squares.sqrt() * factors).sum()
    assert float(total.norm()) <= float(reach) * 1.00001


def test_memory_stays_with_its_module() -> None:
    streams = Streams()
    first = streams.room(torch.float32, 10)
    assert streams.room(torch.float32, 4).data_ptr() == first.data_ptr()
    assert len(streams.room(torch.float32, 11)) == 11


def test_a_module_that_is_gone() -> None:
    streams = Streams()
    owner = streams.number
    del streams
    gc.collect()
    with pytest.raises(RuntimeError, match="does not exist any more"):
        streamed([], torch.zeros(1, 2), torch.ones(2).bool(), BOUND, owner, 0)


def test_no_samples() -> None:
    squares, factors, sums = given_to(outers(0), 2)
    assert squares.shape == factors.shape == (1, 0)
    assert not any(s.any() for s in sums)
