"""What Hugging Face's models do at their first call, and a loss of theirs, so that torch can
capture them."""

import functools
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOOKS = "transformers.utils.output_capturing"
LOSSES = "transformers.loss.loss_ctc"


def set_up(model: nn.Module) -> None:
    """Have models install their hooks for hidden states, which they do at the first call that needs
    them, within a lock that torch cannot capture; and let torch capture the loss of this file in
    place of theirs."""
    hooks: Any = getattr(sys.modules.get(HOOKS), "maybe_install_capturing_hooks", None)
    if hooks is not None:
        for module in model.modules():
            if hasattr(module, "_can_record_outputs"):
                hooks(module)
    theirs: Any = getattr(sys.modules.get(LOSSES), "ForCTCLoss", None)
    if theirs is not None:
        once(theirs)


@functools.cache
def once(theirs: Any) -> None:
    """torch keeps to what it was told for a function as long as the process lives."""
    torch.compiler.substitute_in_graph(theirs, skip_signature_check=True)(ctc_loss)


def ctc_loss(
    logits: Tensor, labels: Tensor, logit_lengths: Tensor, blank_token_id: int,
    reduction: str = "mean", zero_infinity: bool = False, ignore_index: int = -100, **_: Any,
) -> Tensor:  # fmt: skip
    """Theirs, which puts the labels of all samples one after the other; here they stay apart."""
    labels = labels.to(logits.device)
    counts = (labels != ignore_index) & (labels != blank_token_id)
    order = (~counts).long().argsort(dim=-1, stable=True)  # those that count come first
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)
    return F.ctc_loss(
        log_probs, labels.gather(-1, order), logit_lengths, counts.sum(-1), blank_token_id,
        reduction, zero_infinity,
    )  # fmt: skip
