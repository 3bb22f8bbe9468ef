"""What all contenders are given: a model, one batch, and the loss. And the table of workloads.

A batch stays the same for all steps and all contenders, and so do the weights a contender starts
from: a workload made twice is the same twice.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Loss:
    """A loss in the two shapes that contenders ask for.

    Attributes:
        mean: of a model's output and the target, 0-d: the mean over the samples.
        each: the same for every sample, [N].
    """

    mean: Callable[[Tensor, Tensor], Tensor]
    each: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """A model and one batch."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    target: Tensor
    loss: Loss

    @property
    def size(self) -> int:
        return len(self.target)

    def copy(self) -> "Task":
        """The same batch, and weights of one's own."""
        return replace(self, model=copy.deepcopy(self.model))

    def to(self, device: str) -> "Task":
        inputs = tuple(x.to(device) for x in self.inputs)
        return Task(self.model.to(device), inputs, self.target.to(device), self.loss)


@dataclass(frozen=True)
class Sized:
    """A workload whose batch size can be chosen."""

    about: str
    make: Callable[[int], Task]
    batch: int

    def task(self, batch: int | None = None, length: int | None = None) -> Task:
        if length is not None:
            raise ValueError("its samples have one length only")
        torch.manual_seed(0)
        return self.make(batch or self.batch)


@dataclass(frozen=True)
class Sequences:
    """A workload whose batch size and sequence length can be chosen."""

    about: str
    make: Callable[[int, int], Task]
    batch: int
    length: int

    def task(self, batch: int | None = None, length: int | None = None) -> Task:
        torch.manual_seed(0)
        return self.make(batch or self.batch, length or self.length)


Workload = Sized | Sequences
