"""The losses of torch.nn, in every reduction."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tools.census.subject import Make, N, Step


def of(make: Any, out: int, target: Any) -> Make:
    return lambda: Step(nn.Linear(6, out), (torch.randn(N, 6), target()), loss_fn=make())


def classes() -> Tensor:
    return torch.randint(4, (N,))


def reals() -> Tensor:
    return torch.randn(N, 4)


def chances() -> Tensor:
    return torch.rand(N, 4)


def signs() -> Tensor:
    return torch.randn(N, 4).sign()


class Triple(nn.Module):
    """A loss of three values of each sample."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.linear = nn.Linear(6, 4)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return self.loss(self.linear(a), self.linear(b), self.linear(c))


class Two(nn.Module):
    """A loss of two values of each sample, and a label."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.linear = nn.Linear(6, 4)

    def forward(self, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.linear(a), self.linear(b), y)


def wrapped(make: Any, kind: Any, last: Any) -> Make:
    return lambda: Step(kind(make()), (torch.randn(N, 6), torch.randn(N, 6), last()))


def label() -> Tensor:
    return torch.randn(N).sign()


def ctc() -> Step:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x: Tensor, y: Tensor, nx: Tensor, ny: Tensor) -> Tensor:
            logs = self.linear(x).log_softmax(-1).transpose(0, 1)
            return nn.functional.ctc_loss(logs, y, nx, ny)

    lengths = (torch.full((N,), 8), torch.full((N,), 3))
    return Step(Model(), (torch.randn(N, 8, 6), torch.randint(1, 5, (N, 3)), *lengths))


LOSSES: dict[str, tuple[Any, int, Any]] = {
    "CrossEntropyLoss": (nn.CrossEntropyLoss, 4, classes),
    "CrossEntropyLoss weight": (
        lambda **k: nn.CrossEntropyLoss(torch.rand(4), ignore_index=1, **k), 4, classes,
    ),
    "CrossEntropyLoss smooth": (lambda **k: nn.CrossEntropyLoss(label_smoothing=0.1, **k), 4,
                                classes),
    "CrossEntropyLoss chances": (nn.CrossEntropyLoss, 4, chances),
    "NLLLoss": (nn.NLLLoss, 4, classes),
    "L1Loss": (nn.L1Loss, 4, reals),
    "MSELoss": (nn.MSELoss, 4, reals),
    "HuberLoss": (nn.HuberLoss, 4, reals),
    "SmoothL1Loss": (nn.SmoothL1Loss, 4, reals),
    "SoftMarginLoss": (nn.SoftMarginLoss, 4, signs),
    "HingeEmbeddingLoss": (nn.HingeEmbeddingLoss, 4, signs),
    "PoissonNLLLoss": (nn.PoissonNLLLoss, 4, chances),
    "KLDivLoss": (nn.KLDivLoss, 4, chances),
    "BCEWithLogitsLoss": (nn.BCEWithLogitsLoss, 4, chances),
    "MultiLabelSoftMarginLoss": (nn.MultiLabelSoftMarginLoss, 4, chances),
    "MultiMarginLoss": (nn.MultiMarginLoss, 4, classes),
    "MultiLabelMarginLoss": (nn.MultiLabelMarginLoss, 4, lambda: torch.randint(4, (N, 4))),
}  # fmt: skip


def subjects() -> Mapping[str, Make]:
    found: dict[str, Make] = {"CTCLoss": ctc}
    for name, (make, out, target) in LOSSES.items():
        for reduction in ("mean", "sum"):
            found[f"{name} {reduction}"] = of(
                lambda m=make, r=reduction: m(reduction=r), out, target
            )
    found["BCELoss"] = lambda: Step(
        nn.Sequential(nn.Linear(6, 4), nn.Sigmoid()), (torch.randn(N, 6), chances()),
        loss_fn=nn.BCELoss(),
    )  # fmt: skip
    found["GaussianNLLLoss"] = lambda: Step(
        nn.Linear(6, 4), (torch.randn(N, 6), reals()),
        loss_fn=lambda x, y: nn.functional.gaussian_nll_loss(x, y, torch.ones_like(y)),
    )  # fmt: skip
    found["TripletMarginLoss"] = wrapped(nn.TripletMarginLoss, Triple, lambda: torch.randn(N, 6))
    found["TripletMarginWithDistanceLoss"] = wrapped(
        nn.TripletMarginWithDistanceLoss, Triple, lambda: torch.randn(N, 6)
    )
    found["MarginRankingLoss"] = lambda: Step(
        Two(Ranking()), (torch.randn(N, 6), torch.randn(N, 6), label())
    )
    found["CosineEmbeddingLoss"] = wrapped(nn.CosineEmbeddingLoss, Two, label)
    return {f"loss {k}": v for k, v in found.items()}


class Ranking(nn.Module):
    """The margin between two numbers of a sample."""

    def forward(self, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return nn.functional.margin_ranking_loss(a[:, 0], b[:, 0], y)
