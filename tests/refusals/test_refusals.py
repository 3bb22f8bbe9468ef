"""Models whose forward lets samples meet are refused, by the line where they do.

Each has a `# FXD...` on that line. Sizes are chosen so that the batch equals another axis
wherever that could fool a proof that looks at numbers.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.findings import Net, marked, refused

N, T, D = 6, 5, 4
CASES: list[Any] = []


def bad(*shapes: tuple[int, ...], **layers: Callable[[], nn.Module]) -> Any:
    """Collect a body of `Net` together with the shapes of its input to try."""

    def collect(body: Any) -> Any:
        name = body.__name__
        CASES.extend(pytest.param(body, s, layers, id=f"{name}-{s[0]}") for s in shapes)
        return body

    return collect


@bad((N, D))
def minus_mean(net, x):
    return net.fc(x - x.mean(0))  # FXD102


@bad((N, D))
def faint_mean(net, x):
    return net.fc(x) + 1e-6 * x.mean(0)  # FXD102


@bad((N, D))
def mean_of_all(net, x):
    return net.fc(x - x.mean())  # FXD102


@bad((N, D))
def mean_without_gradient(net, x):
    with torch.no_grad():
        centre = x.mean(0)  # FXD102
    return net.fc(x) - centre


@bad((N, D))
def norm_of_all(net, x):
    return net.fc(x / x.norm())  # FXD101


@bad((N, D))
def standardised(net, x):
    return net.fc(x / x.std(0))  # FXD101


@bad((N, D))
def largest(net, x):
    return net.fc(x - x.max(0)[0])  # FXD101


@bad((N, D), norm=lambda: nn.BatchNorm1d(D))
@bad((N, D), norm=lambda: nn.BatchNorm1d(D).requires_grad_(False))
@bad((N, D), norm=lambda: nn.BatchNorm1d(D, affine=False))
@bad((N, D), norm=lambda: nn.BatchNorm1d(D, affine=False, track_running_stats=False))
@bad((N, D), norm=lambda: type("Mine", (nn.BatchNorm1d,), {})(D))
@bad((N, D), norm=lambda: nn.Sequential(nn.Sequential(nn.Identity(), nn.BatchNorm1d(D))))
@bad((N, D), norm=lambda: nn.SyncBatchNorm(D))
def batch_norm(net, x):
    return net.layers["norm"](net.fc(x))  # FXD101


@bad((N, T, D), (D, T, D))
def view_mixes_time(net, x):
    return net.fc(x).permute(1, 0, 2).reshape(len(x), -1)  # FXD101


@bad((N, D))
def view_mixes_features(net, x):
    return net.fc(x).view(x.shape[1], -1).reshape(-1, D)  # FXD101


@bad((N, D), (D, D))
def rolled(net, x):
    return net.fc(x) + x.roll(1, 0)  # FXD101


@bad((N, D))
def rolled_flat(net, x):
    return net.fc(x) + x.roll(1)  # FXD101


@bad((N, D))
def flipped(net, x):
    return net.fc(x) + x.flip(0)  # FXD101


@bad((N, D))
def permuted(net, x):
    return net.fc(x)[torch.randperm(len(x))]  # FXD101


@bad((N, D))
def reversed_by_index(net, x):
    return net.fc(x)[torch.arange(len(x) - 1, -1, -1)]  # FXD102


@bad((N, D))
def paired_by_content(net, x):
    return net.fc(x) + x[(x[:, 0] > 0).long()]  # FXD101


@bad((N, D))
def first_sample(net, x):
    return net.fc(x) - x[0]  # FXD101


@bad((N, D))
def next_sample(net, x):
    return net.fc(x)[1:]  # FXD101


@bad((N, D))
def halves(net, x):
    half = len(x) // 2
    return torch.cat([net.fc(x), x])[half : half + len(x)]  # FXD101


@bad((N, D))
def cumulated(net, x):
    return net.fc(x).cumsum(0)  # FXD101


@bad((N, D))
def ordered(net, x):
    return net.fc(x).sort(0)[0]  # FXD101


@bad((N, D))
def ranked(net, x):
    return net.fc(x) + x.argsort(0)  # FXD101


@bad((N, D), (D, D))
def softmax_over_batch(net, x):
    return net.fc(x).softmax(0)  # FXD101


@bad((N, D))
def gram(net, x):
    return net.fc(x) @ x.T  # FXD101


@bad((N, D))
def correlated(net, x):
    return net.fc(x) @ (x.T @ x)  # FXD101


@bad((N, D))
def differences(net, x):
    return net.fc(x)[:, None] - x[None]  # FXD101


@bad((N, T, D), (T, T, D), att=lambda: nn.MultiheadAttention(D, 2))
def attention_over_batch(net, x):
    return net.layers["att"](net.fc(x), x, x)[0]  # FXD101


@bad((N, T, D))
def dot_product_over_batch(net, x):
    q = net.fc(x).transpose(0, 1)
    return F.scaled_dot_product_attention(q, q, q).transpose(0, 1)  # FXD101


@bad((N, D), rows=lambda: nn.Embedding(9, D))
def position_in_batch(net, x):
    return net.fc(x) + net.layers["rows"](torch.arange(len(x)))  # FXD101


@bad((N, D))
def number_of_sample(net, x):
    return net.fc(x) + torch.arange(len(x)).unsqueeze(1)  # FXD101


@bad((N, D))
def triangle(net, x):
    return net.fc(x).triu()  # FXD101


@bad((N, D))
def selected(net, x):
    return net.fc(x[x.sum(1) > 0])  # FXD101


@bad((N, D))
def times_batch_size(net, x):
    return net.fc(x) * len(x)  # FXD102


@bad((N, D))
def item(net, x):
    return net.fc(x) * x.sum().item()  # FXD102


@bad((N, D))
def branch_on_batch_size(net, x):
    if len(x) > 4:  # FXD104
        return net.fc(x)
    return x


@bad((N, D))
def branch_on_parity(net, x):
    return net.fc(x) if len(x) % 2 == 0 else x  # FXD104


@bad((N, D))
def at_most_a_hundred(net, x):
    return net.fc(x[:100])  # FXD104


@bad((N, D))
def two_faults(net, x):
    centred = x - x.mean(0)  # FXD102
    return net.fc(centred).softmax(0) + x.flip(0)  # FXD101


@pytest.mark.parametrize(("body", "shape", "layers"), CASES)
def test_samples_meet(body: Any, shape: tuple[int, ...], layers: dict[str, Any]):
    model = Net(body, **{k: make() for k, make in layers.items()})
    refused(fxdp.BatchMixingError, __file__, marked(body), model, torch.randn(shape))


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, D)

    def forward(self, x):
        return self.fc(x).transpose(0, 1).square().sum((1, 2))  # FXD201


@pytest.mark.parametrize("n", [N, T])
def test_a_loss_for_each_position_is_no_loss_for_each_sample(n: int):
    found = refused(
        fxdp.BatchMixingError, __file__, marked(TimeFirst), TimeFirst(), torch.randn(n, T, D)
    )
    assert (found[0].op, found[0].why) == (
        "loss",
        "a loss of shape [5] is not one number for each sample",
    )


def test_independent_faults_come_in_order_and_once():
    def several(net: Net, x: Tensor) -> Tensor:
        a = x - x.mean(0)
        b = net.fc(a) + x.flip(0)
        return b + net.fc(x).roll(1, 0)

    with pytest.raises(fxdp.BatchMixingError) as caught:
        fxdp.prove(Net(several), torch.randn(N, D))
    first = several.__code__.co_firstlineno
    found = [
        (d.location.line - first, d.op.split()[0]) for d in caught.value.diagnostics if d.location
    ]
    assert found == [(1, "mean"), (2, "flip"), (3, "roll")]
    assert str(caught.value).startswith("the model cannot be made private, 3 faults found")


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_step_refuses_as_well(backend: str):
    model = Net(minus_mean)
    private = fxdp.compile(
        model, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=N, backend=backend
    )
    with pytest.raises(fxdp.BatchMixingError) as caught:
        private(torch.randn(N, D))
    assert [(d.location.line, d.code.code) for d in caught.value.diagnostics] == marked(minus_mean)
    assert private.releases == 0
    assert all(p.grad is None for p in model.parameters())
