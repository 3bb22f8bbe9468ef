"""Sums of outer products."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxdp.forms import Outer
from fxdp.kernels.clipped_sum import squared_norms, weighed_sums
from tests.forms.loops import DTYPES, QUICK, close, drawn, hold, silent

size = st.integers(1, 4)


def loop(form: Outer) -> torch.Tensor:
    """[N, ..., i, o]"""
    return torch.stack([a.transpose(-2, -1) @ b for a, b in zip(form.a, form.b, strict=True)])


@QUICK
@given(st.integers(1, 4), size, size, size, st.sampled_from(DTYPES))
def test_linear(n: int, t: int, i: int, o: int, dtype: torch.dtype) -> None:
    form = Outer(drawn(1, n, t, i, dtype=dtype), drawn(2, n, t, o, dtype=dtype))
    hold(form, loop(form))
    hold(form.transposed(), loop(form).transpose(-2, -1))


@QUICK
@given(st.integers(1, 3), size, size, size, size)
def test_leading_axes(n: int, lead: int, t: int, i: int, o: int) -> None:
    form = Outer(drawn(1, n, lead, t, i), drawn(2, n, lead, t, o))
    hold(form, loop(form))


@QUICK
@given(st.lists(size, min_size=1, max_size=3), size, size)
def test_joined_uses_of_one_weight(lengths: list[int], i: int, o: int) -> None:
    forms = [Outer(drawn(k, 3, t, i), drawn(-k - 1, 3, t, o)) for k, t in enumerate(lengths)]
    wanted = torch.stack([loop(f) for f in forms]).sum(0)
    hold(Outer.joined(forms), wanted)


@pytest.mark.parametrize("strategy", Outer.strategies)
@pytest.mark.parametrize("t", [1, 3])
def test_no_samples(strategy: str, t: int) -> None:
    form = Outer(torch.zeros(0, t, 2), torch.zeros(0, t, 3))
    if strategy == "multi":
        pytest.skip("torch.vmap takes no empty batch; steps are padded to two rows")
    assert form.per_sample(strategy).shape == (0, 2, 3)
    assert form.sq_norm(strategy).shape == (0,)
    assert torch.equal(form.total(torch.ones(0)), torch.zeros(2, 3))


@pytest.mark.parametrize("lead", [(), (2,)])
def test_factor_zero_is_silence(lead: tuple[int, ...]) -> None:
    silent(Outer, drawn(1, 3, *lead, 2, 4), drawn(2, 3, *lead, 2, 5))


def test_norms_of_halves_are_worked_out_wide() -> None:
    form = Outer(drawn(1, 2, 3, 4).half() * 300, drawn(2, 2, 3, 4).half() * 300)
    assert form.sq_norm("ghost").dtype == torch.float32
    assert form.sq_norm("ghost").isfinite().all()
    close(form.sq_norm("ghost"), loop(Outer(form.a.float(), form.b.float())).square().sum((1, 2)))


def test_positions_may_come_first() -> None:
    """As a recurrent layer has them: then no operand is copied, and the sum is the same."""
    a, b = drawn(1, 5, 3, 4).transpose(0, 1), drawn(2, 5, 3, 6).transpose(0, 1)
    hold(Outer(a, b), loop(Outer(a, b)))
    hold(Outer(a, b.contiguous()), loop(Outer(a, b)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_sums_at_once(dtype: torch.dtype) -> None:
    """The ops for biases and scales, and what a factor of 0 mutes."""
    xs = [drawn(k, 4, *shape, dtype=dtype) for k, shape in enumerate(((), (3,), (2, 3, 2)))]
    close(squared_norms(xs), torch.stack([x.reshape(4, -1).square().sum(1) for x in xs]))
    factor = torch.tensor([0.5, 0.0, 2.0, 1.0])
    wanted = [torch.einsum("n,n...->...", factor.to(dtype), x) for x in xs]
    for x in xs:
        x[1] = torch.inf
    for got, want in zip(weighed_sums(xs, factor), wanted, strict=True):
        close(got, want)
