"""Noise, once for each parameter."""

import re
from dataclasses import replace

import pytest
import torch

import fxdp
from fxdp.graph.ends import gradient_places
from fxdp.graph.nodes import outputs
from fxdp.graph.passes import run
from fxdp.graph.study import ClippedSums, study
from fxdp.mechanism.run_key import RunKey
from fxdp.passes.noise import noise
from fxdp.pipeline import PASSES
from tests.passes.graphs import Decay, block, cut, linear, mean_square, passed


def test_text() -> None:
    """(clipped sum + sigma C xi) / L, times the gradient of the loss."""
    texts = linear().texts
    assert "released" not in texts["clip"]
    assert cut(texts["noise"], "mul(sigma", "private_permute") == block("""
        mul = mul(sigma, C)
        eq = eq(sigma, 0)
        masked_fill = masked_fill(mul, eq, 0)
        to = to(masked_fill, torch.float32)
        released_together = fxdp.released_together(SUMS, to, L, tangent, key, [0, 1], 1)
        private_permute = released_together[0]
    """).replace("SUMS", "[^permute, ^view]")
    assert texts["noise"].count("released") == texts["noise"].count("released_together")


def test_outputs() -> None:
    """Private gradients stand where the gradients were; the norms come last."""
    gm = linear("noise").gm
    places = dict(gradient_places(gm))
    assert list(places) == ["weight", "bias"]
    assert all(outputs(gm)[p].name.startswith("private_") for p in places.values())
    assert outputs(gm)[-1].name == gm.graph.output_node().meta["desc"][-1] == "norms"
    assert outputs(gm)[0].name == "loss"


class Wide(torch.nn.Module):
    """Two large weights, and three small parameters of two dtypes between and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 8192), torch.nn.Linear(8192, 3)
        self.b.bias = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.c = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.nn.functional.linear(self.a(x), self.b.weight) * self.c
        return (out + self.b.bias).square().sum(-1).float()


def test_small_ones_share_an_op() -> None:
    """Of one dtype; a large sum gets its noise before the next one is made, and waits for none."""
    text = passed(Wide(), None, torch.zeros(4, 3)).texts["noise"]
    (together,) = re.findall(r"fxdp.released_together\(\[(\w+), (\w+)\].* \[1, 3\], 1\)", text)
    assert len(set(together)) == 2
    assert re.findall(r"released\(.* (\d), 1\)", text) == ["0", "2", "4"]


def test_one_gradient_after_the_other() -> None:
    """A clipped sum gets its noise before the next one is made."""
    layers = [torch.nn.Linear(130, 130, bias=False) for _ in range(2)]
    run = passed(
        torch.nn.Sequential(*layers), mean_square, torch.zeros(4, 130), torch.zeros(4, 130)
    )
    _, text = run.texts["noise"].split("\nfactor = ")
    made = [line for line in text.splitlines() if "= fxdp." in line]
    assert [("released(" in line) for line in made] == [False, True, False, True]


def test_public_term() -> None:
    """What holds no samples is added after the noise and the division."""
    run = passed(Decay(3, 2, bias=False), None, torch.zeros(4, 3))
    (clipped,) = run.study.of(ClippedSums).all
    assert clipped.public is not None
    assert cut(run.texts["noise"], "released(") == block("""
        private_add = fxdp.released(^permute, ^to, L, tangent, ^mul, key, 0, 1)
    """)


def test_forgotten_gradient() -> None:
    """A gradient that nobody clipped is not released."""
    gm = linear.__wrapped__("clip").gm
    here = study(gm)
    here.put(ClippedSums(here.of(ClippedSums).all[:1]))
    with pytest.raises(AssertionError, match="'bias'"):
        noise(gm, RunKey().number, terms=1)


def test_facts_are_checked() -> None:
    """The runner looks for plain sums among the ancestors of what is released."""
    gm = linear.__wrapped__("clip").gm
    first, *rest = study(gm).of(ClippedSums).all
    study(gm).put(ClippedSums((replace(first, total=first.gradient.node), *rest)))
    step = next(p for p in PASSES if p.name == "noise")
    with pytest.raises(AssertionError, match="noise gives private_outputs"):
        run(gm, (step,), terms=1, number=RunKey().number)


class TwoBiases(torch.nn.Module):
    """Two parameters with one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.zeros(1 << 18)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x + self.a + self.b) ** 2).mean(1)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_equal_gradients_get_different_noise(backend: str) -> None:
    """What looks for common subexpressions must not find one draw for both."""
    model = TwoBiases()
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=1, backend=backend
    )
    private(torch.randn(3, 1)).backward()
    a, b = model.a.grad, model.b.grad
    assert a is not None and b is not None  # noqa: PT018
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.02  # 10 deviations


class Gumbel(torch.nn.Module):
    """A model that draws twice what looks like one draw."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        likes = torch.randn_like(x) - torch.randn_like(x)
        waits = torch.empty_like(x).exponential_() - torch.empty_like(x).exponential_()
        return self.fc(x).square().sum(1), likes.abs().amin(1), waits.abs().amin(1)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_draws_of_a_model_stay_apart(backend: str) -> None:
    private = fxdp.compile(
        Gumbel(), max_grad_norm=1.0, noise_multiplier=1.0, expected_batch_size=1, backend=backend
    )
    _, likes, waits = private(torch.randn(3, 4))
    assert float(likes.min()) > 0
    assert float(waits.min()) > 0
