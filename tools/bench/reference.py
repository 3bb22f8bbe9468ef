"""The gradients that are wanted, from a loop over the samples in float32, and how sure they are.

Where a relu's input is 0 but for rounding, one way to multiply matrices lets the gradient through
and another does not, and both are right. One such sample of 512 moves the gradient of a small
parameter by more than the check would allow. So the gradient is taken twice more, with the weights
moved to either side by as much as rounding might; what jumps then is allowed to.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tools.bench.contender import CLIP
from tools.bench.task import Task

Gradients = Mapping[str, Tensor]
MOVED = 2e-6  # a few times the rounding of float32, relative to each weight
FLOOR = 1e-3  # a parameter with a smaller share of the whole gradient's norm counts as this large


@dataclass(frozen=True)
class Wanted:
    """A gradient.

    Attributes:
        gradients: by the parameter's name.
        jumps: how far each moves where rounding decides, as a share of its norm.
    """

    gradients: Gradients
    jumps: Mapping[str, float]


@dataclass(frozen=True)
class Reference:
    """What is wanted of contenders.

    Attributes:
        plain, private: the mean of the gradients, and of the clipped ones; without noise.
        clipped: the share of samples whose gradient is longer than the bound.
    """

    plain: Wanted
    private: Wanted
    clipped: float


@dataclass(frozen=True)
class Means:
    """Mean gradients of a batch."""

    plain: Gradients
    private: Gradients
    clipped: float


def reference(task: Task) -> Reference:
    """Both gradients, one sample at a time."""
    here, left, right = means(task), means(moved(task, -MOVED)), means(moved(task, MOVED))
    return Reference(
        Wanted(here.plain, errors(left.plain, right.plain)),
        Wanted(here.private, errors(left.private, right.private)),
        here.clipped,
    )


def errors(found: Gradients, wanted: Gradients) -> dict[str, float]:
    """How far gradients are off, each relative to its norm."""
    whole = math.sqrt(sum(float(w.double().square().sum()) for w in wanted.values()))
    return {
        name: float((found[name].double() - w.double()).norm())
        / max(float(w.double().norm()), FLOOR * whole, 1e-30)
        for name, w in wanted.items()
    }


def moved(task: Task, by: float) -> Task:
    """The task with other weights: the same for the same `by`, to the other side for `-by`."""
    model = copy.deepcopy(task.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p *= 1 + by * torch.randn(p.shape, generator=generator).to(p.device)
    return replace(task, model=model)


def means(task: Task) -> Means:
    """The gradients of all samples, each for itself, and their means."""
    parameters = dict(task.model.named_parameters())
    plain = {name: torch.zeros_like(p) for name, p in parameters.items()}
    private = {name: torch.zeros_like(p) for name, p in parameters.items()}
    clipped = 0
    for i in range(task.size):
        task.model.zero_grad()
        out = task.model(*(x[i : i + 1] for x in task.inputs))
        task.loss.mean(out, task.target[i : i + 1]).backward()
        grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        norm = math.sqrt(sum(float(g.norm()) ** 2 for g in grads.values()))
        clipped += norm > CLIP
        factor = min(1.0, CLIP / norm) if norm else 1.0
        for name, g in grads.items():
            plain[name].add_(g, alpha=1 / task.size)
            private[name].add_(g, alpha=factor / task.size)
    task.model.zero_grad()
    return Means(plain, private, clipped / task.size)
