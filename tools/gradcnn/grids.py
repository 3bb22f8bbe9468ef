"""What is run: the paper's grids of nets, and smaller ones for a CPU.

A grid is a list of points; at each point all contenders take steps in turns. `--full` gives the
paper's own sizes, otherwise a grid says what it has made smaller.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from tools.gradcnn import published
from tools.gradcnn.imagenet import alexnet, vgg16
from tools.gradcnn.nets import CLASSES, Net
from tools.gradcnn.published import Curves, Published


@dataclass(frozen=True)
class Point:
    """One net on one size of batch.

    Attributes:
        panel: of the figure that it belongs to.
        x: where it stands on the figure's axis.
        size: images are 3 x size x size.
        strategies: that run beside plain PyTorch.
        published: the paper's seconds for 20 batches, by contender.
    """

    name: str
    panel: str
    x: float
    make: Callable[[], nn.Module]
    size: int
    batch: int
    classes: int
    strategies: tuple[str, ...]
    published: Published


@dataclass(frozen=True)
class Grid:
    """An experiment of the paper.

    Attributes:
        title, axis: of the figure.
        scaled: what is smaller than in the paper, in words; empty if nothing is.
    """

    name: str
    title: str
    axis: str
    scaled: str
    points: tuple[Point, ...]


def run_test(full: bool) -> Grid:
    """gradcnn's run_test.sh: small as it is, so always at its own size."""
    make = partial(Net, 32, 2, 25, 1.0, 5)
    strategies = ("naive", "multi", "crb", "auto")
    point = Point(
        "2 layers of 25", "", 10, make, 32, 10, CLASSES, strategies, published.RUN_TEST
    )  # fmt: skip
    title = "run_test: 2 layers of 25 channels, kernel 5, batches of 10 of 3x32x32"
    return Grid("run_test", title, "batch size", "", (point,))


def figure1(full: bool) -> Grid:
    return _rates("figure1", 3, published.FIGURE_1, full)


def figure3(full: bool) -> Grid:
    return _rates("figure3", 5, published.FIGURE_3, full)


def figure2(full: bool) -> Grid:
    size, channels = (256, 256) if full else (32, 32)
    points = [
        Point(
            f"batch {batch:g}", "3 layers", batch, partial(Net, size, 3, channels, 1.0, 5), size,
            int(batch), CLASSES, ("naive", "multi", "crb", "auto"), paper,
        )
        for batch, paper in published.FIGURE_2.items()
    ]  # fmt: skip
    scaled = "" if full else "images of 3x32x32, not 3x256x256; 32 channels, not 256"
    title = f"figure2: 3 layers of {channels} channels, kernel 5, 3x{size}x{size}"
    return Grid("figure2", title, "batch size", scaled, tuple(points))


def table1(full: bool) -> Grid:
    size, width = (256, 1.0) if full else (64, 0.25)
    nets = {"AlexNet": (alexnet, 16), "VGG16": (vgg16, 8)}
    points = [
        Point(
            name, "", batch, partial(make, width=width), size, batch, 1000,
            ("naive", "multi", "crb", "auto"), published.TABLE_1[name],
        )
        for name, (make, batch) in nets.items()
    ]  # fmt: skip
    scaled = "" if full else "images of 3x64x64, not 3x256x256; a quarter of the channels"
    title = f"table1: AlexNet in batches of 16, VGG16 in batches of 8, 3x{size}x{size}"
    return Grid("table1", title, "batch size", scaled, tuple(points))


def _rates(name: str, kernel: int, curves: Curves, full: bool) -> Grid:
    """Layers by channel rates; the paper has no naive runs here."""
    size, channels, batch = (256, 25, 8) if full else (32, 8, 8)
    points = [
        Point(
            f"{layers} layers, rate {rate:g}", f"{layers} layers", rate,
            partial(Net, size, layers, channels, rate, kernel), size, batch, CLASSES,
            ("multi", "crb", "auto"), paper,
        )
        for layers, curve in curves.items()
        for rate, paper in curve.items()
    ]  # fmt: skip
    scaled = "" if full else "images of 3x32x32, not 3x256x256; 8 channels at first, not 25"
    title = f"{name}: kernel {kernel}, batches of {batch} of 3x{size}x{size}"
    return Grid(name, title, "channel rate", scaled, tuple(points))


GRIDS: dict[str, Callable[[bool], Grid]] = {
    "run_test": run_test,
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "table1": table1,
}
