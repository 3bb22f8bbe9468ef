"""Ghost norms over pairs of tiles are those of float64, and never less."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from fxdp.kernels import ghost as ops
from fxdp.kernels.triton import ghost as kernels
from fxdp.kernels.triton.ghost import CHAIN, ghost, slack
from fxdp.kernels.triton.tiles import Tiles

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def squares(a: Tensor, b: Tensor) -> Tensor:
    """[N] squared norms, in float64."""
    return torch.einsum("nti,nto->nio", a.double(), b.double()).square().sum((1, 2))


def gross(a: Tensor, b: Tensor) -> Tensor:
    """[N] sums of |a_t| |b_t|."""
    return (a.double().norm(dim=2) * b.double().norm(dim=2)).sum(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(0, 3, 4, 5), (1, 1, 1, 1), (2, 0, 3, 4), (3, 16, 32, 10), (2, 67, 40, 5)]
)
def test_ragged_edges(device: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    """No less than the square, and no more than the slack above it."""
    n, t, d, p = shape
    a, b = (torch.randn(n, t, k, device=device).to(dtype) for k in (d, p))
    found, true = ghost(a, [b])[0], squares(a, b)
    assert found.dtype == torch.float32
    most = true * (1 + 1e-6) + 2 * slack(d, p) * gross(a, b).square() + 1e-30
    assert (found >= true * (1 - 1e-6)).all()
    assert (found <= most).all()


def test_one_position(device: str) -> None:
    """A product of lengths, to the last bit but one, of a few vectors and of one common to them."""
    a = torch.randn(5, 1, 300, device=device).bfloat16()
    others = [torch.randn(5, 1, p, device=device) for p in (7, 257, 1)]
    others[1] = others[1].half()
    wanted = torch.stack([squares(a, b) for b in others])
    torch.testing.assert_close(ghost(a, others).double(), wanted, rtol=1e-7, atol=0)
    a[2, 0, 299] = float("nan")
    assert ghost(a, others)[0].isfinite().tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("t", [1, 20, 70])
def test_float32_numbers_of_many_positions(
    device: str, t: int, dtypes: tuple[torch.dtype, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their norms are cuBLAS's, of a few rows of their matrices at a time; all others Triton's."""
    monkeypatch.setattr(ops, "FEW", 50)
    monkeypatch.setattr(ops, "CUDA_ROWS", 30)
    used: list[int] = []
    monkeypatch.setattr(kernels, "ghost", lambda *x: used.append(t) or ghost(*x))
    a, b = (
        torch.randn(3, t, k, device=device).to(of) for k, of in zip((6, 4), dtypes, strict=True)
    )
    found = ops.on_a_device(a, [b, b[..., 1:]]).double()
    wanted = torch.stack([squares(a, b), squares(a, b[..., 1:])])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)
    assert bool(used) == (t < 50 or torch.bfloat16 in dtypes)


