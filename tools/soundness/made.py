"""A random program while it is made, as Python source, and the values that its lines have."""

import random
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 3000  # elements of one value


@dataclass
class Made:
    """A program, and the data of two batches.

    Attributes:
        lines: the source, without the head.
        names: of the arguments, in order: inputs with samples, then parameters.
        dims: the axis of the samples of each argument; None for parameters.
        worlds: the values of every name, for each batch.
        sizes: of the batches.
        loss: the last name.
    """

    dice: random.Random
    sizes: tuple[int, int]
    lines: list[str] = field(default_factory=lambda: [])
    names: list[str] = field(default_factory=lambda: [])
    dims: list[int | None] = field(default_factory=lambda: [])
    worlds: tuple[dict[str, Any], dict[str, Any]] = field(default_factory=lambda: ({}, {}))
    live: list[str] = field(default_factory=lambda: [])
    loss: str = ""

    def source(self, shown: list[str]) -> str:
        body = [*self.lines, f"return [{', '.join([self.loss, *shown])}]"]
        return "\n    ".join([f"def program({', '.join(self.names)}):", *body]) + "\n"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.worlds[0][name].shape)

    def fixed(self, name: str) -> list[int]:
        """The axes of the same size in both batches."""
        sizes = zip(self.shape(name), self.worlds[1][name].shape, strict=True)
        return [d for d, (a, b) in enumerate(sizes) if a == b]

    def axis(self, name: str) -> int:
        """An axis; mostly not that of the samples."""
        fixed = self.fixed(name)
        rank = len(self.shape(name))
        return self.dice.choice(fixed if fixed and self.dice.random() < 0.88 else range(rank))

    def size(self, name: str, axis: int) -> str:
        """The size of an axis as a program would write it."""
        if axis in self.fixed(name) and self.dice.random() < 0.7:
            return str(self.shape(name)[axis])
        return f"{name}.shape[{axis}]"

    def parameter(self, *shape: int) -> str:
        name = f"p{len(self.worlds[0])}"
        dice = torch.Generator().manual_seed(len(self.worlds[0]))
        value = torch.randn(shape, generator=dice, dtype=torch.float64) * 0.7
        value.requires_grad_()
        self.argument(name, None, value, value)
        return name

    def argument(self, name: str, dim: int | None, *values: Tensor) -> None:
        self.names.append(name)
        self.dims.append(dim)
        for world, value in zip(self.worlds, values, strict=True):
            world[name] = value

    def add(self, text: str) -> bool:
        """A new line, if it runs on both batches."""
        name = f"v{len(self.lines)}"
        values: list[Any] = []
        for world in self.worlds:
            try:
                value = eval(text, {"torch": torch, "F": F}, world)
            except Exception:
                return False
            good = isinstance(value, Tensor) and 0 < value.numel() <= LARGEST
            if not good or not bool(torch.isfinite(value).all()):
                return False
            values.append(value)
        if values[0].dim() != values[1].dim() or values[0].abs().max() > 1e4:
            return False
        for world, value in zip(self.worlds, values, strict=True):
            world[name] = value
        self.lines.append(f"{name} = {text}")
        self.live.append(name)
        return True
