"""Losses: each sample's gradient is that of its own loss, however the batch's loss is written."""

from collections.abc import Callable

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
        "both": lambda x, y: F.cross_entropy(x, y, weight=WEIGHT.to(x), label_smoothing=0.1),
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
        "soft weights": lambda x, y: F.cross_entropy(x, y, weight=WEIGHT.to(x), label_smoothing=0.1),
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


@pytest.mark.parametrize("kind", LOSSES)
def test_reduced(kind: str):
    if kind == "ignored":
        pytest.skip("a sample without a valid target has no loss: see below")

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sum((i + 1) * f(x, y) for i, f in enumerate(LOSSES[kind].values()))

    compare(nn.Linear(6, C), torch.randn(N, 6), TARGETS[kind](), loss_fn=loss, each=False)
