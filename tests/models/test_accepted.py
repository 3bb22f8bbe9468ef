"""The near twins of refused models, in which samples stay apart, agree with a loop over them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from tests.findings import Net
from tests.oracle import compare

N, T, D = 6, 5, 4
CASES: dict[tuple[int, ...], list[tuple[Any, dict[str, Any]]]] = {}


def good(*shapes: tuple[int, ...], **layers: Any) -> Any:
    """Collect a body of `Net` for the shapes of its input to try."""

    def collect(body: Any) -> Any:
        for shape in shapes:
            CASES.setdefault(shape, []).append((body, layers))
        return body

    return collect


@good((N, D), (D, D))
def minus_own_mean(net, x):
    return net.fc(x - x.mean(1, keepdim=True))


@good((N, D))
def own_norm(net, x):
    return net.fc(x / x.norm(dim=1, keepdim=True)) / x.std(1, keepdim=True)


@good((N, T, D), (T, T, D))
def time_first(net, x):
    return net.fc(x.transpose(0, 1)).tanh().transpose(0, 1)


@good((N, T, D), (T, T, D), (D, T, D))
def tokens_and_back(net, x):
    return net.fc(x.reshape(-1, D)).tanh().view(len(x), -1, D)


@good((N, T, D), (T, T, D))
def time_major_tokens_and_back(net, x):
    rows = net.fc(x.transpose(0, 1).reshape(-1, D)).tanh()
    return rows.view(x.shape[1], len(x), D).transpose(0, 1)


@good((N, T, D), (T, T, D))
def along_time(net, x):
    y = net.fc(x)
    return y.roll(1, 1) + y.flip(1) * 2 + y.cumsum(1).sin() + y.sort(1)[0] * 3 + y.softmax(1)


@good((N, D), (D, D))
def along_features(net, x):
    y = net.fc(x)
    return y.roll(1, 1) + y.flip(1) * 2 + y.cumsum(1).sin() + y.sort(1)[0] * 3 + y.softmax(1)


@good((N, T, D), (T, T, D), rows=lambda: nn.Embedding(9, D))
def positions(net, x):
    return net.fc(x) + net.layers["rows"](torch.arange(x.shape[1])) + torch.arange(T)[:, None]


@good((N, D), rows=lambda: nn.Embedding(9, D))
def own_row(net, x):
    return net.fc(x) * net.layers["rows"]((x[:, 0] > 0).long())


@good((N, T, D), att=lambda: nn.MultiheadAttention(D, 2, batch_first=True))
def attention_over_time(net, x):
    return net.layers["att"](net.fc(x), x, x)[0]


@good((N, T, D))
def own_gram(net, x):
    return net.fc(x) @ x.transpose(1, 2) @ x


@good((N, T, D), norm=lambda: nn.InstanceNorm1d(T, affine=True))
@good((N, T, D), norm=lambda: nn.GroupNorm(5, T))
@good((N, T, D), norm=lambda: nn.LayerNorm((T, D)))
@good((N, T, D), norm=lambda: nn.BatchNorm1d(T).eval())
@good((N, T, D), norm=lambda: nn.RMSNorm(D))
@good((N, T, D), norm=lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(D, D)).eval())
@good((N, T, D), norm=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(D, D)))
def normalised(net, x):
    return net.layers["norm"](net.fc(x)) * torch.linspace(0.5, 1.5, D)


@good((N, D))
def masked(net, x):
    return net.fc(x) * (x.sum(1, keepdim=True) > 0) + torch.where(x > 0, net.fc(x), x)


@good((N, D))
def own_choice(net, x):
    y = net.fc(x)
    return y[torch.arange(len(x)), x.argmax(1)].unsqueeze(1) * y.gather(1, x.argmin(1)[:, None])


@good((N, D))
def stacked_and_taken(net, x):
    return torch.cat([net.fc(x), x], 1).tanh() + torch.stack([x, net.fc(x)]).sum(0).repeat(1, 2)


@good((N, D))
def size_as_a_shape(net, x):
    return net.fc(x) + torch.zeros(len(x), D) + x.new_ones(1, D).expand(len(x), -1)


@good((N, D))
def at_least_one_sample(net, x):
    return net.fc(x) if len(x) > 0 else x


class Nets(nn.Module):
    """Nets on one input, by names that say whose gradient is wrong; the sum of their losses."""

    def __init__(self, nets: dict[str, nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets)

    def forward(self, x):
        return sum(net(x) for net in self.nets.values())


@pytest.mark.parametrize("shape", CASES, ids=str)
def test_samples_stay_apart(shape: tuple[int, ...]):
    torch.manual_seed(0)
    nets = {
        f"{body.__name__}_{i}": Net(body, **{k: make() for k, make in layers.items()})
        for i, (body, layers) in enumerate(CASES[shape])
    }
    compare(Nets(nets), torch.randn(shape))


class Scores(nn.Module):
    def __init__(self, classes: int = 3):
        super().__init__()
        self.fc = nn.Linear(D, classes)

    def forward(self, x):
        return self.fc(x)


def weighted(out, y):
    return (F.cross_entropy(out, y, reduction="none") * torch.linspace(1, 2, 3)[y]).mean()


def smoothed(out, y):
    return F.cross_entropy(out, y, ignore_index=1, label_smoothing=0.1, weight=torch.ones(3) / 2)


def gathered(out, y):
    return -out.log_softmax(-1)[torch.arange(len(y)), y].mean()


def matched(out, y):
    return F.mse_loss(out, F.one_hot(y, 3).float(), reduction="sum") / len(y)


def of_the_mean(out, y):
    return F.cross_entropy(out, y).log()  # what it is for a sample alone: the log of its own loss


def test_losses():
    losses = (F.cross_entropy, weighted, smoothed, gathered, matched, of_the_mean)

    def loss_fn(out, y):
        return sum((i + 1) * loss(out, y) for i, loss in enumerate(losses))

    torch.manual_seed(0)
    y = torch.tensor([0, 2, 0, 2, 2, 0])  # no target 1: alone, its loss would be 0 / 0
    compare(Scores(), torch.randn(N, D), y, loss_fn=loss_fn)


def test_ignored_tokens_count_for_each_sample():
    def loss(out, y):
        return F.cross_entropy(out.flatten(0, 1), y.flatten(), ignore_index=-100)

    torch.manual_seed(0)
    y = torch.randint(0, 3, (N, T))
    y[torch.arange(N)[:, None] > torch.arange(T)] = -100
    y[:, -1] = 1
    compare(Scores(), torch.randn(N, T, D), y, loss_fn=loss)


def test_spectral_norm_iterates_in_training():
    torch.manual_seed(0)
    model = Net(normalised, norm=nn.utils.parametrizations.spectral_norm(nn.Linear(D, D)))
    before = {k: v.clone() for k, v in model.named_buffers()}
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=N, backend="eager"
    )
    private(torch.randn(N, T, D)).backward()
    assert any(not torch.equal(v, before[k]) for k, v in model.named_buffers())


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * g.abs().sum(1, keepdim=True)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_backward_of_ones_own():
    compare(Net(lambda net, x: Halved.apply(net.fc(x))), torch.randn(N, D))
