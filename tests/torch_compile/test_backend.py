"""`torch.compile(model, backend="fxdp")`, as someone who never imports fxdp would use it."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.oracle import clipped_sum, per_sample

OPTIONS = {"max_grad_norm": 0.3, "noise_multiplier": 0.0, "expected_batch_size": 6.0}
EAGER = OPTIONS | {"backend": "eager"}

FRESH = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Flatten(0))
loss = torch.compile(lambda x: model(x).square().mean(), backend="fxdp", options={options})
assert "fxdp" in sys.modules  # torch found it by its entry point
loss(torch.ones(5, 4)).backward()
assert model[0].weight.grad.norm() > 0
print("private")
"""


class WithLoss(nn.Module):
    """A model that returns its loss and its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(F.relu(self.hidden(x))) * self.scale
        return F.cross_entropy(logits, y), logits


def test_in_a_fresh_process_without_an_import() -> None:
    code = FRESH.replace("{options}", repr(EAGER))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "private", done.stderr


def test_one_compilation_for_all_batch_sizes() -> None:
    """No `dynamic=True`, no marks on the inputs: the backend sees to the batch axis itself."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = WithLoss().double()
    step = torch.compile(model, backend="fxdp", options=EAGER)
    counters = torch._dynamo.utils.counters
    counters.clear()
    for n in (6, 9, 3):
        x, y = torch.randn(n, 6, dtype=torch.double), torch.randint(3, (n,))
        model.zero_grad()
        loss, logits = step(x, y)
        loss.backward()
        assert not logits.requires_grad
        each, _ = per_sample(model, lambda out, _: out[0], (x, y, y), {}, n)
        for name, wanted in clipped_sum(each, 0.3, 6.0).items():
            got = model.get_parameter(name).grad
            assert got is not None
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "options lacks max_grad_norm, noise_multiplier, expected_batch_size"),
        (EAGER | {"norm": 1}, "options has ['norm']"),
        (EAGER | {"max_grad_norm": -1.0}, "max_grad_norm must be above 0"),
        (EAGER | {"strategy": "best"}, "strategy must be 'auto' or 'instantiate'"),
    ],
)
def test_wrong_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        torch.compile(WithLoss(), backend="fxdp", options=options)


def test_a_refusal_comes_through_as_it_is() -> None:
    torch._dynamo.reset()
    model = nn.Linear(4, 4)
    step = torch.compile(
        lambda x: (model(x) - x.mean(0)).square().mean(), backend="fxdp", options=EAGER
    )
    with pytest.raises(fxdp.BatchMixingError, match="FXD10"):
        step(torch.randn(5, 4))


@pytest.mark.parametrize("rows", [0, 1])
def test_sizes_that_torch_fixes_are_refused(rows: int) -> None:
    torch._dynamo.reset()
    step = torch.compile(WithLoss(), backend="fxdp", options=EAGER)
    with pytest.raises(fxdp.ProofError, match="fxdp.compile takes them"):
        step(torch.randn(rows, 6), torch.randint(3, (rows,)))


def test_a_model_without_a_loss_is_refused() -> None:
    torch._dynamo.reset()
    step = torch.compile(nn.Linear(4, 3), backend="fxdp", options=EAGER)
    with pytest.raises(fxdp.ProofError, match="FXD202"):
        step(torch.randn(5, 4))


def test_without_samples_it_refuses() -> None:
    model = nn.Linear(3, 2)
    step = torch.compile(lambda: model.weight.square().sum(), backend="fxdp", options=EAGER)
    with pytest.raises(fxdp.ProofError, match="FXD103 undeclared-input"):
        step()


def test_a_gradient_of_an_input_is_refused() -> None:
    step = torch.compile(WithLoss(), backend="fxdp", options=EAGER)
    x = torch.randn(6, 6, requires_grad=True)
    with pytest.raises(fxdp.ProofError, match="FXD302 input-gradient"):
        step(x, torch.arange(6) % 3)
