"""The layers that stand in the place of torch's recurrent ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxdp.capture.polyfills import symbolic_kernels
from tests.releases import since

LAYERS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without biases": {"bias": False},
    "two layers": {"num_layers": 2},
    "both ways": {"bidirectional": True, "num_layers": 2},
    "batch first": {"batch_first": True},
}


def run(layer: nn.RNNBase, x: Tensor) -> list[Tensor]:
    """Results, and the gradients of everything by all of them."""
    x = x.clone().requires_grad_()
    out, ends = layer(x)
    found = [out, *(ends if isinstance(ends, tuple) else (ends,))]
    total = sum((r * torch.linspace(0.5, 1.5, r.numel()).view(r.shape)).sum() for r in found)
    assert isinstance(total, Tensor)
    return [*found, *torch.autograd.grad(total, [x, *layer.parameters()])]


def replaced(layer: nn.RNNBase, x: Tensor) -> list[Tensor]:
    with symbolic_kernels(), torch._C._EnablePythonDispatcher():
        return run(layer, x)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_torch(name: str, options: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name](3, 5, **OPTIONS[options]).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    for one, other in zip(replaced(layer, x), run(layer, x), strict=True):
        torch.testing.assert_close(one, other)


def test_first_states_get_gradients() -> None:
    torch.manual_seed(0)
    layer, x = nn.LSTM(3, 5).double(), torch.randn(4, 6, 3, dtype=torch.float64)
    first = [torch.randn(1, 6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def gradients() -> tuple[Tensor, ...]:
        out, (_, cell) = layer(x, tuple(first))
        return torch.autograd.grad(out.square().sum() + cell.sum(), first)

    want = gradients()
    with symbolic_kernels(), torch._C._EnablePythonDispatcher():
        torch.testing.assert_close(gradients(), want)


@since((2, 12), "torch's own loop adds an axis to the state")
def test_projections_are_left_to_torch() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(3, 5, proj_size=2).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    for one, other in zip(replaced(layer, x), run(layer, x), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_is_between_layers(name: str) -> None:
    """torch's own way to trace these layers leaves it out."""
    torch.manual_seed(0)
    layer, x = LAYERS[name](3, 5, 2, dropout=1.0), torch.randn(4, 6, 3)
    changed = replaced(layer, x + 1)[0]
    torch.testing.assert_close(replaced(layer, x)[0], changed)
    layer.eval()
    assert not torch.equal(replaced(layer, x)[0], replaced(layer, x + 1)[0])
