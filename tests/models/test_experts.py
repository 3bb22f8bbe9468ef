"""Mixtures of experts: tokens are routed within a sample, or by every expert seeing all of them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.oracle import score
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")
E, D, T = 3, 4, 5  # experts, features, tokens
Route = Callable[["Experts", Tensor], Tensor]


class Experts(nn.Module):
    def __init__(self, route: Route) -> None:
        super().__init__()
        self.router, self.weight = nn.Linear(D, E), nn.Parameter(torch.randn(E, D, D))
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(E))
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        return score(self.route(self, x))


def soft(net: Experts, x: Tensor) -> Tensor:
    share = net.router(x).softmax(-1)
    return torch.einsum("nte,nteo->nto", share, torch.einsum("ntd,edo->nteo", x, net.weight))


def best_two(net: Experts, x: Tensor) -> Tensor:
    """Rows of the whole batch, each seen by all experts and weighed."""
    rows = x.reshape(-1, D)
    share, best = net.router(rows).softmax(-1).topk(2, -1)
    hot = F.one_hot(best, E).to(rows)
    outs = (layer(rows) * (hot[:, :, e] * share).sum(1, True) for e, layer in enumerate(net.layers))
    return sum(outs).view(x.shape)


def own_weight(net: Experts, x: Tensor) -> Tensor:
    share, best = net.router(x).softmax(-1).max(-1)
    return torch.einsum("ntd,ntdo->nto", x, net.weight[best]) * share[..., None]


def sorted_within(net: Experts, x: Tensor) -> Tensor:
    share, best = net.router(x).softmax(-1).max(-1)
    order = best.argsort(1)
    rows, whose = x.gather(1, order[..., None].expand_as(x)), best.gather(1, order)
    out = torch.einsum("ntd,ntdo->nto", rows, net.weight[whose])
    return out.gather(1, order.argsort(1)[..., None].expand_as(out)) * share[..., None]


def capacity(net: Experts, x: Tensor) -> Tensor:
    """Two tokens of a sample for each expert, the first that come."""
    share, best = net.router(x).softmax(-1).max(-1)
    hot = F.one_hot(best, E)
    place = (hot.cumsum(1) * hot).sum(-1) - 1
    sent = hot.to(x)[..., None] * F.one_hot(place.clamp(0, 1), 2).to(x)[..., None, :]
    sent = sent * (place < 2)[..., None, None]
    out = torch.einsum("necd,edo->neco", torch.einsum("ntec,ntd->necd", sent, x), net.weight)
    return torch.einsum("ntec,neco->nto", sent, out) * share[..., None]


def experts_choose(net: Experts, x: Tensor) -> Tensor:
    share, best = net.router(x).softmax(-1).transpose(1, 2).topk(2, -1)  # [N, E, 2]
    spots = best.flatten(1)[..., None].expand(-1, -1, D)
    rows = x.gather(1, spots).unflatten(1, (E, 2))
    out = torch.einsum("nekd,edo->neko", rows, net.weight) * share[..., None]
    return torch.zeros_like(x).scatter_add(1, spots, out.flatten(1, 2))


def balanced(net: Experts, x: Tensor) -> Tensor:
    """With an auxiliary loss of a sample's own tokens."""
    share = net.router(x).softmax(-1)
    used = F.one_hot(share.argmax(-1), E).to(x).mean(1)
    return soft(net, x) + (used * share.mean(1)).sum(1)[:, None, None]


class Mixtures(nn.Module):
    """Each route with experts of its own."""

    def __init__(self, *routes: Route) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({route.__name__: Experts(route) for route in routes})

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x) for part in self.parts.values())


def test_routed_within_a_sample():
    routes = (soft, best_two, own_weight, sorted_within, capacity, experts_choose, balanced)
    compare_at((7, T, D, 2, 1), Mixtures(*routes), lambda n: (torch.randn(n, T, D),))


def gathered_over_the_batch(net: Experts, x: Tensor) -> Tensor:
    rows = x.reshape(-1, D)
    share, best = net.router(rows).softmax(-1).max(-1)
    out = torch.zeros_like(rows)
    for e, layer in enumerate(net.layers):
        (mine,) = torch.where(best == e)
        out = out.index_add(0, mine, layer(rows[mine]) * share[mine, None])
    return out.view(x.shape)


def capacity_of_the_batch(net: Experts, x: Tensor) -> Tensor:
    rows = x.reshape(-1, D)
    hot = F.one_hot(net.router(rows).argmax(-1), E)
    place = (hot.cumsum(0) * hot).sum(-1)
    return (net.layers[0](rows) * (place < 6)[:, None]).view(x.shape)


def sorted_over_the_batch(net: Experts, x: Tensor) -> Tensor:
    rows = x.reshape(-1, D)
    share, best = net.router(rows).softmax(-1).max(-1)
    order = best.argsort()
    return (rows[order] * share[order, None]).view(x.shape)


def balanced_over_the_batch(net: Experts, x: Tensor) -> Tensor:
    share = net.router(x).softmax(-1).reshape(-1, E)
    used = F.one_hot(share.argmax(-1), E).to(x).mean(0)
    return soft(net, x) + (used * share.mean(0)).sum()


@pytest.mark.parametrize("n", [T, D, 7])
@pytest.mark.parametrize(
    ("route", "words"),
    [
        (gathered_over_the_batch, "depends on all samples(.|\n)*let every expert"),
        (capacity_of_the_batch, "FXD101(.|\n)*scan along an axis of the sample"),
        (sorted_over_the_batch, "FXD101(.|\n)*sort along an axis of the sample"),
        (balanced_over_the_batch, "FXD102"),
    ],
)
def test_routed_over_the_batch(route: Route, words: str, n: int):
    with pytest.raises(fxdp.BatchMixingError, match=words):
        fxdp.prove(Experts(route), torch.randn(n, T, D))
