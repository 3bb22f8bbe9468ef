"""Parameters in every place that a model may have them, used in every way that it may use them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracle import Branches, compare

pytestmark = pytest.mark.usefixtures("double")
N, T, D = 5, 4, 6


class Raw(nn.Module):
    """One parameter, and a function of it and the input."""

    def __init__(self, shape: tuple[int, ...], use) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(shape))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.p)


RELATIVE = torch.arange(T)[:, None] - torch.arange(T)[None, :] + T - 1

USES = {
    "multiplied": [
        ((D, 3), lambda x, p: x @ p),
        ((3, D), lambda x, p: F.linear(x, p)),
        ((D,), lambda x, p: x @ p),
        ((D, D), lambda x, p: x @ (p + p.T) @ p),
        ((2, T, D), lambda x, p: torch.einsum("ntd,ktd->nk", x, p)),
        ((T, D, 3), lambda x, p: torch.einsum("ntd,tde->nte", x, p)),
        ((3, D, D), lambda x, p: torch.einsum("ntd,kde->ntke", x, p) * x[:, :, None]),
        ((2, T), lambda x, p: p @ x),
        ((T, 3, D), lambda x, p: torch.bmm(x.transpose(0, 1), p.mT).transpose(0, 1)),
    ],
    "broadcast": [
        ((D,), lambda x, p: x * p),
        ((T, D), lambda x, p: x + p),
        ((1, 1, D), lambda x, p: torch.cat([p.expand(x.shape[0], -1, -1), x], 1)),
        ((1, 3, D), lambda x, p: torch.cat([x, p.repeat(x.shape[0], 1, 1)], 1)),
        ((9, D), lambda x, p: x + p[:T]),
        ((2 * T - 1, 2), lambda x, p: (x @ x.mT)[:, None] + p[RELATIVE].permute(2, 0, 1)),
        ((T, D), lambda x, p: x + F.embedding(torch.arange(T), p)),
        ((), lambda x, p: x * p.exp()),
        ((1,), lambda x, p: (x * p).tanh()),
        ((D,), lambda x, p: x / p.norm()),
        ((D, 2), lambda x, p: x * p.softmax(0)[:, 0]),
        ((T,), lambda x, p: torch.where(x > 0, x, p[:, None])),
        ((D,), lambda x, p: torch.lerp(x, p, 0.3)),
    ],
    "looked up": [
        ((9, D), lambda x, p: p[(x[..., 0] * 2).long().clamp(-4, 4) + 4]),
        ((9, 3), lambda x, p: p.index_select(0, torch.tensor([1, 1, 3]))[None] * x[:, :1, :1]),
        ((3, 9, 2), lambda x, p: p[:, x[..., 0].long().clamp(0, 8)].movedim(1, 0)),
        ((3, 5), lambda x, p: p[x.argmax(-1) % 3, x.argmin(-1) % 5]),
        ((D, D), lambda x, p: p.gather(1, torch.arange(D)[:, None]).sum() * x),
        ((T, 3), lambda x, p: p.tril() * x[..., :1] + p[1:].sum()),
        ((2, D), lambda x, p: torch.stack([p[0] * x[:, 0], p[1] - x[:, 1]], 1)),
        ((2, D), lambda x, p: x[:, :2] * torch.stack([p[1], p[0].exp()])),
        ((2, D), lambda x, p: x * torch.cat([p[1], p[0].exp()]).reshape(2, D).sum(0)),
        ((D, T), lambda x, p: x * torch.stack(p.split(2)).sum(0).sum(1, keepdim=True)[:1]),
    ],
}


@pytest.mark.parametrize("theme", USES)
def test_raw(theme: str):
    raw = Branches(*(Raw(*use) for use in USES[theme]))
    compare(raw, torch.randn(N, T, D), each=theme == "broadcast")


class Tied(nn.Module):
    """An embedding whose table is the head."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, D)
        self.body = nn.Linear(D, D)

    def forward(self, ids: Tensor) -> Tensor:
        logits = F.linear(self.body(self.table(ids)).tanh(), self.table.weight)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return loss.view(ids.shape[0], -1).mean(1)


@pytest.mark.parametrize("strategy", ["instantiate", "ghost"])
def test_tied(strategy: str):
    each = strategy == "instantiate"
    compare(Tied(7), torch.randint(7, (N, T)), strategy=strategy, each=each)


class Shared(nn.Module):
    """Layers that are used twice, once as themselves and once through their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)
        self.conv = nn.Conv1d(T, T, 3, padding=1)
        self.norm = nn.LayerNorm(D)
        self.again = nn.Linear(D, D)
        self.again.weight = self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.linear(self.norm(x)).tanh())
        x = self.conv(self.conv(self.norm(x)).tanh())
        return F.linear(self.again(x), self.linear.weight.T) * self.linear.weight.diagonal()


@pytest.mark.parametrize("strategy", ["instantiate", "ghost"])
def test_used_twice(strategy: str):
    each = strategy == "instantiate"
    compare(Branches(Shared()), torch.randn(N, T, D), strategy=strategy, each=each)


def test_reused_layers_join():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(D, D)
            self.table = nn.Embedding(5, D)

        def forward(self, x: Tensor) -> Tensor:
            ids = x[..., 0].long().clamp(0, 4)
            return self.linear(self.linear(x).tanh()) + self.table(ids) * self.table(4 - ids)

    for strategy in ("instantiate", "ghost"):
        compare(Branches(Twice()), torch.randn(N, T, D) * 2, strategy=strategy)


def test_frozen_and_unused():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(D, D).requires_grad_(False)
            self.partly = nn.Linear(D, D)
            self.partly.weight.requires_grad_(False)
            self.free = nn.Linear(D, 3)
            self.unused = nn.Linear(D, D)
            self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.free(self.partly(self.frozen(x)) * self.scale)

    model = Branches(Partly())
    compare(model, torch.randn(N, D))
    assert model.branches[0].unused.weight.grad is None
    assert model.branches[0].frozen.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype):
    model = nn.Sequential(nn.Linear(D, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    x, target = torch.randn(N, D, dtype=dtype), torch.randint(3, (N,))
    compare(model, x, target, loss_fn=F.cross_entropy)


def test_single_precision():
    model = Branches(nn.Linear(D, 8), nn.Conv1d(T, 3, 3), nn.GRU(D, 3, batch_first=True)).float()
    model.branches = model.branches[:2]
    compare(model, torch.randn(N, T, D, dtype=torch.float32))


def test_complex_parameter():
    class Filter(nn.Module):
        """A filter in the frequency domain, as in global filter networks."""

        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(T // 2 + 1, D, 2))

        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(x, dim=1) * torch.view_as_complex(self.w)
            return torch.fft.irfft(spectrum, n=T, dim=1)

    compare(Branches(Filter()), torch.randn(N, T, D))
