"""The losses that `--loss` knows by name, and what is assumed where none is given.

A lint run has no targets, so their shapes are made to fit. What a loss is called matters little
to the proof: each of these takes every sample by itself.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxdp.lint.models import wanted

Loss = Callable[[Any, Tensor], Tensor]


def cross_entropy(out: Any, y: Tensor) -> Tensor:
    """Classes on the last axis where the target has the shape of the others, else torch's own."""
    logits = scores(out)
    last = logits.dim() == y.dim() + 1 and logits.shape[1:-1] == y.shape[1:]
    if last and not y.is_floating_point():
        return F.cross_entropy(logits.flatten(0, -2), y.flatten())
    return F.cross_entropy(logits, y)


def nll(out: Any, y: Tensor) -> Tensor:
    return F.nll_loss(scores(out), y)


def mse(out: Any, y: Tensor) -> Tensor:
    return F.mse_loss(scores(out), y)


def l1(out: Any, y: Tensor) -> Tensor:
    return F.l1_loss(scores(out), y)


def smooth_l1(out: Any, y: Tensor) -> Tensor:
    return F.smooth_l1_loss(scores(out), y)


def huber(out: Any, y: Tensor) -> Tensor:
    return F.huber_loss(scores(out), y)


def bce(out: Any, y: Tensor) -> Tensor:
    """On logits, as a training script would have it."""
    return F.binary_cross_entropy_with_logits(scores(out), y)


LOSSES: dict[str, Loss] = dict(
    zip(wanted.LOSSES, (cross_entropy, nll, mse, l1, smooth_l1, huber, bce), strict=True)
)
OF_CLASSES = {"cross_entropy", "nll"}  # whose targets are whole numbers


def scores(out: Any) -> Tensor:
    """What a loss is taken of: the model's logits, or the first floating tensor it returns."""
    if isinstance(out, Tensor):
        return out
    logits: Any = getattr(out, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(out, dict) or hasattr(out, "items"):
        out = list(dict(out.items()).values())
    if isinstance(out, list | tuple):
        for item in out:
            if isinstance(item, Tensor) and item.is_floating_point():
                return item
    raise TypeError(f"the model returned a {type(out).__name__} without a floating tensor")


def own_loss(out: Any) -> Tensor | None:
    """The loss that a model returns, where what it returns looks like one."""
    first = out[0] if isinstance(out, list | tuple) and out else out
    if isinstance(out, dict) or hasattr(out, "loss"):
        first = out.get("loss") if isinstance(out, dict) else getattr(out, "loss", None)
    if isinstance(first, Tensor) and first.is_floating_point() and first.dim() <= 1:
        return first
    return None


def target_for(loss: str, out: Tensor) -> Tensor:
    """A target that fits what the model returned."""
    if loss == "nll":
        return torch.zeros([*out.shape[:1], *out.shape[2:]], dtype=torch.int64, device=out.device)
    if loss in OF_CLASSES:
        return torch.zeros(out.shape[:-1], dtype=torch.int64, device=out.device)
    return torch.zeros_like(out)
