"""Gradients that a model takes within its step: penalties, score matching, Jacobians."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.releases import since
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")
D = 4
Loss = Callable[[nn.Module, Tensor], Tensor]

traced = since((2, 12), "gradients within a step are not traced: such a model is refused (FXD501)")


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def gradient(out: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(out, x, torch.ones_like(out), create_graph=True)[0]


def wasserstein(net: nn.Module, x: Tensor) -> Tensor:
    """WGAN-GP's penalty, between a sample and a shifted one."""
    share = torch.linspace(0.2, 0.8, D)
    mid = (x * share + (1 - share)).clone().requires_grad_(True)
    slope = gradient(net(mid), mid).view(x.shape[0], -1)
    return net(x).mean() - net(x + 1).mean() + 10 * ((slope.norm(2, dim=1) - 1) ** 2).mean()


def r1(net: nn.Module, x: Tensor) -> Tensor:
    x = leaf(x)
    out = net(x)
    (slope,) = torch.autograd.grad(outputs=out.sum(), inputs=x, create_graph=True)
    return F.softplus(-out).mean() + 5 * slope.square().sum(1).mean()


def score_matching(net: nn.Module, x: Tensor) -> Tensor:
    """Sliced: a gradient, and a gradient of that."""
    x, way = leaf(x), torch.linspace(-1, 1, D)
    slope = gradient(net(x).sum(1), x)
    bend = gradient((slope * way).sum(1), x)
    return ((bend * way).sum(1) + slope.square().sum(1) / 2).mean()


def functional(net: nn.Module, x: Tensor) -> Tensor:
    slope = torch.func.grad(lambda v: net(v).sum())(x)
    out, back = torch.func.vjp(lambda v: net(v).tanh(), x)
    return (out.sum(1) + back(torch.ones_like(out))[0].square().sum(1) + slope.sin().sum(1)).mean()


def of_each(net: nn.Module, x: Tensor) -> Tensor:
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: net(v).sin()))(x)
    slope = torch.func.vmap(torch.func.grad(lambda v: net(v).sum()))(x)
    return jacobian.square().sum((1, 2)).mean() + slope.cos().sum(1).mean()


def forwards(net: nn.Module, x: Tensor) -> Tensor:
    """A Jacobian-vector product; of weights and constants nobody gave a tangent."""

    def f(v: Tensor) -> Tensor:
        h = net[0](v).softmax(-1) * (v.sum(1, keepdim=True) + net[0].bias) / net[0].bias.exp()
        return net(v) - h.sum(1, keepdim=True) / (v.square().sum(1, keepdim=True) + 1)

    out, slope = torch.func.jvp(f, (x,), (x.sin(),))
    return (out + slope).square().mean()


def mean_flow(net: nn.Module, x: Tensor) -> Tensor:
    """The average velocity, whose target is made of its own derivative in time."""
    t = x[:, 0].sigmoid()
    u, du = torch.func.jvp(lambda z, t: net(z * t[:, None]), (x, t), (x.cos(), torch.ones_like(t)))
    return (u - (x[:, :1] - t[:, None] * du).detach()).square().mean()


LOSSES: tuple[Loss, ...] = (
    wasserstein, r1, score_matching, functional, of_each, forwards, mean_flow,
)  # fmt: skip


class Critic(nn.Module):
    def __init__(self, *losses: Loss) -> None:
        super().__init__()
        self.losses = losses
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 1)) for _ in losses
        )

    def forward(self, x: Tensor) -> Tensor:
        return sum(loss(net, x) for loss, net in zip(self.losses, self.nets, strict=True))


def batch(n: int) -> tuple[Any, ...]:
    return (torch.randn(n, D),)


@traced
# Both are torch's own: Inductor's, and of its table for forward derivatives.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("losses", "backend"),
    # For Inductor, the highest derivatives of each kind.
    [(LOSSES, "eager"), ((score_matching, forwards), "inductor")],
    ids=["eager", "inductor"],
)
def test_gradients_within_the_step(losses: tuple[Loss, ...], backend: str):
    compare_at((7, D, 2, 1), Critic(*losses), batch, backend=backend)


def of_the_mean(net: nn.Module, x: Tensor) -> Tensor:
    x = leaf(x)
    return gradient(net(x).mean(), x).square().sum(1).mean()  # 1 / N of a sample's own


def of_differences(net: nn.Module, x: Tensor) -> Tensor:
    x = leaf(x)
    out = net(x)
    return gradient((out - out.mean(0)).square(), x).square().sum(1).mean()


def norm_of_all(net: nn.Module, x: Tensor) -> Tensor:
    x = leaf(x)
    slope = gradient(net(x), x)
    return (slope / slope.norm()).sum(1).mean()


def inner_step(net: nn.Module, x: Tensor) -> Tensor:
    """MAML: what all samples taught, before each is asked."""
    w = net.get_parameter("0.weight")
    slope = gradient(net(x).square().mean(), w)
    return F.linear(x, w - 0.1 * slope).square().mean()


def forwards_through_a_mean(net: nn.Module, x: Tensor) -> Tensor:
    out, slope = torch.func.jvp(lambda v: net(v - v.mean(0)), (x,), (x.sin(),))
    return (out + slope).square().mean()


@traced
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("n", [D, 7])
@pytest.mark.parametrize(
    "loss", [of_the_mean, of_differences, norm_of_all, inner_step, forwards_through_a_mean]
)
def test_gradients_of_a_batch_are_refused(loss: Loss, n: int):
    with pytest.raises(fxdp.BatchMixingError):
        fxdp.prove(Critic(loss), *batch(n))


class Keeping(nn.Module):
    """A model that keeps what it differentiated by."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = nn.Linear(D, 1), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.last = leaf(x)
        slope = gradient(self.net(self.last).sin(), self.last)
        return slope.square().sum(1)


@traced
def test_what_was_differentiated_by_is_not_kept():
    with pytest.raises(fxdp.ProofError, match="FXD303"):
        fxdp.prove(Keeping(), *batch(7))
