"""Noise on a clipped sum, as a single op for a CPU.

In blocks that fit the cache, so that random bits are still there when they are added. Inductor's
code calls the op that works in place, so that there is one tensor of a parameter's size and not
two, and which is compiled (`fxdp.mechanism.native`, or a loop by Inductor where that is not to be
had); the graph on its own calls the other. They compute the same.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from fxdp.kernels.library import define, fake
from fxdp.mechanism.chacha import device_key, draws_by_key, kernel, refuse_recording, rounds_of
from fxdp.mechanism.keystream import GROUP, HALF, Bits, normals, secret_of
from fxdp.mechanism.native import native
from fxdp.torch_internals import auto_functionalized, compile_fx_inner, make_fx, select_decomp_table

BLOCK = 1 << 17  # numbers that the processor's cache holds, with room for as many more
Blend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Any]


def blend(first: Tensor, second: Tensor, bits: Tensor, scale: Tensor, factor: Tensor) -> tuple[()]:
    """The halves [g, h] of groups become (half + scale xi) * factor; in place.

    As two tensors, so that one loop writes both: the length of a pair is computed once.
    """
    for half, drawn in zip((first, second), normals(bits), strict=True):
        half.add_(drawn * scale).mul_(factor)
    return ()


def blocks(flat: Tensor, start: int) -> Iterator[Tensor]:
    """Pieces of a flat tensor whose first element is number `start` of the parameter: [g, 2, h]
    where whole groups are, and less than a group before and after."""
    head = min(-start % GROUP, len(flat))
    tail = (len(flat) - head) % GROUP
    if head:
        yield flat[:head]
    for first in range(head, len(flat) - tail, BLOCK):
        yield flat[first : min(first + BLOCK, len(flat) - tail)].view(-1, 2, HALF)
    if tail:
        yield flat[len(flat) - tail :]


def add_noise(
    flat: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, bits: Callable[[int], Bits],
    blend: Blend, start: int = 0,
) -> None:  # fmt: skip
    """flat becomes (flat + scale xi) / expected * tangent; in place.

    Args:
        bits: those of the parameter from a group on.
        start: which element of the parameter is the first of `flat`.
    """
    factor = float(tangent) / float(expected)
    if float(scale) == 0:
        flat.mul_(factor)
        return
    source, done = bits(start // GROUP), start
    numbers = (scale.double(), torch.tensor(factor, dtype=torch.float64, device=flat.device))
    room = source.room(min(BLOCK, len(flat) + GROUP - 1) // GROUP)
    for part in blocks(flat, start):
        if part.dim() == 3:
            drawn = source.next(len(part), room).to(part.device)
            blend(part[:, 0], part[:, 1], drawn, *numbers)
        else:
            group, place = flat.new_zeros(1, 2, HALF), done % GROUP
            group.view(-1)[place : place + len(part)] = part
            blend(group[:, 0], group[:, 1], source.next(1, room).to(part.device), *numbers)
            part.copy_(group.view(-1)[place : place + len(part)])
        done += part.numel()


def add_device_noise(
    flat: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, key: Tensor, number: int,
    terms: int,
) -> None:  # fmt: skip
    """The same on another device; in place, without a wait for it.

    ================  ===========================================================================
    there             where the noise comes from
    ================  ===========================================================================
    CUDA and triton   ChaCha (`fxdp.mechanism.chacha`), by a key made of the release's: 12 rounds,
                      or 20 for secure noise
    several terms,    AES on the host, as on a CPU
    or a kernel that
    differs
    neither           the device's own generator, seeded by key and number: no generator of the
                      process has a part in it
    ================  ===========================================================================

    Without a key nothing may be drawn: the sum is lost if its scale wants noise.

    Raises:
        StepError: a CUDA graph records it.
    """
    device = flat.device
    refuse_recording(device)
    scale, expected, tangent = (x.to(device) for x in (scale, expected, tangent))
    by_key = draws_by_key(device)
    if not key.any():  # it lies on the host
        lost = torch.where(scale == 0, 0.0, torch.nan).to(flat.dtype)
        flat.add_(lost).mul_(tangent.double() / expected.double())
    elif by_key and (add_on_device := kernel(device, flat.dtype, terms)) is not None:
        rounds = rounds_of(terms)
        chachas = device_key(key, rounds)
        add_on_device(flat, scale, expected, tangent, chachas, number, terms, rounds)
    elif terms == 1 and not by_key:
        told = sha256(secret_of(key) + number.to_bytes(8)).digest()
        source = torch.Generator(device).manual_seed(int.from_bytes(told[:8]) >> 1)
        drawn = torch.empty_like(flat).normal_(generator=source)
        flat.add_(drawn.mul_(scale)).mul_(tangent.double() / expected.double())
    else:
        bits = functools.partial(Bits.of, key, number, terms, flat.dtype)
        add_noise(flat, scale, expected, tangent, bits, blend)


def with_public(total: Tensor, public: Tensor, tangent: Tensor) -> Tensor:
    """A released sum and its public part; in place, without a wait for a device."""
    if total.device.type == "cpu":
        return total.add_(public, alpha=float(tangent))
    return total.add_(public * tangent.to(public.device))


@define("released", tags=(torch.Tag.cudagraph_unsafe,))
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
    if out.device.type != "cpu":
        add_device_noise(out.view(-1), scale, expected, tangent, key, draw, terms)
    else:
        bits = functools.partial(Bits.of, key, draw, terms, out.dtype)
        add_noise(out.view(-1), scale, expected, tangent, bits, blend)
    return out if public is None else with_public(out, public, tangent)


@fake("released")
def _(
    total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, public: Tensor | None,
    key: Tensor, draw: int, terms: int,
) -> Tensor:  # fmt: skip
    return torch.empty(total.shape, dtype=total.dtype, device=total.device)


@define("release_", mutates_args=("total",), tags=(torch.Tag.cudagraph_unsafe,))
def release_(
    total: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor, public: Tensor | None,
    key: Tensor, draw: int, terms: int,
) -> None:  # fmt: skip
    """The same, in place of a contiguous total."""
    on_cpu = total.device.type == "cpu"
    if not on_cpu:
        add_device_noise(total.view(-1), scale, expected, tangent, key, draw, terms)
    elif (code := native()) is not None:
        factor = float(tangent) / float(expected)
        if (by := float(scale)) == 0:
            total.mul_(factor)
        else:
            code.add(total.view(-1), key, draw, by, factor, terms)
    else:
        bits = functools.partial(Bits.of, key, draw, terms, total.dtype)
        loop = compiled(total.dtype, terms)
        add_noise(total.view(-1), scale, expected, tangent, bits, loop)
    if public is not None:
        with_public(total, public, tangent)


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
        release_.default,
        total=total.contiguous(), scale=scale, expected=expected, tangent=tangent, public=public,
        key=key, draw=draw, terms=terms,
    )  # fmt: skip
    return found[1]


FOR_INDUCTOR = {released.default: released_in_place}


@functools.cache
def compiled(dtype: torch.dtype, terms: int) -> Blend:
    """`blend` for sums of a dtype, compiled for blocks of all sizes.

    Like all generated code it is held against what it was made from before it is used, on
    numbers of every magnitude; where they differ, `blend` itself is returned, with a warning.
    """
    bits = Bits.of(torch.ones(2, dtype=torch.int64), 0, terms, dtype)
    ends = torch.tensor([0, -1, torch.iinfo(bits.dtype).min, torch.iinfo(bits.dtype).max])
    groups = BLOCK // GROUP
    sample = bits.next(groups)
    sample[0, ..., :4] = ends.to(bits.dtype)
    part = torch.linspace(-1, 1, BLOCK, dtype=dtype).view(groups, 2, HALF)
    numbers = (torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64))
    pure: Any = torch.func.functionalize(blend)
    given = (part[:, 0], part[:, 1], sample, *numbers)
    graph = make_fx(pure, select_decomp_table(), "symbolic")(*given)
    fakes = [n.meta["val"] for n in graph.graph.find_nodes(op="placeholder")]
    kernel: Any = compile_fx_inner(graph, fakes)

    def fast(*args: Tensor) -> None:
        kernel(list(args))

    for few in (1, 5, groups):
        want, got = part[:few].clone(), part[:few].clone()
        blend(want[:, 0], want[:, 1], sample[:few], *numbers)
        fast(got[:, 0], got[:, 1], sample[:few], *numbers)
        if not torch.allclose(got, want, rtol=1e-4, atol=1e-5):
            warnings.warn(
                "fxdp: the compiled loop of the noise differs from its graph, which runs in its "
                "place, more slowly",
                stacklevel=2,
            )
            return blend
    return fast
