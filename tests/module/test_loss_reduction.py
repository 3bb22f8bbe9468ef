"""A loss that the user makes of the model's output, outside of the graph."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.keywords import grouped

N, D, C = 6, 4, 3
GIVEN: dict[str, Any] = {"max_grad_norm": 0.5, "noise_multiplier": 0.0, "expected_batch_size": 2.0}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, C)).double()


def batch(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, D, dtype=torch.float64, generator=generator)
    return x, torch.randint(C, (n,), generator=generator)


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    assert all(g is not None for g in found)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_it_is_the_loss_of_the_graph(reduction: str, backend: str) -> None:
    """The same release as with the loss inside, at every batch size."""
    model = net()
    inside = fxdp.compile(model, loss_fn=F.cross_entropy, backend=backend, **grouped(GIVEN))
    outside = fxdp.compile(model, loss_reduction=reduction, backend=backend, **grouped(GIVEN))
    for n in (N, 9, 1):
        x, y = batch(n)
        inside(x, y).backward()
        wanted = gradients(model)
        out = outside(x)
        assert out.shape == (n, C)
        torch.testing.assert_close(out, model(x))
        F.cross_entropy(out, y, reduction=reduction).backward()
        torch.testing.assert_close(gradients(model), wanted)
    assert outside.releases == 3


def test_an_empty_batch_releases_noise() -> None:
    model = net()
    private = fxdp.compile(
        model, loss_reduction="sum", backend="eager", **grouped(GIVEN | {"noise_multiplier": 1.0})
    )
    x, y = batch(0)
    F.cross_entropy(private(x), y, reduction="sum").backward()
    assert all(float(g.abs().min()) > 0 for g in gradients(model))


def test_the_certificate_says_so() -> None:
    private = fxdp.compile(net(), loss_reduction="mean", backend="eager", **grouped(GIVEN))
    x, y = batch()
    F.cross_entropy(private(x), y).backward()
    certificate = private.certificate()
    (p4,) = (o for o in certificate.obligations if o.name == "P4")
    assert not p4.proven
    assert p4.by == ("the loss, made outside, by loss_reduction='mean'",)
    assert all(o.proven for o in certificate.obligations if o.name != "P4")


class Mixing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Pooled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(0)


class Turned(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).T


@pytest.mark.parametrize(
    ("kind", "code"), [(Mixing, "FXD102"), (Pooled, "FXD102"), (Turned, "FXD201")]
)
def test_the_model_is_proven_all_the_same(kind: type[nn.Linear], code: str) -> None:
    private = fxdp.compile(kind(D, C), loss_reduction="mean", backend="eager", **grouped(GIVEN))
    with pytest.raises(fxdp.ProofError, match=code):
        private(torch.randn(N, D))


def test_bad_input() -> None:
    x, y = batch()
    with pytest.raises(ValueError, match="loss_reduction must be 'mean' or 'sum'"):
        fxdp.compile(net(), loss_reduction="none", **grouped(GIVEN))
    with pytest.raises(ValueError, match="leave loss_reduction out"):
        fxdp.compile(net(), loss_reduction="mean", loss_fn=F.cross_entropy, **grouped(GIVEN))
    private = fxdp.compile(net(), loss_reduction="mean", backend="eager", **grouped(GIVEN))
    with pytest.raises(ValueError, match="leave padding out"):
        private(x, sample_mask=torch.ones(N, dtype=torch.bool))
    with pytest.raises(TypeError, match="norms need a loss"):
        private.per_sample_norms(x)
    assert private.releases == 0
