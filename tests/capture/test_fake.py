"""A proof needs shapes, and no data; but it needs gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from fxdp.capture.fake import on_cpu

N, D = 6, 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, D), nn.Linear(D, 7, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.ones(D))
        self.frozen = nn.Parameter(torch.ones(D), requires_grad=False)

    def forward(self, ids):
        return self.head(self.table(ids).mean(1) * self.scale * self.frozen)


def proof(device: str, ids: str = "") -> fxdp.Certificate:
    with torch.device(device):
        model = Tied()
    with torch.device(ids or device):
        x, y = torch.zeros(N, 5, dtype=torch.long), torch.zeros(N, dtype=torch.long)
    return fxdp.prove(model, x, y, loss_fn=F.cross_entropy)


def test_on_the_meta_device_the_same_is_proven():
    want = proof("cpu")
    assert "1 gradients come from 2 sums" in want.obligations[1].evidence
    assert proof("meta") == want
    assert proof("meta", "cpu") == want


def test_the_model_is_left_as_it_was():
    with torch.device("meta"):
        model, x = Tied(), torch.zeros(N, 5, dtype=torch.long)
    fake, (moved,) = on_cpu(model, (x,))
    assert all(p.is_meta for p in model.parameters())
    assert moved.device.type == "cpu"
    assert fake.head.weight is fake.table.weight
    assert not fake.frozen.requires_grad
    assert fake.head.weight.requires_grad


class Unfollowed(nn.Module):
    """Its only gradient is that of an op which autograd does not follow on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, 3)

    def forward(self, x, y):
        return F.cross_entropy(self.fc(x), y)


@pytest.mark.filterwarnings("ignore:aten..nll_loss. an autograd kernel was not registered")
def test_a_proof_without_gradients_is_none():
    """Where a step itself runs on the meta device, nothing is there to be private."""
    with torch.device("meta"):
        model = Unfollowed()
        x, y = torch.zeros(N, D), torch.zeros(N, dtype=torch.long)
        private = fxdp.compile(
            model, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=N, backend="eager"
        )
        with pytest.raises(fxdp.ProofError, match="FXD202 no-loss: loss: no parameter gets a"):
            private(x, y)
