"""Connectionist temporal classification (CTC) as one op, with a backward pass in one piece.

torch's own op has a result whose size is read from the lengths in the batch, which no graph for all
batches can hold; here it has the size that the padded targets allow. torch's kernel also reads
another sample's numbers for a label that is no class, so that rows are checked here.

Letters: T steps, N rows of the batch, C classes, S places for the labels of a row.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxdp.kernels.library import define, fake

aten = torch.ops.aten


def fits(log_probs: Tensor, targets: Tensor, steps: Tensor, labels: Tensor) -> Tensor:
    """[N]: is a row what its lengths say, and are its labels classes?"""
    place = torch.arange(targets.shape[1], device=targets.device)
    known = (targets >= 0) & (targets < log_probs.shape[2])
    known = (known | (place >= labels.unsqueeze(1))).all(1)
    within = (steps >= 0) & (steps <= log_probs.shape[0])
    return known & within & (labels >= 0) & (labels <= targets.shape[1])


def checked(
    log_probs: Tensor, targets: Tensor, steps: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Targets and lengths for torch's kernel, with nothing in the rows that do not fit; and which
    ones do."""
    good = fits(log_probs, targets, steps, labels)
    targets = targets.clamp(0, max(log_probs.shape[2] - 1, 0)).contiguous()
    return targets, torch.where(good, steps, 0), torch.where(good, labels, 0), good


@torch.library.custom_op("fxdp::ctc_loss", mutates_args=())
def _ctc_loss(
    log_probs: Tensor, targets: Tensor, steps: Tensor, labels: Tensor, blank: int,
    zero_infinity: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss [N] of each row, and what the backward pass needs of it, [N, T, 2 S + 1].

    Args:
        log_probs: [T, N, C], of float32 or float64.
        targets: [N, S] labels.
        steps, labels: [N], how many steps and labels of each row count; a row whose lengths or
            labels are impossible has a loss of NaN.
        blank: the class that stands for no label.
        zero_infinity: whether a row that cannot be aligned, the loss of which is infinite here in
            any case, has a gradient of zero instead of NaN.
    """
    targets, steps, labels, good = checked(log_probs, targets, steps, labels)
    loss, alpha = aten._ctc_loss.Tensor(log_probs, targets, steps, labels, blank, zero_infinity)
    return torch.where(good, loss, torch.nan), whole(alpha, targets.shape[1], steps, labels)


def whole(alpha: Tensor, places: int, steps: Tensor, labels: Tensor) -> Tensor:
    """alpha [N, T, 2 S + 1], with zeros in place of what torch's kernel left unset."""
    alpha = F.pad(alpha, (0, 2 * places + 1 - alpha.shape[2]))
    step, place = (torch.arange(k, device=alpha.device) for k in alpha.shape[1:])
    set_step = step < steps.unsqueeze(1)
    set_place = place <= 2 * labels.unsqueeze(1)
    return torch.where(set_step.unsqueeze(2) & set_place.unsqueeze(1), alpha, 0.0)


@_ctc_loss.register_fake
def _(
    log_probs: Tensor, targets: Tensor, steps: Tensor, labels: Tensor, blank: int,
    zero_infinity: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = log_probs.shape[1]
    alpha = log_probs.new_empty(rows, log_probs.shape[0], 2 * targets.shape[1] + 1)
    return log_probs.new_empty(rows), alpha


@define("ctc_loss_backward")
def ctc_loss_backward(
    g: Tensor, log_probs: Tensor, targets: Tensor, steps: Tensor, labels: Tensor, loss: Tensor,
    alpha: Tensor, blank: int, zero_infinity: bool,
) -> Tensor:  # fmt: skip
    """[T, N, C], the gradient of the log-probabilities, linear in g [N]."""
    targets, steps, labels, good = checked(log_probs, targets, steps, labels)
    alpha = alpha[:, :, : 2 * int(labels.max()) + 1].contiguous() if labels.numel() else alpha
    found = aten._ctc_loss_backward.Tensor(
        g.contiguous(), log_probs, targets, steps, labels, loss, alpha, blank, zero_infinity
    )
    return torch.where(good.unsqueeze(1), found, torch.nan).contiguous()


@fake("ctc_loss_backward")
def _(
    g: Tensor, log_probs: Tensor, targets: Tensor, steps: Tensor, labels: Tensor, loss: Tensor,
    alpha: Tensor, blank: int, zero_infinity: bool,
) -> Tensor:  # fmt: skip
    return log_probs.new_empty(log_probs.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, blank, zero_infinity = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.how = blank, zero_infinity


def _back(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    found = ctc_loss_backward(g, *ctx.saved_tensors, *ctx.how)
    return found, None, None, None, None, None


_ctc_loss.register_autograd(_back, setup_context=_keep)

ctc_loss = torch.ops.fxdp.ctc_loss
