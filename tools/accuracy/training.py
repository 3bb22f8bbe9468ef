"""The demo's network, trained by fxdp and by Opacus within one budget.

Both get the same weights to start from, the same data, optimizer, clip bound, steps and noise
multiplier, and each draws its own Poisson batches at the same rate. They take turns, a step
each, so that both meet the same machine; the time of a step is processor time.

The batch size divides the data set: Opacus takes its rate from the number of batches in the
plain loader, and fxdp from the batch size, which are then the same number.
"""

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.accountants.utils import get_noise_multiplier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.utils.data import DataLoader, TensorDataset

import fxdp
from tools.accuracy.result import Row
from tools.examples.demo import LEARNING_RATE, N_TRAIN, Digits, accuracy, network

BATCH = 250  # a sixth of the data
DELTA, CLIP = 1e-5, 1.0
WARMUP = 2  # steps that are not timed: compilation, and the first call of everything


@dataclass(frozen=True)
class Learner:
    """A network in training: its batches, and what one of them does to it."""

    model: nn.Module
    optimizer: Any
    loader: Iterable[Any]
    step: Callable[[Tensor, Tensor], object]
    spent: Callable[[], float]


def with_fxdp(
    model: nn.Module, loader: DataLoader[Any], sigma: float, epochs: int, backend: str
) -> Learner:
    """The loop of fxdp's README."""
    private, optimizer, batches = fxdp.make_private(
        model, Adam(model.parameters(), lr=LEARNING_RATE), loader, F.cross_entropy,
        noise_multiplier=sigma, delta=DELTA, epochs=epochs, max_grad_norm=CLIP, backend=backend,
    )  # fmt: skip

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        private(x, y).backward()
        optimizer.step()

    return Learner(private, optimizer, batches, step, lambda: private.privacy_spent(DELTA))


def with_opacus(model: nn.Module, loader: DataLoader[Any], sigma: float) -> Learner:
    """The loop of Opacus's README, in its default mode, hooks."""
    engine = PrivacyEngine(accountant="rdp")
    optimizer: Any = Adam(model.parameters(), lr=LEARNING_RATE)
    module, optimizer, batches = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=sigma,
        max_grad_norm=CLIP,
    )  # fmt: skip

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()

    return Learner(module, optimizer, batches, step, lambda: engine.get_epsilon(DELTA))


def both(digits: Digits, seed: int, sigma: float, epochs: int, backend: str) -> dict[str, Learner]:
    """Two networks with the same weights, not trained yet."""
    torch.manual_seed(seed)
    model, data = network(), TensorDataset(digits.x, digits.y)

    def loader(stream: int) -> DataLoader[Any]:
        drawn = torch.Generator().manual_seed(2 * seed + stream)
        return DataLoader(data, BATCH, shuffle=True, generator=drawn)

    return {
        "fxdp": with_fxdp(copy.deepcopy(model), loader(0), sigma, epochs, backend),
        "Opacus": with_opacus(copy.deepcopy(model), loader(1), sigma),
    }


def take_turns(learners: dict[str, Learner], epochs: int) -> dict[str, list[float]]:
    """Train all of them, a step each; {name: processor seconds of each step}."""
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(epochs):
        for batches in zip(*(one.loader for one in learners.values()), strict=True):
            for (name, learner), (x, y) in zip(learners.items(), batches, strict=True):
                began = time.process_time()
                learner.step(x, y)
                seconds[name].append(time.process_time() - began)
    return seconds


def row(
    digits: Digits, epsilon: float, seeds: int, epochs: int, backend: str,
    say: Callable[[str], None],
) -> Row:  # fmt: skip
    """Both at one budget, with every seed."""
    rate, steps = BATCH / N_TRAIN, epochs * (N_TRAIN // BATCH)
    sigma = fxdp.privacy.calibrate(epsilon, DELTA, rate, steps)
    by_rdp = get_noise_multiplier(
        target_epsilon=epsilon, target_delta=DELTA, sample_rate=rate, steps=steps, accountant="rdp"
    )
    found = Row(epsilon, sigma, by_rdp, {}, {}, {})
    for seed in range(seeds):
        say(f"epsilon {epsilon:g}, seed {seed}")
        learners = both(digits, seed, sigma, epochs, backend)
        for name, times in take_turns(learners, epochs).items():
            learner = learners[name]
            found.spent[name] = learner.spent()
            found.accuracy.setdefault(name, []).append(accuracy(learner.model.eval(), digits))
            found.seconds.setdefault(name, []).append(median(times[WARMUP:]))
    return found
