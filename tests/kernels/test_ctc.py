"""CTC as one op computes what torch's own does, and what torch's does not look at."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxdp.capture.polyfills import symbolic_kernels
from fxdp.kernels.ctc import ctc_loss

pytestmark = pytest.mark.usefixtures("double")
T, N, C, S = 5, 4, 4, 3
STEPS, LABELS = torch.tensor([5, 4, 2, 0]), torch.tensor([2, 1, 0, 0])
TARGETS = torch.tensor([[1, 2, 0], [3, -100, 77], [1, 1, 1], [2, 2, 2]])


def log_probs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(T, N, C).log_softmax(-1).requires_grad_()


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_as_torch_does(reduction: str, zero_infinity: bool) -> None:
    x, labels = log_probs(), LABELS.clone()
    labels[2] = 3 if zero_infinity else 0  # three labels in two steps

    def found() -> tuple[Tensor, Tensor]:
        loss = F.ctc_loss(x, TARGETS, STEPS, labels, 0, reduction, zero_infinity)
        way = torch.linspace(1, 2, loss.numel()).reshape(loss.shape)
        return loss, torch.autograd.grad((loss * way).sum(), x)[0]

    wanted = found()
    with symbolic_kernels(), torch._C._EnablePythonDispatcher():
        got = found()
    for one, other in zip(got, wanted, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


def test_of_one_sequence() -> None:
    x, y, steps, labels = log_probs()[:, 0], TARGETS[0], STEPS[0], LABELS[0]
    wanted = F.ctc_loss(x, y[:2], steps, labels, reduction="none")
    with symbolic_kernels(), torch._C._EnablePythonDispatcher():
        got = F.ctc_loss(x, y, steps, labels, reduction="none")
        listed = torch.ctc_loss(x, y, (int(steps),), (int(labels),), 0, 0)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(listed, wanted)


IMPOSSIBLE = {
    "a label beyond the classes": (TARGETS.index_fill(1, torch.tensor([0]), C), STEPS, LABELS),
    "a label below 0": (TARGETS.index_fill(1, torch.tensor([0]), -1), STEPS, LABELS),
    "more steps than there are": (TARGETS, STEPS + T, LABELS),
    "fewer than no steps": (TARGETS, STEPS - T - 1, LABELS),
    "more labels than places": (TARGETS, STEPS, LABELS + S + 1),
    "fewer than no labels": (TARGETS, STEPS, LABELS - 3),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_row_is_no_number_and_leaves_others_alone(case: str) -> None:
    """torch's kernel raises, or takes the numbers of other samples for those of such a label."""
    x, targets, steps, labels = log_probs(), TARGETS.clone(), STEPS.clone(), LABELS.clone()
    for own, given in zip((targets, steps, labels), IMPOSSIBLE[case], strict=True):
        own[0] = given[0]
    loss, _ = ctc_loss(x, targets, steps, labels, 0, False)
    (slope,) = torch.autograd.grad(loss.sum(), x)
    good, _ = ctc_loss(x, TARGETS, STEPS, LABELS, 0, False)
    (wanted,) = torch.autograd.grad(good.sum(), x)
    assert loss[0].isnan()
    assert slope[:, 0].isnan().all()
    torch.testing.assert_close(loss[1:], good[1:])
    torch.testing.assert_close(slope[:, 1:], wanted[:, 1:])


def test_what_torch_leaves_unset_is_zero() -> None:
    """It is memory left behind, which differs from run to run and may be another sample's."""
    alpha = ctc_loss(log_probs(), TARGETS, STEPS, LABELS, 0, False)[1]
    assert alpha.shape == (N, T, 2 * S + 1)
    for row, steps, labels in zip(alpha, STEPS, LABELS, strict=True):
        assert not row[steps:].any()
        assert not row[:, 2 * labels + 1 :].any()


@pytest.mark.parametrize(
    ("given", "why"),
    [((TARGETS.flatten(), STEPS, LABELS), "padded"), ((TARGETS, (5,) * N, (1,) * N), "as tensors")],
)
def test_what_holds_no_batch_is_refused(given: tuple[Any, Any, Any], why: str) -> None:
    with (
        symbolic_kernels(),
        torch._C._EnablePythonDispatcher(),
        pytest.raises(ValueError, match=why),
    ):
        F.ctc_loss(log_probs(), *given)
