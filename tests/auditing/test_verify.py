"""The oracle as a tool finds what is wrong, and only that."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.forms.conv import Conv
from fxdp.placement import Partial, Shard


def batch(n: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, 2, 6, 6, dtype=torch.double), torch.randint(3, (n,))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
    ).double()


def test_clean() -> None:
    """Every parameter, several batch sizes, three checks; and a table to read."""
    found = fxdp.verify(network(), *batch(), loss_fn=F.cross_entropy)
    assert found
    assert not found.faults
    assert {f.batch for f in found.findings} == {1, 2, 3, 5}
    kinds = {f.check for f in found.findings if f.parameter == "0.weight"}
    assert kinds == {"per-sample", "clipped sum", "neighbour"}
    assert "0.weight" in str(found)
    assert "ok" in str(found)


def test_the_model_is_left_as_it_was() -> None:
    model = network().eval()
    model[0].weight.grad = marker = torch.ones_like(model[0].weight)
    x, y = batch(2)
    state = torch.get_rng_state()
    fxdp.verify(model, x, y, loss_fn=F.cross_entropy)
    assert model[0].weight.grad is marker
    assert not model[2].training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrong", ["scaled", "untruncated"])
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """A corrupted emission: twice the gradient, or another sample's share of it."""
    true = Conv.grouped

    def corrupted(self: Conv) -> Tensor:
        return true(self) * 2 if wrong == "scaled" else true(self).flip(0)

    monkeypatch.setattr(Conv, "grouped", corrupted)
    found = fxdp.verify(
        network(), *batch(), loss_fn=F.cross_entropy, options={"strategy": "instantiate"}
    )
    assert not found
    assert "0.weight" in {f.parameter for f in found.faults}


def test_a_wrong_rule_is_found() -> None:
    """A rule of the user's that calls a flip of the batch harmless."""
    lies = fxdp.Rule(lambda call, x, dims: x.placement, isometry=True)
    rules = fxdp.RULES | {torch.ops.aten.flip.default: lies}

    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.f(x) + self.f(x.flip(0)).tanh()

    model = Flipped().double()
    x, y = torch.randn(4, 4, dtype=torch.double), torch.randint(3, (4,))
    with pytest.raises(fxdp.BatchMixingError):
        fxdp.prove(model, x, y, loss_fn=F.cross_entropy)
    found = fxdp.verify(model, x, y, loss_fn=F.cross_entropy, rules=rules)
    assert not found
    assert "neighbour" in {f.check for f in found.faults}
    certificate = fxdp.prove(model, x, y, loss_fn=F.cross_entropy, rules=rules)
    assert not certificate
    assert certificate.obligations[0].by == ("the rule of aten.flip.default in rules=",)


def test_an_empty_batch_has_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="at least 1 sample"):
        fxdp.verify(network(), *batch(0), loss_fn=F.cross_entropy)


def test_placements_are_plain_values() -> None:
    assert Shard(0) == Shard(0) != Shard(1)
    assert Partial() != Partial(public=True)
