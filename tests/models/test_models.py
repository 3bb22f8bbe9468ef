"""The networks of Opacus's benchmarks, with parameters next to their submodules."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

import fxdp
from tests.oracle import compare

pytestmark = pytest.mark.usefixtures("double")
aten = torch.ops.aten
N = 16


class LinearWithExtraParam(nn.Module):
    """A linear layer whose output is multiplied by a parameter of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.extra = nn.Parameter(torch.randn(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).matmul(self.extra)


class CustomLinear(nn.Module):
    """A linear layer out of raw parameters."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class ModelWithCustomLinear(nn.Module):
    """Custom layers, and a parameter of the root module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = CustomLinear(4, 8)
        self.second = LinearWithExtraParam(8, 4)
        self.extra = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).matmul(self.extra)


class SampleConvNet(nn.Module):
    """Opacus's network for MNIST: `linear` makes its linear layers, `extra` adds a parameter."""

    def __init__(self, linear: type[nn.Module] = nn.Linear, extra: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 8, 2, padding=3)
        self.conv2 = nn.Conv2d(16, 32, 4, 2)
        self.fc1 = linear(512, 32)
        self.fc2 = linear(32, 10)
        self.extra = nn.Parameter(torch.randn(10, 10)) if extra else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2, 1)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2, 1)
        x = self.fc2(F.relu(self.fc1(x.view(-1, 512))))
        return x if self.extra is None else x.matmul(self.extra)


MODELS = {
    "standard": (SampleConvNet, (1, 28, 28), 10),
    "extreme": (lambda: SampleConvNet(LinearWithExtraParam, extra=True), (1, 28, 28), 10),
    "extra": (lambda: LinearWithExtraParam(5, 8), (5,), 8),
    "custom": (ModelWithCustomLinear, (4,), 4),
}

FORWARD = (aten.convolution.default, aten.mm.default, aten.addmm.default, aten.bmm.default)


def forward_calls(model: nn.Module, x: Tensor, target: Tensor) -> int:
    """How often the model itself convolves and multiplies matrices in its forward pass."""
    count = 0

    def seen(gm: GraphModule, _: object) -> GraphModule:
        nonlocal count
        count = sum(n.target in FORWARD for n in gm.graph.nodes)
        return gm

    backend = aot_autograd(fw_compiler=seen, bw_compiler=lambda gm, _: gm)
    torch._dynamo.reset()
    F.cross_entropy(torch.compile(model, backend=backend)(x), target)
    return count


@pytest.mark.parametrize("name", MODELS)
def test_opacus(name: str):
    make, shape, classes = MODELS[name]
    model, x, target = make(), torch.randn(N, *shape), torch.randint(classes, (N,))
    private = compare(model, x, target, loss_fn=F.cross_entropy, each=True)
    grads = private.per_sample_grads(x, target)
    assert {k: g.shape for k, g in grads.items()} == {
        k: (N, *p.shape) for k, p in model.named_parameters()
    }
    own = [
        n for n in private.graph_module.graph.nodes
        if n.target in FORWARD and n.meta.get("partitioner_tag") != "is_backward"
    ]  # fmt: skip
    assert len(own) == forward_calls(model, x, target)


@pytest.mark.parametrize("name", ["standard", "custom"])
def test_training_without_clipping_is_plain_training(name: str):
    make, shape, classes = MODELS[name]
    model = make()
    private = fxdp.compile(
        model, loss_fn=F.cross_entropy, max_grad_norm=float("inf"), noise_multiplier=0.0,
        expected_batch_size=8, backend="eager",
    )  # fmt: skip
    for n in (8, 8):
        x, target = torch.randn(n, *shape), torch.randint(classes, (n,))
        model.zero_grad()
        private(x, target).backward()
        plain = torch.autograd.grad(F.cross_entropy(model(x), target), list(model.parameters()))
        for p, g in zip(model.parameters(), plain, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-9)
