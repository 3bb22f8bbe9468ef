"""Losses: each sample's gradient is that of its own loss, however the batch's loss is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.oracle import clipped_sum, compare, per_sample

pytestmark = pytest.mark.usefixtures("double")
N, T, C = 5, 3, 4
Loss = Callable[[Tensor, Tensor], Tensor]

WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1])

# By the kind of target; x is [N, C], and what is per element is averaged over it.
LOSSES: dict[str, dict[str, Loss]] = {
    "class": {
        "cross entropy": F.cross_entropy,
        "label smoothing": lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1),
        "class weights": lambda x, y: F.cross_entropy(x, y, weight=WEIGHT.to(x)),
        "both": lambda x, y: F.cross_entropy(x, y, WEIGHT.to(x), label_smoothing=0.1),
        "nll": lambda x, y: F.nll_loss(x.log_softmax(-1), y, weight=WEIGHT.to(x)),
        "margin": lambda x, y: F.multi_margin_loss(x, y),
        "sum": lambda x, y: F.cross_entropy(x, y, reduction="sum"),
    },
    "ignored": {
        "cross entropy": F.cross_entropy,
        "label smoothing": lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1),
        "class weights": lambda x, y: F.cross_entropy(x, y, weight=WEIGHT.to(x)),
        "nll": lambda x, y: F.nll_loss(x.log_softmax(-1), y),
    },
    "number": {
        "mse": F.mse_loss,
        "mse sum": lambda x, y: F.mse_loss(x, y, reduction="sum"),
        "l1": F.l1_loss,
        "smooth l1": F.smooth_l1_loss,
        "huber": lambda x, y: F.huber_loss(x, y, delta=0.3),
        "huber sum": lambda x, y: F.huber_loss(x, y, reduction="sum"),
        "poisson": F.poisson_nll_loss,
        "rooted": lambda x, y: (x - y).square().mean().sqrt(),
        "log cosh": lambda x, y: (x - y).cosh().log().mean(),
    },
    "probability": {
        "soft targets": F.cross_entropy,
        "soft weights": lambda x, y: F.cross_entropy(
            x, y, weight=WEIGHT.to(x), label_smoothing=0.1
        ),
        "bce": lambda x, y: F.binary_cross_entropy(x.sigmoid(), y),
        "bce logits": F.binary_cross_entropy_with_logits,
        "bce weights": lambda x, y: F.binary_cross_entropy_with_logits(
            x, y, weight=WEIGHT.to(x), pos_weight=WEIGHT.to(x)
        ),
        "kl": lambda x, y: F.kl_div(x.log_softmax(-1), y, reduction="batchmean"),
        "kl mean": lambda x, y: F.kl_div(x.log_softmax(-1), y, reduction="mean"),
        "soft margin": lambda x, y: F.soft_margin_loss(x, y.sign() - 2 * (y < 0.25)),
        "multilabel": lambda x, y: F.multilabel_soft_margin_loss(x, (y > 0.25).to(x)),
    },
    "sign": {
        "cosine": lambda x, y: F.cosine_embedding_loss(x, x.flip(1).square(), y),
        "hinge": lambda x, y: F.hinge_embedding_loss(x[:, 0], y),
        "ranking": lambda x, y: F.margin_ranking_loss(x[:, 0], x[:, 1], y, margin=0.5),
        "triplet": lambda x, y: F.triplet_margin_loss(x, x.flip(1), x.roll(1, 1) * 2),
    },
}  # fmt: skip

TARGETS: dict[str, Callable[[], Tensor]] = {
    "class": lambda: torch.randint(C, (N,)),
    "ignored": lambda: torch.tensor([0, -100, 3, 2, 1]),
    "number": lambda: torch.randn(N, C),
    "probability": lambda: torch.randn(N, C).softmax(-1),
    "sign": lambda: torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]),
}


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")  # "mean" of kl_div is no mean
@pytest.mark.parametrize("kind", LOSSES)
def test_reduced(kind: str):
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sum((i + 1) * f(x, y) for i, f in enumerate(LOSSES[kind].values()))

    compare(nn.Linear(6, C), torch.randn(N, 6), TARGETS[kind](), loss_fn=loss)


def test_one_loss_for_each_sample():
    def loss(x: Tensor, y: Tensor) -> Tensor:
        weighted = F.cross_entropy(x, y, reduction="none", weight=WEIGHT.to(x), label_smoothing=0.1)
        margin = F.multi_margin_loss(x, y, reduction="none")
        own = -x.log_softmax(-1)[torch.arange(x.shape[0]), y]
        return weighted + margin + own + F.mse_loss(x, x.detach() * 2, reduction="none").sum(1)

    compare(nn.Linear(6, C), torch.randn(N, 6), torch.randint(C, (N,)), loss_fn=loss)


def tokens() -> Tensor:
    """Targets [N, T]: all, some and none of them valid."""
    y = torch.randint(C, (N, T))
    y[0, 1:] = -100
    y[2] = -100
    return y


TOKENS: dict[str, Loss] = {
    "classes second": lambda x, y: F.cross_entropy(x.transpose(1, 2), y),
    "weights": lambda x, y: F.cross_entropy(x.transpose(1, 2), y, weight=WEIGHT.to(x)),
    "flat": lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten()),
    "shifted": lambda x, y: F.cross_entropy(x[:, :-1].reshape(-1, C), y[:, 1:].reshape(-1)),
    "summed": lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum") / T,
    "masked mean": lambda x, y: (
        F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="none") * (y >= 0).flatten()
    ).sum() / (y >= 0).sum().clamp(min=1),
    "time first": lambda x, y: F.cross_entropy(x.transpose(0, 1).flatten(0, 1), y.T.flatten()),
}  # fmt: skip


def test_of_tokens():
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sum((i + 1) * f(x, y) for i, f in enumerate(TOKENS.values()))

    compare(nn.Linear(6, C), torch.randn(N, T, 6), tokens(), loss_fn=loss)


def test_one_loss_for_each_sample_of_tokens():
    def loss(x: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        return each.sum(1) / (y >= 0).sum(1).clamp(min=1)

    compare(nn.Linear(6, C), torch.randn(N, T, 6), tokens(), loss_fn=loss)


def test_dense_targets():
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(x, y, label_smoothing=0.1) + F.nll_loss(x.log_softmax(1), y)

    y = torch.randint(C, (N, 3, 3))
    y[1, 0] = -100
    compare(nn.Conv2d(2, C, 1), torch.randn(N, 2, 3, 3), y, loss_fn=loss)


def test_a_term_without_samples_is_added_unclipped():
    """Weight decay in the loss: (sum of clipped gradients) / L + the gradient of the term."""
    model = nn.Linear(6, C)

    def decay() -> Tensor:
        return 0.3 * model.weight.square().sum() + 0.1 * model.bias.square().sum()

    x, y = torch.randn(N, 6), torch.randint(C, (N,))
    each, norms = per_sample(model, F.cross_entropy, (x, y), {}, N)
    bound, expected = float(norms.median()), 7.0
    private = fxdp.compile(
        model, loss_fn=lambda out, y: F.cross_entropy(out, y) + decay(), max_grad_norm=bound,
        noise_multiplier=0.0, expected_batch_size=expected, backend="eager",
    )  # fmt: skip
    private(x, y).backward()
    public = torch.autograd.grad(decay(), list(model.parameters()))
    want = clipped_sum(each, bound, expected)
    for (name, p), term in zip(model.named_parameters(), public, strict=True):
        torch.testing.assert_close(p.grad, want[name] + term, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(private.per_sample_norms(x, y), norms, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: F.mse_loss(x, y, reduction="none"),
        lambda x, y: (x.mean(0) - y.mean(0)).square().sum(),
        lambda x, y: F.mse_loss(x, y) / x.norm(),
        lambda x, y: (x @ x.T).logsumexp(1).mean(),
        lambda x, y: (x[:, None] - y[None]).square().mean(),
        lambda x, y: x.flip(0).sub(y).square().mean(),
        lambda x, y: (x - x.detach().amax(0)).square().mean(),
    ],
)
def test_refused(loss: Loss):
    private = fxdp.compile(nn.Linear(6, C), loss_fn=loss, max_grad_norm=1.0, noise_multiplier=0.0,
                           expected_batch_size=N, backend="eager")  # fmt: skip
    with pytest.raises(fxdp.ProofError):
        private(torch.randn(N, 6), torch.randn(N, C))


class Total(nn.Module):
    """A loss that is made of a total over the batch, and linear in it."""

    def __init__(self, of: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.w = nn.Linear(6, 6), nn.Parameter(torch.randn(6))
        self.table, self.of = nn.Parameter(torch.randn(6, 6)), of

    def forward(self, x: Tensor) -> Tensor:
        return self.of(self, x, self.fc(x))


TOTALS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "rows": lambda m, x, h: h.sum(0) @ m.w,
    "a product with ones": lambda m, x, h: (h.t() @ torch.ones(len(x))) @ m.w,
    "of products": lambda m, x, h: (h.t() @ h * m.table).sum(),
    "einsum": lambda m, x, h: torch.einsum("nt,ns->ts", h, x).mul(m.table).sum(),
    "by class": lambda m, x, h: (
        torch.zeros(6, 6).index_add(0, (x[:, 0] > 0).long(), h).mul(m.table).sum()
    ),
}


@pytest.mark.parametrize("of", TOTALS.values(), ids=TOTALS)
def test_a_weighted_total(of: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    compare(Total(of), torch.randn(N, 6))
