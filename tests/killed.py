"""A private training run that is killed, for `tests/training/test_checkpoint.py`.

It goes on from its checkpoint if there is one, saves after every other step, and kills itself with
SIGKILL at one place of one step, or waits to be killed.
"""

import os
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fxdp
from fxdp.autotune import timings
from tests.keys import same_noise

EPOCHS, EVERY = 10, 2
STEPS = EPOCHS * 4
SAMPLES = 32
FILE = "run.pt"
# In a step: after the loss, after its backward pass, after the optimizer; then while the file is
# written, when it is, and when it is in its place.
Place = Literal["loss", "gradient", "stepped", "half", "written", "replaced"]
Outside = Literal["from outside"]
PLACES: tuple[Place, ...] = ("loss", "gradient", "stepped", "half", "written", "replaced")


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        optimizer: "adam", or "sgd" with momentum.
        workers: of the loader.
        backend: of `fxdp.compile`.
        steps: how many there are in all.
    """

    optimizer: str = "adam"
    workers: int = 0
    backend: str = "eager"
    steps: int = STEPS


@dataclass(frozen=True)
class Kill:
    """Where a run ends.

    Attributes:
        step: from 0.
    """

    step: int
    place: Place


class Jittered(Dataset[Any]):
    """Samples with random noise on them, from all three generators."""

    def __init__(self) -> None:
        self.x = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        jitter = torch.randn(4) + torch.from_numpy(np.random.randn(4)).float()
        return self.x[index] + 0.1 * jitter, index % 3


def train(
    folder: Path, kind: Kind, kill: Kill | Literal["from outside"] | None, keep: bool
) -> None:
    """Train until all steps are done, or until the kill, which comes then at the latest.

    Args:
        keep: keep every checkpoint, as `{step}.pt`.
    """
    # Runs that are compared go by the same times, whatever else is timed meanwhile.
    timings.store = lambda: folder.parent / "times.json"
    timings.stored.cache_clear()
    torch.manual_seed(3)
    random.seed(4)
    np.random.seed(5)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3))
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    if kind.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.9)
    private, _, loader = fxdp.make_private(
        model,
        optimizer,
        DataLoader(
            Jittered(),
            batch_size=8,
            num_workers=kind.workers,
            # The default in a process of a fork server is to ask that for workers.
            multiprocessing_context="fork" if kind.workers else None,
        ),
        F.cross_entropy,
        delta=1e-3,
        epochs=EPOCHS,
        max_grad_norm=1.0,
        noise_multiplier=1.0,
        accountant="rdp",
        backend=kind.backend,
    )
    losses: list[float] = []
    path = folder / FILE
    same_noise(private)  # no two processes of one tree have it, whatever their seeds
    if path.exists():
        losses = fxdp.load_checkpoint(path, private, optimizer, loader=loader, scheduler=scheduler)[
            "losses"
        ]
    (folder / "begun").touch()
    while len(losses) < kind.steps:
        for x, y in loader:
            here = kill.place if isinstance(kill, Kill) and kill.step == len(losses) else None
            optimizer.zero_grad()
            loss = private(x, y)
            die(here == "loss")
            loss.backward()
            die(here == "gradient")
            optimizer.step()
            scheduler.step()
            die(here == "stepped")
            losses.append(loss.item())
            if len(losses) % EVERY == 0:
                die_while_saving(here)
                fxdp.save_checkpoint(
                    path, private, optimizer, loader=loader, scheduler=scheduler,
                    extra={"losses": losses, "epsilon": private.privacy_spent(1e-3)},
                )  # fmt: skip
                if keep:
                    shutil.copy(path, folder / f"{len(losses)}.pt")
            die(here == "replaced")
            if len(losses) == kind.steps:
                break
    if kill == "from outside":
        signal.pause()
    die(kill is not None)


def die(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


def die_while_saving(place: Place | None) -> None:
    """Arrange for the process to be killed when half of a file is written, or all of it."""
    save = torch.save

    def half(state: Any, file: Any) -> None:
        save(state, file)
        file.truncate(file.tell() // 2)
        file.flush()
        die(True)

    if place == "half":
        torch.save = half
    if place == "written":
        os.replace = lambda *_: die(True)
