"""The rule of CTC, and its backward pass over what samples share."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.kernels import ctc as own
from fxdp.ops import ctc
from tests.ops.placements import Case, T, case, each, hold
from tests.sizes import compare_at

STEPS, CLASSES, PLACES = 3, 4, 2


def of(only: str) -> Callable[..., T]:
    return lambda *shape, **how: T(*shape, only=only, **how)


some, shared = of("replicate shard"), of("replicate")


def lengths(kind: Callable[..., T], *values: int) -> T:
    return kind(2, values=values, dtype=torch.int64)


# Two rows, of samples and of what samples share.
CASES = [
    case(
        own.ctc_loss.default, some(STEPS, 2, CLASSES), some(2, PLACES, high=CLASSES),
        lengths(some, 2, 3), lengths(some, 0, 1, 2), 0, each(True, False),
    ),
    case(
        own.ctc_loss_backward.default, some(2), of("shard")(STEPS, 2, CLASSES),
        of("shard")(2, PLACES, high=CLASSES), lengths(of("shard"), 2, 3),
        lengths(of("shard"), 0, 1, 2), of("shard")(2), of("shard")(2, STEPS, 2 * PLACES + 1),
        0, each(True, False),
    ),
    case(
        own.ctc_loss_backward.default, of("partial")(2), some(STEPS, 2, CLASSES),
        shared(2, PLACES, high=CLASSES), lengths(shared, 2, 3), lengths(shared, 0, 1, 2),
        shared(2), shared(2, STEPS, 2 * PLACES + 1), 0, False, samples=False,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    hold(case)


def test_every_op_is_tried() -> None:
    assert {c.op for c in CASES} == ctc.RULES.keys()


class Prompt(nn.Module):
    """Two sequences that all samples share are aligned, and weighed by each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.fc = nn.Parameter(torch.randn(STEPS, 2, CLASSES)), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        targets, lengths = torch.tensor([[1, 2], [3, 0]]), torch.tensor([STEPS, STEPS])
        log_probs = self.steps.log_softmax(-1)
        labels = torch.tensor([2, 1])
        loss = F.ctc_loss(log_probs, targets, lengths, labels, reduction="none")
        return (self.fc(x) * loss).sum(1)


@pytest.mark.usefixtures("double")
def test_of_what_samples_share() -> None:
    compare_at((7, 2, 1), Prompt(), lambda n: (torch.randn(n, 2),))


class Over(nn.Module):
    """The samples as steps of one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.fc(x).log_softmax(-1).unsqueeze(1)
        one = torch.tensor([1])
        return F.ctc_loss(steps, one.unsqueeze(0), torch.tensor([2]), one)


def test_steps_over_samples_are_refused() -> None:
    with pytest.raises(fxdp.BatchMixingError, match="aligned with steps of others"):
        fxdp.prove(Over(), torch.randn(5, 4))
