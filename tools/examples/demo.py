"""A small private training run to look at: `tools/demo`.

Two copies of one network learn to read handwritten digits from the same Poisson batches, one
through the private step that fxdp compiles and one without privacy. The demo prints what was
proven and how each sum over samples is computed, then the price: accuracy, epsilon and time,
side by side. It is also the shortest complete example of a training loop.

Two things in it are for the eye and not for production: the seed is known, and the loss and
the gradient norms are shown as they are, without noise.
"""

import argparse
import copy
import importlib.util
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import fxdp
from fxdp.data import PrivateLoader, private_loader

N_TRAIN = 1500  # of the 1797 images; the rest are the test set
LEARNING_RATE = 0.01
MEASUREMENTS = 16  # points of each curve in the plot
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


@dataclass(frozen=True)
class Digits:
    """8x8 scans: images float32 [n, 1, 8, 8] in [0, 1] and labels int64 [n] in 0..9."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@dataclass(frozen=True)
class Point:
    """Where a run stands after `step` steps: test accuracy in [0, 1], and epsilon spent."""

    step: int
    accuracy: float
    epsilon: float


@dataclass(frozen=True)
class Run:
    """A finished training run: its course, and the median time of a step."""

    points: list[Point]
    seconds_per_step: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns the exit code: 0, or 130 after Ctrl-C.

    Raises:
        SystemExit: an option has a bad value, or the extra `demo` is not installed.
    """
    options = parse(arguments)
    missing = [name for name in ("sklearn", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise SystemExit(f"no {' and no '.join(missing)} here; they come with the extra fxdp[demo]")
    # The network is too small to gain from more threads, and where another program keeps a core
    # busy they wait for each other: forty times slower was measured.
    torch.set_num_threads(1)
    try:
        compare(options, Console())
    except KeyboardInterrupt:
        print("interrupted: no plot was written", file=sys.stderr)
        return INTERRUPTED
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with a usage message."""
    parser = argparse.ArgumentParser(
        prog="tools/demo",
        description="Train a small network on digits with and without privacy, side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    count = _number(int, lambda n: n > 0, "a whole number > 0")
    batch = _number(int, lambda n: 0 < n <= N_TRAIN, f"a whole number in 1..{N_TRAIN}")
    bound = _number(float, lambda c: 0 < c < math.inf, "a number > 0")
    sigma = _number(float, lambda s: 0 <= s < math.inf, "a number >= 0")
    delta = _number(float, lambda d: 0 < d < 1, "a number between 0 and 1")
    seed = _number(int, lambda n: 0 <= n < 2**63, "a whole number >= 0")
    add = parser.add_argument
    add("--steps", type=count, default=240, help="training steps of each network")
    add("--batch-size", type=batch, default=256, help="expected size of a Poisson batch")
    add("--max-grad-norm", type=bound, default=1.0, help="C, the bound on a sample's gradient")
    add("--noise-multiplier", type=sigma, default=2.5, help="sigma, the noise in units of C")
    add("--delta", type=delta, default=1e-5, help="delta of the guarantee")
    add("--output", type=_png, default="fxdp-demo.png", help="where the plot goes")
    add("--backend", choices=("inductor", "eager"), default="inductor", help="runs the graphs")
    add("--seed", type=seed, default=0, help="of the weights, the batches and the noise")
    return parser.parse_args(arguments)


def compare(options: argparse.Namespace, console: Console) -> None:
    """Trains both networks, prints the comparison and saves the plot."""
    torch.manual_seed(options.seed)
    digits, model = load_digits(), network()
    twin = copy.deepcopy(model)
    private = fxdp.compile(
        model,
        loss_fn=F.cross_entropy,
        max_grad_norm=options.max_grad_norm,
        noise_multiplier=options.noise_multiplier,
        expected_batch_size=options.batch_size,
        accounting=fxdp.Accounting(sample_rate=options.batch_size / N_TRAIN),
        backend=options.backend,
    )
    x, y = digits.x[:32], digits.y[:32]
    console.print(private.certificate(x, y))
    with console.status("compiling the private step"):
        private(x, y)
    console.print(private.report())

    plain = torch.compile(twin, backend=options.backend, dynamic=True)

    def plain_loss(x: Tensor, y: Tensor) -> Tensor:
        # The mean; but over no samples 0, with gradients of 0, where the mean has none.
        return F.cross_entropy(plain(x), y, reduction="sum") / max(len(y), 1)

    def spent() -> float:
        return private.privacy_spent(options.delta)

    def no_promise() -> float:
        return math.inf

    with _progress(console) as progress:
        with_privacy = train("private", model, private, options, digits, spent, progress)
        without = train("without DP", twin, plain_loss, options, digits, no_promise, progress)
    console.print(summary(options, with_privacy, without))
    draw(options, with_privacy, without, private.per_sample_norms(digits.x, digits.y))
    console.print(f"plot: {options.output}", markup=False, highlight=False, soft_wrap=True)


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    options: argparse.Namespace,
    digits: Digits,
    spent: Callable[[], float],
    progress: Progress,
) -> Run:
    """Trains `model` in place with the loss that `loss_of` gives for a batch.

    `name` is shown with the progress bar; `spent` gives the epsilon so far.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    points, seconds = [Point(0, accuracy(model, digits), spent())], list[float]()
    task = progress.add_task(name, total=options.steps, loss="-", at=points[0])
    for step, (x, y) in enumerate(batches(options, digits), start=1):
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        if step == options.steps or step % max(1, options.steps // MEASUREMENTS) == 0:
            points.append(Point(step, accuracy(model, digits), spent()))
        progress.update(task, completed=step, loss=f"{loss.item():.3f}", at=points[-1])
    return Run(points, median(seconds))


def batches(options: argparse.Namespace, digits: Digits) -> PrivateLoader:
    """The Poisson batches of one run; the same ones for the same seed."""
    return private_loader(
        TensorDataset(digits.x, digits.y),
        sample_rate=options.batch_size / N_TRAIN,
        steps=options.steps,
        generator=torch.Generator().manual_seed(options.seed),
    )


def accuracy(model: nn.Module, digits: Digits) -> float:
    """The share of test images that `model` reads correctly."""
    with torch.no_grad():
        hits = model(digits.x_test).argmax(dim=1) == digits.y_test
    return hits.float().mean().item()


def network() -> nn.Module:
    """Two convolutions and a linear layer, 10 026 weights.

    GroupNorm stands where batch norm usually does, because batch norm mixes the samples.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GroupNorm(4, 32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def load_digits() -> Digits:
    """Reads the scans that scikit-learn ships, in one fixed order."""
    from sklearn import datasets  # an optional dependency

    scans: Any = datasets.load_digits()
    x = torch.tensor(scans.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(scans.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:N_TRAIN], order[N_TRAIN:]
    return Digits(x[train], y[train], x[test], y[test])


def summary(options: argparse.Namespace, private: Run, plain: Run) -> Table:
    """The comparison, a row for each network."""
    table = Table(title=f"{options.steps} steps, batches of {options.batch_size} expected")
    for heading in ("", "test accuracy", "epsilon", "delta", "seconds per step"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, run, delta in (("private", private, options.delta), ("without DP", plain, None)):
        end = run.points[-1]
        cells = (
            f"{end.accuracy:.1%}",
            f"{end.epsilon:.2f}",
            "-" if delta is None else f"{delta:g}",
        )
        table.add_row(name, *cells, f"{run.seconds_per_step:.4f}")
    return table


def draw(options: argparse.Namespace, private: Run, plain: Run, norms: Tensor) -> None:
    """Saves the plot: accuracy, epsilon, and per-sample norms [n] against the bound C."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # optional dependencies
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    steps = [point.step for point in private.points]
    for name, run in (("private", private), ("without DP", plain)):
        left.plot(steps, [point.accuracy for point in run.points], marker=".", label=name)
    left.set(title="test accuracy", xlabel="step", ylim=(0, 1))
    left.legend(loc="lower right")
    middle.plot(steps, [point.epsilon for point in private.points], marker=".")
    middle.set(title=f"epsilon spent, at delta {options.delta:g}", xlabel="step")
    middle.set_ylim(bottom=0)

    bound = options.max_grad_norm
    exponents = norms.detach().clamp(min=1e-6).log10()
    bins = torch.logspace(exponents.min().item() - 0.1, exponents.max().item() + 0.1, 41)
    right.hist((10**exponents).tolist(), bins=bins.tolist())
    right.axvline(bound, color="black", linestyle="--", label=f"C = {bound:g}")
    clipped = (norms > bound).float().mean().item()
    right.set(title=f"gradient norms of the samples, {clipped:.0%} clipped", xscale="log")
    right.legend()

    # Whoever looks at the output finds the old plot or the new one, never half of one.
    part = options.output.with_name(f".{options.output.name}.part")
    try:
        figure.savefig(part, format="png", dpi=120)
        part.replace(options.output)
    finally:
        part.unlink(missing_ok=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:11}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:5}"),
        TextColumn("accuracy {task.fields[at].accuracy:.1%}"),
        TextColumn("epsilon {task.fields[at].epsilon:.2f}"),
        console=console,
    )


def _number(
    kind: type[int] | type[float], holds: Callable[[float], bool], wanted: str
) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return value

    return read


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file name ending in .png, got {text!r}")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write into the folder of {text!r}")
    return path


if __name__ == "__main__":
    sys.exit(main())
