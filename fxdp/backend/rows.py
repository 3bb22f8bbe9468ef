"""A few samples' worth of a graph's inputs, for a graph of any number of samples.

How the sizes of inputs follow from N stands in the graph, as expressions. So inputs for another N
can be cut out of those at hand: any numbers will do to compare two ways of running the graph, as
long as their sizes fit together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule

from fxdp.shapes import expr, shape_of

Sizes = dict[sympy.Symbol, int]


@dataclass(frozen=True)
class Layout:
    """One input: the sizes and strides of a tensor; or a number, as a size alone."""

    shape: tuple[sympy.Expr, ...]
    strides: tuple[sympy.Expr, ...] | None


@dataclass(frozen=True)
class Place:
    """Where N is read: from an axis of an input, or from an input that is a number.

    Attributes:
        share: the size there, over N.
    """

    position: int
    axis: int
    share: int

    def read(self, args: Sequence[Any]) -> int:
        """N."""
        arg = args[self.position]
        return (arg.shape[self.axis] if isinstance(arg, Tensor) else int(arg)) // self.share


@dataclass(frozen=True)
class Rows:
    """The inputs of a graph, and how they follow from N.

    Attributes:
        n: the symbol.
        least: the smallest N that the graph is for.
        layouts: of each input; None for what is neither a tensor nor a whole number.
        place: where N is read.
    """

    n: sympy.Symbol
    least: int
    layouts: tuple[Layout | None, ...]
    place: Place

    @staticmethod
    def of(graph: GraphModule, n: Any) -> "Rows | None":
        """For a graph, by what its inputs were traced with; None where they do not tell N.

        Args:
            n: the number of samples, as it was traced.
        """
        symbol = expr(n)
        values = [node.meta.get("val") for node in graph.graph.find_nodes(op="placeholder")]
        layouts = tuple(map(layout, values))
        if not isinstance(symbol, sympy.Symbol) or (where := place(layouts, symbol)) is None:
            return None
        least = n.node.shape_env.var_to_range[symbol].lower
        return Rows(symbol, int(least), layouts, where)

    def sizes(self, args: Sequence[Any]) -> Sizes | None:
        """What the symbols are for these inputs; None where they disagree."""
        found: Sizes = {self.n: self.samples(args)}
        for symbol, size in self._pairs(args):
            if isinstance(symbol, sympy.Symbol) and found.setdefault(symbol, size) != size:
                return None
        return found

    def _pairs(self, args: Sequence[Any]) -> list[tuple[sympy.Expr, int]]:
        """Sizes as expressions, and as they are."""
        pairs: list[tuple[sympy.Expr, int]] = []
        for given, arg in zip(self.layouts, args, strict=True):
            if given is not None and isinstance(arg, Tensor):
                pairs += zip(given.shape, arg.shape, strict=True)
            elif given is not None:
                pairs += [(given.shape[0], int(arg))]
        return pairs

    def samples(self, args: Sequence[Any]) -> int:
        """N for these inputs."""
        return self.place.read(args)

    def held(self, args: Sequence[Any]) -> int:
        """Bytes of the inputs that follow from N."""
        return sum(
            arg.numel() * arg.element_size()
            for given, arg in zip(self.layouts, args, strict=True)
            if isinstance(arg, Tensor) and given is not None and self._follows(given)
        )

    def cut(self, args: Sequence[Any], count: int) -> list[Any] | None:
        """Inputs of `count` samples, no more than there are; None where that is unknown.

        What has no samples is passed on as it is, and the rest is copied, laid out as the graph
        has it.
        """
        sizes = self.sizes(args)
        if sizes is None or not self.least <= count <= sizes[self.n]:
            return None
        fewer = sizes | {self.n: count}
        found: list[Any] = []
        for given, arg in zip(self.layouts, args, strict=True):
            if given is None or not self._follows(given):
                found.append(arg)
                continue
            shape, own = numbers(given.shape, fewer), numbers(given.shape, sizes)
            if shape is None or own is None:
                return None
            if given.strides is None:
                found.append(shape[0])
                continue
            strides, theirs = numbers(given.strides, fewer), numbers(given.strides, sizes)
            if strides is None or theirs != arg.stride() or own != arg.shape:
                return None
            if arg.device.type != "cpu" and not arg.is_floating_point() and arg.dtype != torch.bool:
                return None  # an index that leads out of what is left would be the device's end
            found.append(part(arg, shape, strides))
        return found

    def _follows(self, given: Layout) -> bool:
        """Does an input's layout depend on N?"""
        return any(e.has(self.n) for e in (*given.shape, *(given.strides or ())))


def place(layouts: Sequence[Layout | None], n: sympy.Symbol) -> Place | None:
    """The first input that is N, or N times a number, or has such an axis."""
    for position, given in enumerate(layouts):
        for axis, size in enumerate(given.shape if given is not None else ()):
            share = sympy.cancel(size / n)
            if share.is_Integer:
                return Place(position, axis, int(share))
    return None


def layout(value: Any) -> Layout | None:
    """How an input's sizes are written in the graph."""
    if isinstance(value, Tensor):
        return Layout(shape_of(value.shape), shape_of(value.stride()))
    return Layout((expr(value),), None) if isinstance(value, torch.SymInt) else None


def numbers(sizes: tuple[sympy.Expr, ...], symbols: Sizes) -> tuple[int, ...] | None:
    """Sizes as numbers; None where a symbol is not known."""
    known = {symbol: sympy.Integer(size) for symbol, size in symbols.items()}
    found: list[Any] = [size.xreplace(known) for size in sizes]
    return tuple(int(f) for f in found) if all(f.is_Integer for f in found) else None


def part(x: Tensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """The first numbers on each axis, copied, with given strides."""
    for axis, size in enumerate(shape):
        x = x.narrow(axis, 0, size)
    if 0 in strides:  # expanded: nothing to write to twice
        own = [1 if stride == 0 else size for size, stride in zip(shape, strides, strict=True)]
        return part(x, tuple(own), tuple(s or 1 for s in strides)).as_strided(shape, strides)
    return torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device).copy_(x)


def kind(count: int) -> int:
    """The class of a number of samples for which code may differ: 2, 3, below 16, and from there
    each power of two."""
    return count if count < 4 else 4 if count < 16 else 2 ** int(math.log2(count))
