"""gradcnn's MNIST example, plain and private: a small CNN, Adam, one epoch.

It prints what gradcnn prints: the loss now and then, the test result, the time. Batches are a
shuffled epoch's, as there; that is not the sampling that an accountant assumes, so no epsilon is
told. Without MNIST at hand it learns scikit-learn's scans, enlarged to the size of MNIST's.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxdp
from tools.gradcnn.contenders import MAX_GRAD_NORM, NOISE_MULTIPLIER
from tools.gradcnn.idx import read_images
from tools.gradcnn.nets import MnistNet

MEAN, DEVIATION = 0.1307, 0.3081  # of MNIST's pixels
SIDE = 28
SCANS_TO_TRAIN = 1500  # of scikit-learn's 1797


@dataclass(frozen=True)
class Half:
    """Normalised images [n, 1, 28, 28] and labels [n]."""

    x: Tensor
    y: Tensor

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images, shuffled."""
        for rows in torch.randperm(len(self.y)).split(size):
            yield self.x[rows], self.y[rows]


@dataclass(frozen=True)
class Data:
    """What is learned, what it is tested on, and where both are from."""

    train: Half
    test: Half
    origin: str


@dataclass(frozen=True)
class Options:
    """The example's own flags, with its defaults."""

    batch_size: int = 64
    test_batch_size: int = 1000
    epochs: int = 1
    lr: float = 1e-3
    seed: int = 1
    log_interval: int = 10
    dp: bool = False
    save_model: Path | None = None
    device: str = "cpu"
    backend: str = "eager"
    strategy: str = "auto"


@dataclass(frozen=True)
class Outcome:
    """How the run ended: what the last lines say.

    Attributes:
        first_step: seconds of it that the first step took, in which fxdp compiles.
    """

    loss: float
    correct: int
    images: int
    seconds: float
    first_step: float


def run(data: Data, options: Options) -> Outcome:
    """Train and test, and print it."""
    torch._dynamo.reset()
    torch.manual_seed(options.seed)
    model = MnistNet().to(options.device)
    trained: nn.Module = model
    if options.dp:
        trained = fxdp.compile(
            model, loss_fn=F.nll_loss, max_grad_norm=MAX_GRAD_NORM,
            noise_multiplier=NOISE_MULTIPLIER, expected_batch_size=options.batch_size,
            backend=options.backend, options={"strategy": options.strategy},
        )  # fmt: skip
    adam = torch.optim.Adam(model.parameters(), lr=options.lr)
    began, loss, correct, first_step = time.perf_counter(), 0.0, 0, 0.0
    for epoch in range(1, options.epochs + 1):
        took = train(trained, adam, data.train, epoch, options)
        first_step = took if epoch == 1 else first_step
        loss, correct = tested(model, data.test, options)
        n = len(data.test.y)
        print(
            f"\nTest set: Average loss: {loss:.4f}, Accuracy: {correct}/{n} "
            f"({100.0 * correct / n:.0f}%)"
        )
    seconds = time.perf_counter() - began
    print(f"Elapsed time: {seconds:.2f}s")
    if options.save_model is not None:
        torch.save(model.state_dict(), options.save_model)
    return Outcome(loss, correct, len(data.test.y), seconds, first_step)


def train(
    model: nn.Module, adam: torch.optim.Optimizer, half: Half, epoch: int, options: Options
) -> float:
    """One epoch; returns the seconds of its first step."""
    model.train()
    began, first_step = time.perf_counter(), 0.0
    total = len(half.y)
    count = -(-total // options.batch_size)
    for i, (x, y) in enumerate(half.batches(options.batch_size)):
        x, y = x.to(options.device), y.to(options.device)
        adam.zero_grad()
        loss = model(x, y) if options.dp else F.nll_loss(model(x), y)
        loss.backward()
        adam.step()
        if i == 0:
            first_step = time.perf_counter() - began
        if i % options.log_interval == 0:
            print(
                f"Train Epoch: {epoch} [{i * len(y)}/{total} ({100.0 * i / count:.0f}%)]"
                f"\tLoss: {loss.item():.6f}",
                flush=True,
            )
    return first_step


def tested(model: nn.Module, half: Half, options: Options) -> tuple[float, int]:
    """Mean loss, and how many images are read correctly."""
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for x, y in half.batches(options.test_batch_size):
            x, y = x.to(options.device), y.to(options.device)
            out = model(x)
            loss += F.nll_loss(out, y, reduction="sum").item()
            correct += int((out.argmax(1) == y).sum())
    return loss / len(half.y), correct


def load(folder: Path | None) -> Data:
    """MNIST from its idx files, or else scikit-learn's digits.

    Raises:
        IdxError: the folder lacks a file, or one is broken.
    """
    if folder is None:
        return scans()
    halves = []
    for prefix in ("train", "t10k"):
        found = read_images(folder, prefix)
        x = torch.from_numpy(found.images.copy())[:, None].float() / 255
        halves.append(Half(normalised(x), torch.from_numpy(found.labels.copy()).long()))
    return Data(*halves, f"MNIST from {folder}")


def scans() -> Data:
    """The digits that scikit-learn ships, in one fixed order."""
    from sklearn import datasets  # an optional dependency

    found: Any = datasets.load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    x, y = normalised(x), torch.tensor(found.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    first, rest = order[:SCANS_TO_TRAIN], order[SCANS_TO_TRAIN:]
    origin = "no --data: scikit-learn's 1797 digits, 8x8, resized to 28x28 by interpolation"
    return Data(Half(x[first], y[first]), Half(x[rest], y[rest]), origin)


def normalised(x: Tensor) -> Tensor:
    """Images [n, 1, ...] in [0, 1] as the net wants them: 28x28, mean 0 and deviation 1."""
    if x.shape[-2:] != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return (x - MEAN) / DEVIATION
