"""The predicted peak of a step's memory."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tools.bench.memory import peak

MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "perceptron": lambda: (
        nn.Sequential(nn.Linear(200, 300), nn.GELU(), nn.Linear(300, 300), nn.Linear(300, 5)),
        torch.randn(400, 200),
    ),
    "attention": lambda: (
        nn.Sequential(nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True), nn.Flatten()),
        torch.randn(30, 20, 64),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("strategy", ["ghost", "instantiate"])
@pytest.mark.filterwarnings("ignore")  # the profiler's own, on machines without its parts
def test_what_is_predicted_is_what_is_taken(name: str, strategy: str) -> None:
    """Within a third, without a compiler that saves values: kernels have memory of their own."""
    model, x = MODELS[name]()
    y = torch.randint(5, (len(x),))
    private = fxdp.compile(
        model,
        loss_fn=F.cross_entropy,
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        expected_batch_size=len(x),
        backend="eager",
        options={"strategy": strategy},
    )

    def step() -> None:
        model.zero_grad()
        private(x, y).backward()

    step()
    predicted = private.report().peak
    assert predicted is not None
    assert predicted.samples == len(x)
    assert predicted.kept < predicted.highest
    model.zero_grad()
    assert predicted.highest / 2**20 == pytest.approx(peak(step), rel=0.33)
    assert "predicted peak of a step" in str(private.report())
