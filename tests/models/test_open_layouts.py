"""What is repeated along the samples' axis fits whatever order the samples have there.

A loss of rows [N*K, ...], a mean of means, class weights of tokens: the share of a total, or the
row of a table, is repeated over N*K places, and only what it meets says whose they are.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.oracle import clipped_sum, per_sample
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")
K, D, C = 3, 4, 5
SIZES = (7, D, K, 2, 1)
Loss = Callable[..., Tensor]


def draws(x: Tensor) -> Tensor:
    """[N*K, D], a sample's rows one after the other."""
    return x.flatten(0, 1)


def turns(x: Tensor) -> Tensor:
    """[K*N, D], the first rows of all samples first."""
    return x.transpose(0, 1).flatten(0, 1)


ROWS: dict[str, Loss] = {
    "mean": lambda net, x: net(draws(x)).mean(),
    "mean of means": lambda net, x: net(draws(x)).pow(2).mean(1).mean(),
    "linear": lambda net, x: net(draws(x)).mean(1).mean(),
    "other order": lambda net, x: net(turns(x)).pow(2).mean(1).mean(),
    "both": lambda net, x: (net(draws(x)).sin().mean(1) + 1).mean() + net(turns(x)).mean(1).mean(),
    "multiplicity": lambda net, x: net(draws(x.repeat_interleave(K, 0))).sin().mean(1).mean(),
    "copies": lambda net, x: net(x[:, 0].repeat(K, 1)).cos().mean(1).mean(),
    "and back": lambda net, x: (
        net(draws(x)).pow(2).mean(1).view(-1, K) * torch.arange(1.0, K + 1)
    ).mean(1).mean(),
    "slopes": lambda net, x: (net(draws(x)) * net.bias).mean(1).mean(),
    "looked up": lambda net, x: (
        net.bias.expand(x.shape[0] * K, C).gather(1, (draws(x) > 0).long()).sin().sum(1)
        * net(draws(x)).mean(1)
    ).mean(),
    "images": lambda net, x: F.conv1d(draws(x)[:, None], net.weight[:, None]).mean((1, 2)).mean(),
}  # fmt: skip


def test_rows():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(D, C) for _ in ROWS)

        def forward(self, x: Tensor) -> Tensor:
            return sum(loss(net, x) for net, loss in zip(self.parts, ROWS.values(), strict=True))

    compare_at(SIZES, Model(), lambda n: (torch.randn(n, K, D),))


WEIGHT = torch.linspace(0.5, 2.0, C, dtype=torch.float64)
TOKENS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weights": lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten(), WEIGHT, ignore_index=1),
    "smoothed": lambda x, y: F.cross_entropy(
        x.flatten(0, 1), y.flatten(), WEIGHT, ignore_index=1, label_smoothing=0.1
    ),
    "classes second": lambda x, y: F.cross_entropy(
        x.transpose(1, 2), y, WEIGHT, ignore_index=1, label_smoothing=0.1
    ),
    "other order": lambda x, y: F.cross_entropy(
        x.transpose(0, 1).flatten(0, 1), y.T.flatten(), WEIGHT, ignore_index=1, label_smoothing=0.2
    ),
    "summed": lambda x, y: F.cross_entropy(
        x.flatten(0, 1), y.flatten(), WEIGHT, ignore_index=1, reduction="sum"
    ),
    "nll": lambda x, y: F.nll_loss(
        x.log_softmax(-1).flatten(0, 1), y.flatten(), WEIGHT, ignore_index=1
    ),
}  # fmt: skip


def test_weighted_tokens():
    """The weighted mean over a sample's own valid tokens; some samples have fewer of them."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sum((i + 1) * f(x, y) for i, f in enumerate(TOKENS.values()))

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(2, C, (n, D))
        y[torch.arange(n)[:, None] % D > torch.arange(D)] = 1
        return torch.randn(n, D, 6), y

    compare_at(SIZES, nn.Linear(6, C), draw, loss)


def share_of_all(x: Tensor, y: Tensor) -> Tensor:
    own = WEIGHT[y.flatten()]
    each = F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="none")
    return (each * (own / own.sum())).sum()  # each weight by those of all samples


def balanced(x: Tensor, y: Tensor) -> Tensor:
    count = F.one_hot(y, C).sum((0, 1))
    return F.cross_entropy(x.flatten(0, 1), y.flatten(), 1 / count.clamp(min=1))


def both_orders(x: Tensor, y: Tensor) -> Tensor:
    return (draws(x) * turns(x)).mean(1).mean()


def rank(x: Tensor, y: Tensor) -> Tensor:
    place = torch.linspace(0, 1, x.shape[0] * x.shape[1])
    return (draws(x).mean(1) * place).mean()


@pytest.mark.parametrize("n", [D, 7])
@pytest.mark.parametrize("loss", [share_of_all, balanced, both_orders, rank])
def test_what_the_batch_decides_stays_refused(loss: Loss, n: int):
    x, y = torch.randn(n, D, 6), torch.randint(C, (n, D))
    with pytest.raises(fxdp.BatchMixingError):
        fxdp.prove(nn.Linear(6, C), x, y, loss_fn=loss)


class Weighted(nn.Module):
    """Two losses, joined with weights that are learned; for each way of that weights of its own."""

    def __init__(self, *kinds: str, decay: float = 0.0):
        super().__init__()
        self.body, self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 1)
        self.s = nn.ParameterDict({kind: torch.tensor([0.3, -0.2]) for kind in kinds})
        self.decay = decay

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        h = self.body(x).tanh()
        one, two = F.cross_entropy(self.one(h), y), F.mse_loss(self.two(h).squeeze(1), z)
        return sum(JOINS[kind](s, one, two) + self.decay * s.sum() for kind, s in self.s.items())


JOINS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "uncertainty": lambda s, a, b: (-s[0]).exp() * a + (-s[1]).exp() * b,
    "deviations": lambda s, a, b: a / (2 * s[0] ** 2) + b / s[1] ** 2,
    "stacked": lambda s, a, b: (s.exp() * torch.stack([a, b])).sum(),
    "softmax": lambda s, a, b: s.softmax(0) @ torch.stack([a, b]),
    "product": lambda s, a, b: a * b,
    "power": lambda s, a, b: a ** s.exp()[0] + (s[1] * b).exp(),
}


def batch(n: int) -> tuple[Tensor, ...]:
    return torch.randn(n, 4), torch.randint(3, (n,)), torch.randn(n)


def test_learned_weights():
    compare_at((7, 4, 2, 1), Weighted(*JOINS), batch)


def test_what_keeps_learned_weights_apart_holds_no_samples():
    """exp(-s1) L1 + exp(-s2) L2 + s1 + s2: the last two are added to the release, unclipped."""
    model, free = Weighted("uncertainty", decay=0.5), Weighted("uncertainty")
    free.load_state_dict(model.state_dict())
    n = 7
    args = batch(n)
    each, norms = per_sample(free, None, args, {}, n)
    bound = float(norms.mean())
    private = fxdp.compile(
        model, max_grad_norm=bound, noise_multiplier=0.0, expected_batch_size=n, backend="eager"
    )
    private(*args).backward()
    for name, want in clipped_sum(each, bound, n).items():
        want = want + 0.5 * name.startswith("s.")
        torch.testing.assert_close(model.get_parameter(name).grad, want, rtol=1e-9, atol=1e-9)