def test_long_sums_of_float32_numbers(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two positions, many times, whose scalar products are rounded in ways of their own: what is
    added for it is twice as much as is found."""
    monkeypatch.setattr(ops, "FEW", 50)
    monkeypatch.setattr(ops, "rounded_up", lambda square, gross, lost: square)
    found = 0.0
    for seed in range(20 if device == "cuda" else 3):
        g = torch.Generator().manual_seed(seed)
        one, other = torch.rand(2, 1, 1, 4096, generator=g)
        a = torch.cat([one.expand(1, 64, -1), one.lerp(other, 1e-3).expand(1, 64, -1)], 1)
        b = torch.rand(1, 1, 512, generator=g).expand(1, 128, -1).clone()
        b[:, 64:] *= -1
        a, b = a.to(device), b.to(device)
        square = ops.on_a_device(a, [b])[0].double()
        found = max(found, float(((square - squares(a, b)).abs() / gross(a, b) ** 2).max()))
    assert found < (ops.SLACK + (4096 + 512) ** 0.5) * 2**-24 / 2


def test_many_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair of tiles is found, and counted once on the diagonal and twice below it."""
    small = Tiles(16, 16, 16, warps=4, stages=2)
    monkeypatch.setattr(kernels, "of_grams", lambda *_: small)
    a, b = torch.randn(2, 70, 3, device=device), torch.randn(2, 70, 20, device=device)
    torch.testing.assert_close(ghost(a, [b])[0].double(), squares(a, b), rtol=1e-3, atol=0)


def test_several_norms_of_one_matrix(device: str) -> None:
    """In order, in dtypes, sizes and layouts of their own, and more than one program takes."""
    a = torch.randn(19, 2, 9, device=device).transpose(0, 1)  # steps first
    others = [torch.randn(2, 19, p, device=device) for p in (7, 1, 20, 3, 4)]
    others[1] = others[1].bfloat16()
    others[2] = torch.randn(2, 20, 19, device=device).half().transpose(1, 2)
    others[3] = torch.randn(2, 1, 3, device=device).expand(2, 19, 3)
    wanted = torch.stack([squares(a, b) for b in others])
    torch.testing.assert_close(ghost(a, others).double(), wanted, rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_that_is_no_number(device: str, bad: float) -> None:
    """Its norm is none, wherever it stands, and the others' are what they were."""
    a, b = torch.randn(4, 70, 3, device=device), torch.randn(4, 70, 5, device=device)
    true = squares(a, b)
    a[1, 69, 2], b[2, 0, 0] = bad, bad
    found = ghost(a, [b])[0]
    assert found.isfinite().tolist() == [True, False, False, True]
    torch.testing.assert_close(found[::3].double(), true[::3], rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [1e-1, 1e-3, 0.0])
def test_no_norm_is_less_than_it_is(device: str, dtype: torch.dtype, spread: float) -> None:
    """Of positions of which one half undoes the other, but for a part of them."""
    sign = torch.ones(70, 1, device=device)
    sign[35:] = -1
    a = torch.rand(6, 1, 30, device=device) + spread * torch.randn(6, 70, 30, device=device)
    a, b = a.to(dtype), (torch.rand(6, 1, 5, device=device) * sign).to(dtype)
    found, true = ghost(a, [b])[0].double().sqrt(), squares(a, b).sqrt()
    assert (found >= true * (1 - 1e-6)).all()
    assert (found <= true * (1 + 1e-6) + 2e-3 * gross(a, b)).all()


def test_the_slack_is_more_than_any_error(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of operands that are made to cancel, in many shapes: twice as much as is found."""
    monkeypatch.setattr(kernels, "slack", lambda *_: 0.0)
    found, most = 0.0, 1500 if device == "cuda" else 300
    for seed in range(60 if device == "cuda" else 6):
        g = torch.Generator().manual_seed(seed)
        t, d, p = (int(torch.randint(2, k, (), generator=g)) for k in (130, most, most // 2))
        sign = 1.0 - 2.0 * (torch.randperm(t, generator=g) < t // 2).float()
        spread = 10.0 ** (-6 * float(torch.rand((), generator=g)))
        a = torch.rand(2, 1, d, generator=g) + spread * torch.randn(2, t, d, generator=g)
        b = torch.rand(2, 1, p, generator=g) * sign.view(1, t, 1)
        for dtype in (torch.float32, torch.bfloat16):
            x, y = a.to(device, dtype), b.to(device, dtype)
            error = (ghost(x, [y])[0].double() - squares(x, y)).abs() / gross(x, y).square()
            found = max(found, float(error.max()) / 2**-24)
    assert 0.01 < found < kernels.SLACK / 2


def cut_off(x: Tensor, step: int) -> Tensor:
    """The sum of x [D], each `step` of them 16 at a time by a tensor core as it may be: all that it
    adds, and the sum, cut off behind 24 bits."""

    def cut(y: Tensor) -> Tensor:
        part, power = torch.frexp(y)
        return torch.ldexp((part * 2**24).trunc(), power - 24)

    total = torch.zeros(())
    for chunk in x.split(step):
        own = torch.zeros((), dtype=torch.double)
        for few in chunk.split(16):
            own = cut(own + cut(few.sum()))
        total = total + own.float()
    return total.double()


def test_tensor_cores_cut_sums_off() -> None:
    """Along a whole axis that is more than the slack; by as much as makes a sum here, it is not."""
    d, p = 16384, 4096
    x, y = (torch.rand(k).bfloat16().double().square() for k in (d, p))
    true, step = x.sum() * y.sum(), CHAIN
    assert abs(cut_off(x, step) * cut_off(y, step) / true - 1) < slack(d, p) / 2
    assert abs(cut_off(x, d) * cut_off(y, p) / true - 1) > slack(d, p)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_along_a_long_axis(
    device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cut off does not add up along it: all products have one sign."""
    monkeypatch.setattr(kernels, "slack", lambda *_: 0.0)
    d, p = (16384, 4096) if device == "cuda" else (1100, 600)
    a, b = (torch.rand(3, 17, k, device=device).to(dtype) for k in (d, p))
    error = (ghost(a, [b])[0].double() - squares(a, b)).abs() / gross(a, b).square()
    monkeypatch.undo()
    assert error.max() < slack(d, p) / 2


@pytest.mark.parametrize("t", [1, 7])
@pytest.mark.parametrize("scale", [1e-25, 1e-20, 1e-15])
def test_squares_that_underflow(device: str, scale: float, t: int) -> None:
    """Whichever operand is small, and the other makes up for it."""
    a, b = torch.randn(5, t, 3, device=device) * scale, torch.randn(5, t, 4, device=device) / scale
    for one, other in ((a, b), (b, a)):
        found, true = ghost(one, [other])[0].double().sqrt(), squares(one, other).sqrt()
        assert not (found < true * (1 - 1e-5)).any()
        assert scale < 1e-18 or (found < true * 1.01).all()


def test_no_matrix_is_stored(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored beside the operands are a few numbers for each pair of tiles."""
    stored: list[int] = []
    empty = Tensor.new_empty

    def counted(x: Tensor, *size: int, **how: torch.dtype) -> Tensor:
        found = empty(x, *size, **how)
        stored.append(found.numel())
        return found

    monkeypatch.setattr(Tensor, "new_empty", counted)
    ghost(torch.randn(2, 130, 3, device=device), [torch.randn(2, 130, 4, device=device)])
    assert stored
    assert sum(stored) < 130
