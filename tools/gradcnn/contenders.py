"""The contenders of a point, and their times.

Each contender has its own copy of one net and its own optimizer, and gets the same batch of
random numbers at every step. Drawing the batch is not timed; gradcnn timed that, too.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from fxdp.backend.options import Auto
from fxdp.backend.settings import Backend
from tools.bench.timing import Times, interleaved
from tools.gradcnn.grids import Point
from tools.gradcnn.published import NO_DP

MAX_GRAD_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.1, 1.0
# The other strategies keep all per-sample gradients, however large, so auto may, too.
MEMORY_BUDGET = 1 << 40


@dataclass(frozen=True)
class How:
    """How a point is run.

    Attributes:
        batches: how many steps one timing covers.
        rounds, seconds: timings of each contender, and when to stop early.
        strategies: instead of the point's own; empty for those.
    """

    device: str = "cpu"
    backend: str = "eager"
    adam: bool = False
    seed: int = 42
    batches: int = 1
    rounds: int = 20
    seconds: float = 10.0
    strategies: tuple[str, ...] = ()


def measure(point: Point, how: How) -> dict[str, Times]:
    """Times of every contender; `how.batches` steps each."""
    # The copies of torch.compile's code for the last point count against its limit.
    torch._dynamo.reset()
    torch.manual_seed(how.seed)
    net = point.make()
    x = torch.randn(point.batch, 3, point.size, point.size).to(how.device)
    y = torch.randint(point.classes, (point.batch,)).to(how.device)
    names = (NO_DP, *(how.strategies or point.strategies))
    steps = {name: repeated(contender(name, net, x, y, how), how.batches) for name in names}
    if torch.device(how.device).type == "cuda":
        return interleaved(steps, how.rounds, how.seconds, synchronize=torch.cuda.synchronize)
    return interleaved(steps, how.rounds, how.seconds)


def contender(name: str, net: nn.Module, x: Tensor, y: Tensor, how: How) -> Callable[[], None]:
    """One training step, by plain PyTorch or by a strategy of fxdp."""
    model = copy.deepcopy(net).to(how.device).train()
    loss_of = plain(model) if name == NO_DP else private(model, name, how.backend, len(x))
    step = optimizer(model, how.adam)

    def run() -> None:
        step.zero_grad()
        loss_of(x, y).backward()
        step.step()

    return run


def plain(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: F.cross_entropy(model(x), y)


def private(model: nn.Module, strategy: Auto, backend: Backend, batch: int) -> fxdp.PrivateModule:
    """The model behind gradcnn's clip bound and noise."""
    return fxdp.compile(
        model,
        loss_fn=F.cross_entropy,
        max_grad_norm=MAX_GRAD_NORM,
        noise_multiplier=NOISE_MULTIPLIER,
        expected_batch_size=batch,
        backend=backend,
        options={"strategy": strategy, "memory_budget": MEMORY_BUDGET},
    )


def optimizer(model: nn.Module, adam: bool) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if adam else torch.optim.SGD
    return kind(model.parameters(), lr=LEARNING_RATE)


def repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run
