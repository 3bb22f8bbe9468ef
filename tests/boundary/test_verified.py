"""`fxdp.verify` takes a model as it is: in its mode, in its precision, with one sample."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxdp
from fxdp.forms.outer import Outer


class Scaled(nn.Module):
    """A parameter without axes, and one without elements."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.double))
        self.none = nn.Parameter(torch.zeros(0, dtype=torch.double))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.none.sum()


def normed() -> nn.Module:
    """Batch norm with constants, below a part that trains with dropout."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[1].eval()
    return model.double()


def data(n: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, 4, dtype=torch.double), torch.randint(3, (n,))


def test_a_parameter_without_axes() -> None:
    found = fxdp.verify(Scaled(), *data(), loss_fn=F.cross_entropy)
    assert found, str(found)
    assert "scale" in {f.parameter for f in found.findings}


@pytest.mark.parametrize("whole", [True, False])
def test_batch_norm_in_eval(whole: bool) -> None:
    """Each submodule in its own mode, which it still has afterwards."""
    model = normed()
    model.train(not whole)
    model[1].eval()
    modes = [m.training for m in model.modules()]
    found = fxdp.verify(model, *data(), loss_fn=F.cross_entropy)
    assert found, str(found)
    assert [m.training for m in model.modules()] == modes


def test_batch_norm_in_train_is_refused() -> None:
    """By the proof, and not by batch norm, which does not take one sample."""
    with pytest.raises(fxdp.BatchMixingError, match="batch_norm"):
        fxdp.verify(normed().train(), *data(), loss_fn=F.cross_entropy)


@pytest.mark.parametrize("training", [True, False])
def test_spectral_norm(training: bool) -> None:
    """Its vectors move with each step in training: every run begins with those of now."""
    model = parametrizations.spectral_norm(nn.Linear(4, 3)).double().train(training)
    before = [b.clone() for b in model.buffers()]
    found = fxdp.verify(model, *data(), loss_fn=F.cross_entropy)
    assert found, str(found)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def halves() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 3)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.bfloat16, 1e-3), (torch.bfloat16, 1e3), (torch.float16, 1.0)]
)
def test_half_precision(dtype: torch.dtype, scale: float) -> None:
    """Small and large gradients alike."""
    model, (_, y) = halves().to(dtype), data(8)
    x = torch.randn(8, 64).to(dtype)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out.float(), y) * scale

    assert (found := fxdp.verify(model, x, y, loss_fn=loss)), str(found)


def test_autocast() -> None:
    """Parameters are float32, and what is computed is not."""
    x = torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = fxdp.verify(halves(), x, data(8)[1], loss_fn=F.cross_entropy)
    assert found, str(found)


@pytest.mark.parametrize("spoil", [lambda g: g * 1.5, lambda g: g.flip(0)])
def test_a_wrong_kernel_is_found_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor]
) -> None:
    true = Outer.per_sample
    monkeypatch.setattr(Outer, "per_sample", lambda self, *how: spoil(true(self, *how)))
    x = torch.randn(8, 64).bfloat16()
    found = fxdp.verify(nn.Linear(64, 3).bfloat16(), x, data(8)[1], loss_fn=F.cross_entropy)
    assert not found


def test_one_sample() -> None:
    """It is compared; there is nobody else whose gradient could move."""
    found = fxdp.verify(normed(), *data(1), loss_fn=F.cross_entropy)
    assert found, str(found)
    assert {f.batch for f in found.findings} == {1}
    assert {f.check for f in found.findings} == {"per-sample", "norms", "clipped sum"}


def test_a_wrong_kernel_is_found_with_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Outer.per_sample
    monkeypatch.setattr(Outer, "per_sample", lambda self, *how: true(self, *how) * 2)
    assert not fxdp.verify(normed(), *data(1), loss_fn=F.cross_entropy)
