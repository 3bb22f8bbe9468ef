"""What takes part: a way to train that is given a task and makes a step of it.

A step is complete: forward, backward, clipping, noise, one step of SGD, and the gradients thrown
away. The learning rate is 0: all the work is done, but the weights stay, so every round does the
same work on the same numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tools.bench.task import Task

CLIP = 1.0  # the bound C
NOISE = 1.0  # the noise multiplier, while the clock runs


@dataclass(frozen=True)
class Runner:
    """A contender on one task.

    Attributes:
        step: everything up to the step of SGD; leaves gradients.
        clear: throws the gradients away, and whatever was kept for them.
        set_noise: takes the noise multiplier.
        parameters: what is trained, by the names that the task's model has for it.
    """

    step: Callable[[], object]
    clear: Callable[[], object]
    set_noise: Callable[[float], None]
    parameters: Mapping[str, nn.Parameter]

    def whole_step(self) -> None:
        """What is timed."""
        self.step()
        self.clear()


@dataclass(frozen=True)
class Contender:
    """A way to train.

    Attributes:
        make: a runner for a task, whose model is the contender's own.
        private: does it clip and add noise?
        compiles: is its first step slower than the others, and slower in a new process?
    """

    make: Callable[[Task], Runner]
    private: bool = True
    compiles: bool = False


@dataclass
class Noise:
    """A noise multiplier that can be changed."""

    multiplier: float = NOISE

    def set(self, multiplier: float) -> None:
        self.multiplier = multiplier

    def added(self, total: Tensor, size: int) -> Tensor:
        """A clipped sum with noise, over the batch size."""
        return (total + self.multiplier * CLIP * torch.randn_like(total)) / size


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0)
