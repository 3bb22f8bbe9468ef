"""CTC losses of whole models, at all batch sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tests.sizes import compare_at

pytestmark = pytest.mark.usefixtures("double")
T, D, C, S = 6, 4, 5, 3
SIZES = (7, T, C, 2, 1)


class Reader(nn.Module):
    """Labels of a sequence, by losses of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(D, C) for _ in range(3))
        self.mean, self.each = nn.CTCLoss(), nn.CTCLoss(blank=2, reduction="none")

    def forward(self, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        a, b, c = (fc(x).log_softmax(-1).transpose(0, 1) for fc in self.fc)
        steps = torch.full((x.shape[0],), T)
        short = torch.where(labels > 1, 2, steps)  # too short for its labels, at times
        total = F.ctc_loss(c, y, short, labels, reduction="sum", zero_infinity=True)
        return self.mean(a, y, steps, labels) + self.each(b, y, steps, labels).mean() + total


class Shorter(nn.Module):
    """The loss with the most around it, alone: what compiles quickly."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(D, C)

    def forward(self, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        steps = torch.where(labels > 1, 2, torch.full((x.shape[0],), T))
        c = self.fc(x).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(c, y, steps, labels, reduction="sum", zero_infinity=True)


def draw(n: int) -> tuple[Any, ...]:
    return torch.randn(n, T, D), torch.randint(1, C, (n, S)), torch.randint(0, S + 1, (n,))


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("model", "backend", "sizes"), [(Reader, "eager", SIZES), (Shorter, "inductor", (7, 2))]
)
def test_as_single_samples(model: type[nn.Module], backend: str, sizes: tuple[int, ...]) -> None:
    compare_at(sizes, model(), draw, backend=backend)


class Refused(nn.Module):
    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.fc, self.body = nn.Linear(D, C), body

    def forward(self, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        return self.body(self.fc(x).log_softmax(-1).transpose(0, 1), y, labels)


def numbers(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    return torch.ctc_loss(x, y, (T,) * 7, (1,) * 7)


def flat(x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    return F.ctc_loss(x, y.flatten(), torch.full((7,), T), labels)


@pytest.mark.parametrize(("body", "why"), [(numbers, "lengths as tensors"), (flat, "padded")])
def test_refused_with_what_helps(body: Callable[..., Tensor], why: str) -> None:
    with pytest.raises(fxdp.CaptureError, match=why) as caught:
        fxdp.prove(Refused(body), *draw(7))
    found = caught.value.diagnostics[0]
    assert found.location is not None
    assert found.location.file == __file__
    assert "targets are [N, S] and both lengths tensors [N]" in found.remedy


def test_a_sample_with_an_impossible_label_has_no_part() -> None:
    x, y, labels = draw(5)
    model, labels[0] = Reader(), 1
    y[0, 0] = C  # there, torch's own kernel reads what belongs to the next step or sample
    private = fxdp.compile(
        model, max_grad_norm=1e6, noise_multiplier=0.0, expected_batch_size=1.0, backend="eager"
    )
    private(x, y, labels).backward()
    assert private.last_nonfinite == 1
    got = [p.grad for p in model.parameters()]
    private.zero_grad(set_to_none=True)
    private(x[1:], y[1:], labels[1:]).backward()
    for one, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad)
