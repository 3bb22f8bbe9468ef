"""The noise of a GPU: ChaCha's, by a key made of the release's, and compared before it is used.

On a CPU the bits are AES's (`fxdp.mechanism.keystream`). One key and number give other noise on a
GPU than there: the two ciphers have no key in common, since ChaCha's is a hash of the release's, of
the cipher's name and of its rounds.

RFC 8439 asks for 20 rounds, and secure noise has 20. The best attacks known reach 7 (Aumasson, Too
Much Crypto, 2019, section 5, which proposes 8); other noise has 12, as Rust's standard generator.
"""

import functools
import struct
import warnings
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from fxdp.diagnostics.errors import StepError
from fxdp.kernels import chacha
from fxdp.kernels.chacha import SIDE, Key
from fxdp.kernels.library import DEVICES, has_triton
from fxdp.mechanism.keystream import normals, secret_of
from fxdp.mechanism.native import of_every_magnitude

ROUNDS, SECURE_ROUNDS = 12, 20
# Relative to 1 and absolute, of numbers made from equal bits. A device's functions of float32
# numbers are off by some units in the last place.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
# The parts that are compared: all of a group, over its end, and behind 2^32.
PLACES, LENGTH = (0, 2**32 + 2040, 2**40 + 5), 8 * SIDE + 40
Adds = Callable[..., None]


def draws_by_key(device: torch.device) -> bool:
    """Is noise there a function of the release's key, by a cipher?"""
    return device.type == "cpu" or device.type in DEVICES and has_triton()


def rounds_of(terms: int) -> int:
    """How many rounds of ChaCha noise of so many terms is made with."""
    return SECURE_ROUNDS if terms > 1 else ROUNDS


def device_key(key: Tensor, rounds: int) -> Key:
    """ChaCha's key for a release: 32 bytes.

    Args:
        key: int64 [2], the release's.

    Raises:
        AssertionError: there is no key.
    """
    told = sha256(b"fxdp ChaCha%d" % rounds + secret_of(key)).digest()
    a, b, c, d = struct.unpack("<4q", told)
    return a, b, c, d


def noise_of(
    key: Key, number: int, start: int, length: int, dtype: torch.dtype, terms: int, rounds: int
) -> Tensor:
    """[length] standard normal numbers on the CPU, which the kernel's are compared with: elements
    start .. start + length of a parameter's noise. Of several terms they are float64, whatever the
    dtype.

    Args:
        number: the parameter's noise number.
        dtype: float32 or float64.
    """
    wide = dtype == torch.float64 or terms > 1
    group = SIDE * chacha.numbers(wide)
    first, last = start // group, -(-(start + length) // group)
    bits = chacha.bits(key, number, terms, rounds, wide, first, last - first)
    return torch.stack(normals(bits), 1).flatten()[start - first * group :][:length]


@functools.cache
def kernel(device: torch.device, dtype: torch.dtype, terms: int) -> Adds | None:
    """What adds noise on a device (`fxdp/kernels/triton/noise.py`), once it was compared there.

    Warns and returns None where it computes something else: the noise of AES takes its place.
    """
    from fxdp.kernels.triton import noise  # triton is optional

    if (trouble := trouble_of(noise, device, dtype, terms)) is not None:
        warnings.warn(
            f"fxdp: the noise of {device} differs from what it stands for ({trouble}); the host "
            "makes it, much more slowly",
            stacklevel=2,
        )
        return None
    return noise.add_noise


def trouble_of(noise: Any, device: torch.device, dtype: torch.dtype, terms: int) -> str | None:
    """What the kernels compute differently from `noise_of`, if anything.

    Args:
        noise: the module of the kernels.
    """
    wide = dtype == torch.float64 or terms > 1
    ends = of_every_magnitude(torch.int64 if wide else torch.int32)
    lengths, angles = (x.contiguous() for x in (ends, ends.flip(0)))
    bits = torch.stack([lengths, angles])[None, None]
    made = noise.pairs(lengths.to(device), angles.to(device))
    if not all(map(agree, made, (want[0] for want in normals(bits)))):
        return f"numbers of {bits.dtype} bits"
    rounds, number = rounds_of(terms), 2**40 + 3
    key = device_key(torch.tensor([3, 4], dtype=torch.int64, device="cpu"), rounds)
    scale, expected, tangent = (
        torch.full((), x, dtype=t, device=device)
        for x, t in ((0.75, dtype), (4.0, torch.float64), (-2.0, torch.float32))
    )
    for start in PLACES:
        flat = torch.linspace(-1, 1, LENGTH, dtype=dtype, device="cpu")
        xi = noise_of(key, number, start, LENGTH, dtype, terms, rounds)
        want = ((flat + 0.75 * xi) / -2.0).to(dtype)
        flat = flat.to(device)
        noise.add_noise(flat, scale, expected, tangent, key, number, terms, rounds, start)
        if not agree(flat, want):
            return f"elements from {start} on in {dtype}, {terms} terms"
    return None


def agree(got: Tensor, want: Tensor) -> bool:
    close = TOLERANCE[got.dtype]
    return torch.allclose(got.cpu(), want, rtol=close, atol=close)


def refuse_recording(device: torch.device) -> None:
    """Refuse to be recorded by a CUDA graph, which would keep the key.

    Raises:
        StepError: the device's stream is recorded.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise StepError(
            "a private step is recorded by a CUDA graph: each time that is played it would add the "
            "noise of one release again, which cancels out, and nobody would count it; record the "
            "optimizer's step, and not this one"
        )
