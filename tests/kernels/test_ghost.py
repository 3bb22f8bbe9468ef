"""Ghost norms in pieces are those of the whole matrices."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fxdp.forms import Conv, Outer, Tied
from fxdp.forms.conv import Spec
from fxdp.kernels import ghost
from fxdp.kernels.ghost import ghost_outer, ghost_outers, pairs, products, spans


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("t", [0, 1, 3, 63, 64, 65, 200])
def test_pieces_add_up(n: int, t: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ghost, "CACHED", 2 * max(t, 1) * ghost.ROWS)  # two samples at a time
    a, b = (torch.randn(n, t, k, dtype=torch.double) for k in (4, 7))
    wanted = torch.einsum("nti,nto->nio", a, b).square().sum((1, 2))
    torch.testing.assert_close(ghost_outer(a, b), wanted)


def test_one_matrix_for_several_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, each as if it were alone."""
    monkeypatch.setattr(ghost, "ROWS", 3)
    a, *others = (torch.randn(4, 7, k, dtype=torch.double) for k in (3, 5, 2, 3))
    found = ghost_outers(a, others)
    wanted = torch.stack([ghost_outer(b, a) for b in others])
    torch.testing.assert_close(found, wanted)


def test_operands_may_be_views() -> None:
    a, b = torch.randn(9, 4, 5, dtype=torch.double), torch.randn(6, 5, 9, dtype=torch.double)
    a, b = a.permute(1, 0, 2), b.permute(1, 2, 0)[:4]  # no operand is contiguous
    wanted = torch.einsum("nti,nto->nio", a, b).square().sum((1, 2))
    torch.testing.assert_close(ghost_outer(a, b), wanted)


@pytest.mark.parametrize(("size", "most"), [(0, 3), (1, 3), (7, 3), (9, 3), (64, 64), (65, 64)])
def test_spans(size: int, most: int) -> None:
    """Equal parts, side by side, none too large."""
    found = spans(size, most)
    assert [k for start, stop in found for k in range(start, stop)] == list(range(size))
    lengths = [stop - start for start, stop in found]
    assert not lengths or (max(lengths) <= most and max(lengths) - min(lengths) <= 1)


def cancelling(spread: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Positions of which one half undoes the other, but for a part of them: [64, T, i], [.., o]."""
    g = torch.Generator().manual_seed(0)
    sign = torch.ones(100, 1)
    sign[50:] = -1
    a = torch.rand(64, 1, 30, generator=g) + spread * torch.randn(64, 100, 30, generator=g)
    return a.to(dtype), (torch.rand(64, 1, 5, generator=g) * sign).to(dtype)


def norms_of(form: Any) -> Tensor:
    """[N], computed for each sample in float64."""
    wide = {
        k: v.double()
        for k, v in vars(form).items()
        if isinstance(v, Tensor) and v.is_floating_point()
    }
    return replace(form, **wide).sq_norm("instantiate").sqrt()


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 0.0])
@pytest.mark.parametrize("kind", ["op", "functions", "windows", "tied"])
def test_no_norm_is_less_than_it_is(kind: str, spread: float) -> None:
    """Whatever cancels. Nor is it more by much, as a share of what cancels."""
    a, b = cancelling(spread, torch.float32)
    form: Any = Outer(a, b)
    if kind == "functions":
        form = Outer(a.unsqueeze(1), b.unsqueeze(1))
    if kind == "windows":
        spec = Spec((5, 30, 1), (1,), (0,), (1,), 1)
        form = Conv(a.transpose(1, 2).unsqueeze(1), b.transpose(1, 2).unsqueeze(1), spec)
    if kind == "tied":  # the lookup undoes the head, whose rows are the ids
        z = torch.nn.functional.one_hot(torch.arange(100) % 7, 9).float().expand(64, -1, -1)
        form = Tied(z, a, (torch.arange(100) % 7).expand(64, -1), -a.roll(7, 1))
    found, true = form.sq_norm("ghost").sqrt().double(), norms_of(form)
    assert (found >= true * (1 - 1e-6)).all()
    gross = a.norm(dim=-1) * (b if kind != "tied" else 2 * torch.ones_like(b)).norm(dim=-1)
    assert (found <= true * (1 + 1e-6) + 2e-3 * gross.sum(-1)).all()


def test_the_slack_is_more_than_any_error() -> None:
    """Of operands that are made to cancel, in many shapes: three times as much as is found."""
    found = 0.0
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        t, i, o = (int(torch.randint(2, most, (), generator=g)) for most in (200, 1500, 600))
        sign = 1.0 - 2.0 * (torch.randperm(t, generator=g) < t // 2).float()
        spread = 10.0 ** (-6 * float(torch.rand((), generator=g)))
        a = torch.rand(2, 1, i, generator=g) + spread * torch.randn(2, t, i, generator=g)
        b = torch.rand(2, 1, o, generator=g) * sign.view(1, t, 1)
        square, gross = products(pairs(a, 0, t, 0, t), pairs(b, 0, t, 0, t))
        error = (square.double() - norms_of(Outer(a, b)).square()).abs() / gross.double().square()
        found = max(found, float(error.max()) / 2**-24)
    assert 0.5 < found < ghost.SLACK / 2


@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e-15, 1.0])
@pytest.mark.parametrize("shape", [(1, 3, 4), (7, 3, 4), (2, 7, 3, 4)])
def test_squares_that_underflow(scale: float, shape: tuple[int, ...]) -> None:
    """Whichever operand is small, and the other makes up for it; one whose squares overflow has a
    norm that is no number, and the sample counts for nothing."""
    a = torch.randn(5, *shape[:-1]) * scale
    b = torch.randn(5, *shape[:-2], shape[-1]) / scale
    for one, other in ((a, b), (b, a)):
        form = Outer(one, other)
        found = form.sq_norm("ghost").sqrt().double()
        assert not (found < norms_of(form) * (1 - 1e-5)).any()
        assert scale < 1e-18 or (found < norms_of(form) * 1.01).all()


def test_both_operands_small() -> None:
    """A norm of 0 where nothing is left, and it is added to (`fxdp.passes.measure`)."""
    form = Outer(torch.randn(5, 130, 3) * 1e-30, torch.randn(5, 130, 4) * 1e-5)
    assert (form.sq_norm("ghost").sqrt() < 1e-15).all()
    assert (form.sq_norm("ghost").sqrt().double() >= norms_of(form) * (1 - 1e-5)).all()
