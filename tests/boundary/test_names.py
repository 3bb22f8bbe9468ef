"""Parameters are called what `model.named_parameters()` calls them, whatever capture calls them."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxdp
from fxdp.backend import partition
from fxdp.graph.ends import gradient_places
from fxdp.mechanism import clipping
from fxdp.mechanism.correlated import BandMF
from fxdp.privacy.sampling import CyclicPoisson
from tests.keywords import grouped

OPTIONS: dict[str, Any] = {
    "max_grad_norm": 1.0, "noise_multiplier": 0.0, "expected_batch_size": 4.0, "backend": "eager"
}  # fmt: skip


class Odd(nn.Module):
    """Submodules that are called as capture's own things are; one is tied under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("self", nn.Linear(4, 4))
        self.fxdp_model = nn.Linear(4, 4)
        self.loss_fn = nn.Linear(4, 4)
        self.last = self.get_submodule("self")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.loss_fn(self.fxdp_model(x).tanh()).tanh())


class Bert(nn.Module):
    """As Hugging Face names the parts of an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": nn.Linear(4, 4), "output": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        return self.attention["output"](self.attention["self"](x).tanh())


class Tied(nn.Module):
    """The head is reached before the layer whose weight it has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.second(x).tanh()) * self.scale


class Loss(nn.Module):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return ((out - y) ** 2 * self.weight).sum(1).mean()

    def other(self, out: Tensor, y: Tensor) -> Tensor:
        return self(out, y) * 2


def recurrent() -> nn.Module:
    class Last(nn.GRU):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x[:, None])[0][:, 0]

    return Last(4, 4, batch_first=True)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "odd": Odd,
    "bert": Bert,
    "tied": Tied,
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "recurrent": recurrent,
}


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 4), torch.randn(4, 4)


def trained(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """What the parameters are called in each graph that is compiled."""
    seen: list[set[str]] = []
    inner = partition.run

    def watched(joint: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append({name for name, _ in gradient_places(joint)})
        return inner(joint, *args, **kwargs)

    monkeypatch.setattr(partition, "run", watched)
    return seen


@pytest.mark.parametrize("kind", MODELS)
def test_compile(kind: str) -> None:
    """Through the first door: gradients, their report, and verify."""
    model = MODELS[kind]()
    private = fxdp.compile(model, loss_fn=F.mse_loss, **grouped(OPTIONS))
    each = private.per_sample_grads(*batch())
    assert set(each) == trained(model)
    assert all(g.shape[1:] == model.get_parameter(name).shape for name, g in each.items())


@pytest.mark.parametrize("kind", ["odd", "tied"])
def test_verify(kind: str) -> None:
    found = fxdp.verify(MODELS[kind]().double(), *(x.double() for x in batch()), loss_fn=F.mse_loss)
    assert found, str(found)


class Whole(nn.Module):
    """A model that returns its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(this, x: Tensor, y: Tensor) -> Tensor:  # noqa: N805 - no capture may rely on it
        return F.mse_loss(this.model(x), y)


@pytest.mark.parametrize("kind", MODELS)
def test_torch_compile(kind: str, names: list[set[str]]) -> None:
    model = Whole(MODELS[kind]())
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        torch.compile(model, backend="fxdp", options=OPTIONS)(*batch())
    assert names[-1] == trained(model)


def test_torch_compile_of_a_function(names: list[set[str]]) -> None:
    """One module begins with nothing, as in its own `named_parameters()`; of two each is told."""
    model, other, (x, y) = Odd(), Loss(), batch()

    def one(x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    def two(x: Tensor, y: Tensor) -> Tensor:
        return other(model(x), y)

    torch._dynamo.reset()
    torch.compile(one, backend="fxdp", options=OPTIONS)(x, y)
    assert names[-1] == trained(model)
    torch.compile(two, backend="fxdp", options=OPTIONS)(x, y)
    assert names[-1] == {f"model.{n}" for n in trained(model)} | {"other.weight"}


@pytest.mark.parametrize("spelled", ["module", "method", "partial"])
def test_parameters_of_a_loss(spelled: str) -> None:
    """They have a name, also where the model has a submodule of that name."""
    loss = Loss()
    functions = {"module": loss, "method": loss.other, "partial": functools.partial(loss)}
    for model, name in ((nn.Linear(4, 4), "loss_fn.weight"), (Odd(), "_loss_fn.weight")):
        private = fxdp.compile(model, loss_fn=functions[spelled], **grouped(OPTIONS))
        assert set(private.per_sample_grads(*batch())) == trained(model) | {name}


def test_verify_sees_the_parameters_of_a_loss() -> None:
    found = fxdp.verify(nn.Linear(4, 4).double(), *(x.double() for x in batch()),
                        loss_fn=Loss().double())  # fmt: skip
    assert found, str(found)
    assert "loss_fn.weight" in {f.parameter for f in found.findings}


def test_groups_by_name() -> None:
    """Patterns of names are matched against the model's own names."""
    groups = clipping.PerGroup({"attention.self.*": 1.0, "attention.output.*": 2.0})
    private = fxdp.compile(Bert(), loss_fn=F.mse_loss, clipping=groups, **grouped(OPTIONS))
    private(*batch()).backward()
    tied = clipping.PerGroup(
        {"first.weight": 1.0, "first.bias": 1.0, "second.bias": 1.0, "scale": 1}
    )
    private = fxdp.compile(Tied(), loss_fn=F.mse_loss, clipping=tied, **grouped(OPTIONS))
    private(*batch()).backward()


@pytest.mark.parametrize("kind", ["bert", "tied"])
def test_correlated_noise(kind: str) -> None:
    """The past of every parameter's noise is kept under its name."""
    model = MODELS[kind]()
    options = OPTIONS | {"noise_multiplier": 1.0}
    private = fxdp.compile(
        model,
        loss_fn=F.mse_loss,
        noise=BandMF(bands=2),
        **grouped({"sample_rate": CyclicPoisson(1.0, 2)} | options),
    )
    for _ in range(2):
        private(*batch()).backward()
    past = private.privacy_state_dict()["noise"]["past"]
    assert {name for y in past for name in y} == trained(model)


def test_an_argument_is_no_parameter(names: list[set[str]]) -> None:
    """An input that is called as a parameter is does not take its name."""

    class Takes(nn.Linear):
        def forward(self, weight: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return F.mse_loss(super().forward(weight), y)

    model = Takes(4, 4)
    torch._dynamo.reset()
    torch.compile(model, backend="fxdp", options=OPTIONS)(*batch())
    assert names[-1] == {"weight", "bias"}


def test_without_data() -> None:
    """A model on the meta device is proven under its names."""
    with torch.device("meta"):
        model = Tied()
    x = torch.empty(4, 4, device="meta")
    certificate = fxdp.prove(model, x, x, loss_fn=F.mse_loss)
    assert certificate
