"""Noise on a clipped sum, as a single op for a CPU.

Block by block, as a block stays in the cache between its bits and the sum. Inductor's code calls
the op that works in place, so that there is one tensor of a parameter's size and not two, and
whose inner loop is compiled; the graph on its own calls the other. They compute the same.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fxdp.definition import define, fake
from fxdp.keystream import Bits, normals
from fxdp.torch_internals import auto_functionalized, compile_fx_inner, make_fx, select_decomp_table

BLOCK = 1 << 17  # numbers that the processor's cache holds, with room for as many more
Blend = Callable[[Tensor, Tensor, Tensor, Tensor], Any]


def blend(part: Tensor, bits: Tensor, scale: Tensor, factor: Tensor) -> tuple[()]:
    """part [2, half] becomes (part + scale xi) * factor; in place."""
    part.add_(normals(bits).mul_(scale)).mul_(factor)
    return ()


def blocks(flat: Tensor) -> Iterator[Tensor]:
    """Pieces [2, half] of a flat tensor; a last number alone is [1, 1]."""
    even = len(flat) - len(flat) % 2
    for start in range(0, even, BLOCK):
        yield flat[start : min(start + BLOCK, even)].view(2, -1)
    if even < len(flat):
        yield flat[even:].view(1, 1)


def add_noise(
    flat: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, bits: Callable[[], Bits],
    blend: Blend,
) -> None:  # fmt: skip
    """flat becomes (flat + scale xi) / expected * tangent; in place."""
    factor = float(tangent) / float(expected)
    if float(scale) == 0:
        flat.mul_(factor)
        return
    source = bits()
    numbers = (scale.double(), torch.tensor(factor, dtype=torch.float64, device=flat.device))
    room = source.room(min(BLOCK, len(flat) + 1) // 2)
    for part in blocks(flat):
        drawn = source.next(part.shape[1], room).to(part.device)
        if len(part) == 2:
            blend(part, drawn, *numbers)
        else:
            both = part.expand(2, 1).clone()
            blend(both, drawn, *numbers)
            part.copy_(both[:1])


@define("released")
def released(
    total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, public: Tensor | None,
    key: Tensor, draw: int, terms: int,
) -> Tensor:  # fmt: skip
    """((total + scale xi) / expected + public) * tangent, with xi standard normal.

    Args:
        total, public: of one shape and dtype, float32 or float64.
        scale, expected, tangent: 0-d.
        key: int64 [2].
        draw: no two of a graph are equal, or two parameters would get the same noise.
        terms: how many normal numbers each one of the noise is made of.
    """
    out = total.clone(memory_format=torch.contiguous_format)
    bits = functools.partial(Bits.of, key, draw, terms, out.dtype)
    add_noise(out.view(-1), scale, expected, tangent, bits, blend)
    return out if public is None else out.add_(public, alpha=float(tangent))


@fake("released")
def _(
    total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, public: Tensor | None,
    key: Tensor, draw: int, terms: int,
) -> Tensor:  # fmt: skip
    return torch.empty(total.shape, dtype=total.dtype, device=total.device)


@define("release_", mutates_args=("total",))
def release_(
    total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, public: Tensor | None,
    key: Tensor, draw: int, terms: int,
) -> None:  # fmt: skip
    """The same, in place of a contiguous total."""
    bits = functools.partial(Bits.of, key, draw, terms, total.dtype)
    loop = compiled(total.dtype, terms) if total.device.type == "cpu" else blend
    add_noise(total.view(-1), scale, expected, tangent, bits, loop)
    if public is not None:
        total.add_(public, alpha=float(tangent))


@fake("release_")
def _(
    total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, public: Tensor | None,
    key: Tensor, draw: int, terms: int,
) -> None:  # fmt: skip
    pass


def released_in_place(
    total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, public: Tensor | None,
    key: Tensor, draw: int, terms: int,
) -> Tensor:  # fmt: skip
    """`released` by the op that works in place, where Inductor finds that nobody else reads
    `total`; of a copy, where somebody does."""
    found: Any = auto_functionalized(
        torch.ops.fxdp.release_.default,
        total=total.contiguous(), scale=scale, expected=expected, tangent=tangent, public=public,
        key=key, draw=draw, terms=terms,
    )  # fmt: skip
    return found[1]


FOR_INDUCTOR = {torch.ops.fxdp.released.default: released_in_place}


@functools.cache
def compiled(dtype: torch.dtype, terms: int) -> Blend:
    """`blend` for sums of a dtype, compiled for blocks of all sizes.

    Like all generated code it is held against what it was made from before it is used, on
    numbers of every magnitude; where they differ, `blend` itself is returned, with a warning.
    """
    bits = Bits.of(torch.ones(2, dtype=torch.int64), 0, terms, dtype)
    ends = torch.tensor([0, -1, torch.iinfo(bits.dtype).min, torch.iinfo(bits.dtype).max])
    sample = bits.next(BLOCK // 2)
    sample[..., :4] = ends.to(bits.dtype)
    part = torch.linspace(-1, 1, BLOCK, dtype=dtype).view(2, -1)
    numbers = (torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64))
    pure: Any = torch.func.functionalize(blend)
    graph = make_fx(pure, select_decomp_table(), "symbolic")(part.clone(), sample, *numbers)
    fakes = [n.meta["val"] for n in graph.graph.find_nodes(op="placeholder")]
    kernel: Any = compile_fx_inner(graph, fakes)

    def fast(*args: Tensor) -> None:
        kernel(list(args))

    for half in (1, 5, BLOCK // 2):
        want, got = part[:, :half].clone(), part[:, :half].clone()
        blend(want, sample[..., :half].contiguous(), *numbers)
        fast(got, sample[..., :half].contiguous(), *numbers)
        if not torch.allclose(got, want, rtol=1e-4, atol=1e-5):
            warnings.warn(
                "fxdp: the compiled loop of the noise differs from its graph, which runs in its "
                "place, more slowly",
                stacklevel=2,
            )
            return blend
    return fast
