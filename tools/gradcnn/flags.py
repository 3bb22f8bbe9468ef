"""The command line of tools/run gradcnn."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, get_args

import torch

from fxdp.backend.options import Auto
from tools.gradcnn.experiments import FIGURES, PRINTED

STRATEGIES = get_args(Auto)

MNIST = "mnist"
Number = TypeVar("Number", int, float)


def parse(arguments: Sequence[str] | None, about: str | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with a usage message."""
    parser = argparse.ArgumentParser(
        prog="tools/run gradcnn",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in PRINTED.items():
        command = commands.add_parser(
            name, help=what, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        shared(command)
        if name != MNIST:
            measured(command)
        if name in (*FIGURES, "all"):
            command.add_argument("--plot", type=png, help="where the figure goes, a .png")
        if name in (MNIST, "all"):
            command.add_argument("--data", type=Path, help="the folder of MNIST's idx files")
        if name == MNIST:
            example(command)
    return parser.parse_args(arguments)


def shared(command: argparse.ArgumentParser) -> None:
    """Flags of every command."""
    add = command.add_argument
    add("--device", type=device, default="cpu", help="cpu or cuda")
    add("--backend", choices=("eager", "inductor"), default="eager", help="runs fxdp's graphs")
    add("--json", type=output, help="write the results to this file")


def measured(command: argparse.ArgumentParser) -> None:
    """Flags of the grids and of the gradient check."""
    add = command.add_argument
    add("--full", action="store_true", help="the paper's sizes, for an accelerator")
    add("--adam", action="store_true", help="Adam, not SGD; the learning rate is 1.0 for both")
    add("--seed", type=natural, default=42, help="of weights, data and noise")
    add("--strategy", choices=STRATEGIES, action="append", help="instead of the experiment's own")
    add("--rounds", type=positive, help="how often each contender is timed")
    add("--seconds", type=length, help="no more rounds at a point after so many")


def example(command: argparse.ArgumentParser) -> None:
    """The MNIST example's own flags."""
    add = command.add_argument
    add("--batch-size", type=positive, default=64, help="of training")
    add("--test-batch-size", type=positive, default=1000, help="of testing")
    add("--epochs", type=positive, default=1, help="passes over the training images")
    add("--lr", type=length, default=1e-3, help="Adam's learning rate")
    add("--seed", type=natural, default=1, help="of weights, batches and noise")
    add("--log-interval", type=positive, default=10, help="batches between two lines")
    add("--dp", action="store_true", help="train privately")
    add("--strategy", choices=STRATEGIES, default="auto", help="with --dp")
    add("--save-model", type=output, nargs="?", const="mnist_cnn.pt", help="save the weights")


def positive(text: str) -> int:
    return checked(int, text, lambda n: n > 0, "a whole number > 0")


def natural(text: str) -> int:
    return checked(int, text, lambda n: 0 <= n < 2**63, "a whole number >= 0")


def length(text: str) -> float:
    return checked(float, text, lambda v: 0 < v < math.inf, "a number > 0")


def checked(
    kind: Callable[[str], Number], text: str, holds: Callable[[Number], bool], wanted: str
) -> Number:
    """A number that a condition holds for."""
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
    return value


def device(text: str) -> str:
    """A device that is here."""
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda") or not (index.isdigit() or not index):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, got {text!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text} is not here: torch sees no such device")
    return text


def output(text: str) -> Path:
    """A file that can be written."""
    path = Path(text)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write a file {text!r}")
    return path


def png(text: str) -> Path:
    path = output(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"must be a file name ending in .png, got {text!r}")
    return path
