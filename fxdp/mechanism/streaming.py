"""Per-sample gradients of a few samples at a time, kept from their norms to the clipped sums.

Flat clipping needs all of a sample's norms before any of its gradients may be added; it does not
need those of all samples. So, once the operands of all sums exist: the gradients of m samples are
made in memory that lives as long as the module, measured, weighed and added, and then those of the
next m. That takes the place of the plain weight gradient, needs no Gram matrix, and no allowance
for rounding, since the numbers that are measured are the numbers that are added.

Letters: n samples, m of them at a time, g groups of parameters that are clipped together.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake
from fxdp.kernels.precision import wide_dtype
from fxdp.mechanism.clipping_rule import Clipping
from fxdp.mechanism.factors import clip_factor, finite_samples, narrowed, safe_norm, total


@dataclass(frozen=True)
class Part:
    """One parameter whose gradients are streamed.

    Attributes:
        operands: how many tensors [N, ...] its sum is made of.
        write: puts per-sample gradients into the memory [m, *shape] that it is given first, from
            m samples' operands; returns them.
        shape: of the parameter's sum.
        group: the number of its group.
    """

    operands: int
    write: Callable[..., Tensor]
    shape: tuple[int, ...]
    group: int


@dataclass(frozen=True)
class Rule:
    """How the norms of all groups become factors.

    Attributes:
        clipping: what a norm asks for.
        shares: of the bound, by group.
        lost: what squared norms may lack because numbers underflow, by group.
        dtype: of norms and factors.
    """

    clipping: Clipping
    shares: tuple[float, ...]
    lost: tuple[float, ...]
    dtype: torch.dtype

    def factors(self, squares: Tensor, counts: Tensor, bound: Tensor) -> Tensor:
        """[g, m] factors from squared norms [g, m] in float64, and which samples count [m]."""
        norms = total(list(squares), counts).sqrt().to(self.dtype)
        finite = finite_samples(norms, None)
        found = [
            clip_factor(self.clipping, share, safe_norm(square, lost), finite, bound, counts)
            for square, share, lost in zip(squares, self.shares, self.lost, strict=True)
        ]
        return torch.stack([narrowed(f, self.dtype) for f in found])


@dataclass(frozen=True)
class Stream:
    """What one graph streams.

    Attributes:
        parts: the parameters, in the order of the op's operands.
        rule: how their norms become factors.
        rows: m.
    """

    parts: tuple[Part, ...]
    rule: Rule
    rows: int


OWNERS: "WeakValueDictionary[int, Streams]" = WeakValueDictionary()
COUNT = itertools.count()


class Streams:
    """The streams of one module's graphs, and the memory that they work in.

    A graph names them by numbers, for an op takes no functions. Those of a module that is gone are
    gone, too.
    """

    def __init__(self) -> None:
        self.number = next(COUNT)
        self.known: list[Stream] = []
        self.lock = threading.Lock()
        self._rooms: dict[torch.dtype, Tensor] = {}
        OWNERS[self.number] = self

    def add(self, stream: Stream) -> int:
        """The number of a new stream."""
        self.known.append(stream)
        return len(self.known) - 1

    def room(self, dtype: torch.dtype, size: int) -> Tensor:
        """Memory for so many numbers; whatever it holds."""
        found = self._rooms.get(dtype)
        if found is None or len(found) < size:
            found = self._rooms[dtype] = torch.empty(size, dtype=dtype)
        return found[:size]


def stream_of(owner: int, number: int) -> tuple[Streams, Stream]:
    """A stream by its numbers.

    Raises:
        RuntimeError: its module is gone.
    """
    found = OWNERS.get(owner)
    if found is None:
        raise RuntimeError("fxdp: this step belongs to a module that does not exist any more")
    return found, found.known[number]


def grouped(stream: Stream, operands: Sequence[Tensor]) -> list[list[Tensor]]:
    """The operands of each part."""
    left = iter(operands)
    return [list(itertools.islice(left, part.operands)) for part in stream.parts]


@define("streamed")
def streamed(
    operands: list[Tensor], rest: Tensor, counts: Tensor, bound: Tensor, owner: int, number: int
) -> list[Tensor]:
    """Squared norms and factors, [g, N] each, and a clipped sum for each part.

    Args:
        operands: [N, ...] each, of all parts.
        rest: float64 [g, N], squared norms of the parameters that are not streamed.
        counts: bool [N], no padding and a finite loss.
        bound: 0-d, C.
        owner, number: of the stream.

    Guarantees:
        What a sample adds to a sum is the gradient that was measured, times its factor; a sample
        with factor 0 adds nothing, whatever numbers it has.
    """
    streams, stream = stream_of(owner, number)
    with streams.lock:
        return run(streams, stream, operands, rest, counts, bound)


def run(
    streams: Streams, stream: Stream, operands: Sequence[Tensor], rest: Tensor, counts: Tensor,
    bound: Tensor,
) -> list[Tensor]:  # fmt: skip
    """The op on real tensors."""
    groups = grouped(stream, operands)
    dtypes = [wide_dtype(own[0]) for own in groups]
    sums = [
        torch.zeros(part.shape, dtype=dtype)
        for part, dtype in zip(stream.parts, dtypes, strict=True)
    ]
    squares, factors = rest.clone(), torch.empty(rest.shape, dtype=stream.rule.dtype)
    for start in range(0, len(counts), stream.rows):
        part = slice(start, min(start + stream.rows, len(counts)))
        each: list[Tensor] = []
        for own, g in gradients(streams, stream, [[x[part] for x in own] for own in groups]):
            squares[own.group, part] += lengths(g).square()  # at once: g is in the cache
            each.append(g)
        factors[:, part] = stream.rule.factors(squares[:, part], counts[part], bound)
        for own, g, into in zip(stream.parts, each, sums, strict=True):
            add(into, g, factors[own.group, part])
    return [squares, factors, *sums]


def gradients(
    streams: Streams, stream: Stream, groups: list[list[Tensor]]
) -> Iterator[tuple[Part, Tensor]]:
    """Each part with its per-sample gradients [m, *shape], from the operands of m samples."""
    rows, dtypes = len(groups[0][0]), [wide_dtype(own[0]) for own in groups]
    sizes = [rows * math.prod(part.shape) for part in stream.parts]
    need: dict[torch.dtype, int] = {}
    for size, dtype in zip(sizes, dtypes, strict=True):
        need[dtype] = need.get(dtype, 0) + size
    rooms = {dtype: streams.room(dtype, size) for dtype, size in need.items()}
    for part, own, size, dtype in zip(stream.parts, groups, sizes, dtypes, strict=True):
        memory, rooms[dtype] = rooms[dtype][:size], rooms[dtype][size:]
        yield part, part.write(memory.view(rows, *part.shape), *own)


def lengths(each: Tensor) -> Tensor:
    """[m] norms of [m, ...], row by row (decision 14 of fxdp/README.md), in float64."""
    rows = torch.linalg.vector_norm(each.flatten(2) if each.dim() > 2 else each, dim=-1)
    return torch.linalg.vector_norm(rows.flatten(1), dim=1, dtype=torch.float64)


def add(into: Tensor, each: Tensor, factor: Tensor) -> None:
    """into += the sum of factor[m] * each[m]; what a factor of 0 mutes is overwritten."""
    if not bool(factor.all()):
        each.masked_fill_((factor == 0).view(-1, *[1] * (each.dim() - 1)), 0)
    into.view(-1).addmv_(each.flatten(1).T, factor.to(into.dtype))


@fake("streamed")
def _(
    operands: list[Tensor], rest: Tensor, counts: Tensor, bound: Tensor, owner: int, number: int
) -> list[Tensor]:
    _, stream = stream_of(owner, number)
    sums = [
        own[0].new_empty(part.shape, dtype=wide_dtype(own[0]))
        for part, own in zip(stream.parts, grouped(stream, operands), strict=True)
    ]
    return [torch.empty_like(rest), rest.new_empty(rest.shape, dtype=stream.rule.dtype), *sums]
