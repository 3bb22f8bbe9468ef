"""Normal noise from a cipher, in place: a function of a key, a parameter's number and an element.

The bits are those of `fxdp.kernels.chacha`, and the normal numbers are made of them as
`fxdp.mechanism.keystream.normals` makes them. `fxdp.mechanism.chacha` compares both before a
device's kernel is used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fxdp.kernels.chacha import SIDE, numbers
from fxdp.kernels.triton.launch import on

WARPS = 8


@triton.jit
def turned(x, BY: tl.constexpr):
    """The bits of uint32 numbers, turned to the left."""
    return (x << BY) | (x >> (32 - BY))


@triton.jit
def quarter(a, b, c, d):
    """A quarter round."""
    a += b
    d = turned(d ^ a, 16)
    c += d
    b = turned(b ^ c, 12)
    a += b
    d = turned(d ^ a, 8)
    c += d
    b = turned(b ^ c, 7)
    return a, b, c, d


@triton.jit
def low(x):
    """The lower half of int64 numbers, as uint32."""
    return x.to(tl.int64).to(tl.uint32)


@triton.jit
def high(x):
    """The upper half."""
    return (x.to(tl.int64) >> 32).to(tl.uint32)


@triton.jit
def block(k0, k1, k2, k3, counter, number, ROUNDS: tl.constexpr):
    """The 16 words of blocks of ChaCha.

    Args:
        k0, k1, k2, k3: int64, the key.
        counter: int64, of each block.
        number: int64, the nonce.
    """
    none = low(counter) ^ low(counter)
    a0, a1, a2, a3 = none + 0x61707865, none + 0x3320646E, none + 0x79622D32, none + 0x6B206574
    b0, b1, b2, b3 = none + low(k0), none + high(k0), none + low(k1), none + high(k1)
    c0, c1, c2, c3 = none + low(k2), none + high(k2), none + low(k3), none + high(k3)
    d0, d1, d2, d3 = low(counter), high(counter), none + low(number), none + high(number)
    w0, w1, w2, w3, w4, w5, w6, w7 = a0, a1, a2, a3, b0, b1, b2, b3
    w8, w9, w10, w11, w12, w13, w14, w15 = c0, c1, c2, c3, d0, d1, d2, d3
    for _ in tl.static_range(ROUNDS // 2):
        w0, w4, w8, w12 = quarter(w0, w4, w8, w12)
        w1, w5, w9, w13 = quarter(w1, w5, w9, w13)
        w2, w6, w10, w14 = quarter(w2, w6, w10, w14)
        w3, w7, w11, w15 = quarter(w3, w7, w11, w15)
        w0, w5, w10, w15 = quarter(w0, w5, w10, w15)
        w1, w6, w11, w12 = quarter(w1, w6, w11, w12)
        w2, w7, w8, w13 = quarter(w2, w7, w8, w13)
        w3, w4, w9, w14 = quarter(w3, w4, w9, w14)
    return (
        w0 + a0, w1 + a1, w2 + a2, w3 + a3, w4 + b0, w5 + b1, w6 + b2, w7 + b3,
        w8 + c0, w9 + c1, w10 + c2, w11 + c3, w12 + d0, w13 + d1, w14 + d2, w15 + d3,
    )  # fmt: skip


@triton.jit
def pair(length, angle):
    """Two normal numbers of two int32 numbers (Box and Muller 1958); see `normals`."""
    u = (tl.abs(length.to(tl.int32, bitcast=True).to(tl.float32)) + 0.25) * 4.656612873077393e-10
    turn = angle.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    far = tl.sqrt(tl.abs(2.0 * tl.log(u)))  # no logarithm, rounded, is to be above 0
    return far * tl.cos(turn), far * tl.sin(turn)


@triton.jit
def wide(first, second):
    """Float64 numbers from int64 ones, of two words each."""
    return (first.to(tl.int64) | (second.to(tl.int64) << 32)).to(tl.float64)


@triton.jit
def wide_pair(l0, l1, a0, a1):
    """Two normal numbers in float64, of four words."""
    u = (tl.abs(wide(l0, l1)) + 0.25) * 1.0842021724855044e-19
    pi = tl.full((), 3.141592653589793, tl.float64)  # a number as it stands would be a float32 one
    turn = wide(a0, a1) * 1.0842021724855044e-19 * pi
    far = tl.sqrt(tl.abs(2.0 * tl.log(u)))  # no logarithm, rounded, is to be above 0
    return far * tl.cos(turn), far * tl.sin(turn)


@triton.jit
def wide_pairs(w):
    """The 8 normal numbers in float64 of a block's words, pair by pair."""
    a0, b0 = wide_pair(w[0], w[1], w[2], w[3])
    a1, b1 = wide_pair(w[4], w[5], w[6], w[7])
    a2, b2 = wide_pair(w[8], w[9], w[10], w[11])
    a3, b3 = wide_pair(w[12], w[13], w[14], w[15])
    return a0, b0, a1, b1, a2, b2, a3, b3


@triton.jit
def ratio(tangent, expected):
    """The number that the sum is multiplied by, in float64."""
    return tl.load(tangent).to(tl.float64) / tl.load(expected).to(tl.float64)


@triton.jit
def add(flat, at, lane, noise, scale, factor, end, SIDE: tl.constexpr):
    """A lane of a group becomes (it + scale noise) * factor.

    Added in the noise's dtype and rounded once, as on a CPU: noise that is rounded to float32 by
    itself leaves a sum fewer numbers to become.
    """
    place = at + lane * SIDE
    live = (place >= 0) & (place < end)
    x = tl.load(flat + place, mask=live, other=0.0)
    noisy = (x.to(noise.dtype) + scale * noise).to(x.dtype)
    tl.store(flat + place, noisy * factor.to(x.dtype), mask=live)


@triton.jit(do_not_specialize=["k0", "k1", "k2", "k3", "number", "start", "end", "first"])
def noise_kernel(
    flat, scale, expected, tangent, k0, k1, k2, k3, number, start, end, first,
    ROUNDS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """flat[i] = (flat[i] + scale xi) / expected * tangent, with xi in float32; SIDE blocks of the
    cipher a program.

    Args:
        flat: float32 [end], of which the first is element `start` of the parameter.
        scale, expected, tangent: 0-d.
        k0, k1, k2, k3: the key, 8 bytes each.
        number: the parameter's noise number.
        first: the first group of elements that is in it.
    """
    group = tl.program_id(0).to(tl.int64) + first
    lane = tl.arange(0, SIDE).to(tl.int64)
    by, times = tl.load(scale).to(tl.float32), ratio(tangent, expected)
    at = group * (16 * SIDE) - start + lane
    w = block(k0, k1, k2, k3, group * SIDE + lane, number + (group * 0), ROUNDS)
    for i in tl.static_range(8):
        one, two = pair(w[2 * i], w[2 * i + 1])
        add(flat, at, 2 * i, one, by, times, end, SIDE)
        add(flat, at, 2 * i + 1, two, by, times, end, SIDE)


@triton.jit(do_not_specialize=["k0", "k1", "k2", "k3", "number", "start", "end", "first"])
def wide_kernel(
    flat, scale, expected, tangent, k0, k1, k2, k3, number, start, end, first,
    ROUNDS: tl.constexpr, SIDE: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """The same with noise in float64, of the sum of TERMS normal numbers over the root of TERMS."""
    group = tl.program_id(0).to(tl.int64) + first
    lane = tl.arange(0, SIDE).to(tl.int64)
    by, times = tl.load(scale).to(tl.float64), ratio(tangent, expected)
    at = group * (8 * SIDE) - start + lane
    s0 = tl.zeros((SIDE,), tl.float64)
    s1, s2, s3, s4, s5, s6, s7 = s0, s0, s0, s0, s0, s0, s0
    for term in range(TERMS):
        counter = (group * TERMS + term) * SIDE + lane
        n = wide_pairs(block(k0, k1, k2, k3, counter, number + (group * 0), ROUNDS))
        s0, s1, s2, s3 = s0 + n[0], s1 + n[1], s2 + n[2], s3 + n[3]
        s4, s5, s6, s7 = s4 + n[4], s5 + n[5], s6 + n[6], s7 + n[7]
    sums = (s0, s1, s2, s3, s4, s5, s6, s7)
    root = tl.sqrt(tl.full((), TERMS, tl.float64))
    for i in tl.static_range(8):
        add(flat, at, i, sums[i] / root, by, times, end, SIDE)


@triton.jit
def pair_kernel(lengths, angles, first, second, SIDE: tl.constexpr):
    """The two normal numbers of each of SIDE lengths and angles, integers of 32 or 64 bits."""
    lane = tl.arange(0, SIDE)
    one, two = tl.load(lengths + lane), tl.load(angles + lane)
    if one.dtype == tl.int64:
        first_number, second_number = wide_pair(low(one), high(one), low(two), high(two))
    else:
        first_number, second_number = pair(
            one.to(tl.uint32, bitcast=True), two.to(tl.uint32, bitcast=True)
        )
    tl.store(first + lane, first_number)
    tl.store(second + lane, second_number)


def pairs(lengths: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    """The two normal numbers of each length and angle, as the kernels make them.

    Args:
        lengths, angles: int32 or int64 [a power of 2], on a CUDA device.

    Returns:
        Two of float32, or of float64, of that shape.
    """
    real = torch.float64 if lengths.dtype == torch.int64 else torch.float32
    first, second = (torch.empty_like(lengths, dtype=real) for _ in range(2))
    with on(lengths):
        pair_kernel[(1,)](lengths, angles, first, second, len(lengths))
    return first, second


def add_noise(
    flat: Tensor, scale: Tensor, expected: Tensor, tangent: Tensor,
    key: tuple[int, int, int, int], number: int, terms: int, rounds: int, start: int = 0,
) -> None:  # fmt: skip
    """flat becomes (flat + scale xi) / expected * tangent; in place, without a wait for the device.

    Guarantees:
        xi is a function of (key, number, element, terms), of the rounds, and of whether it is made
        in float64: of a float64 tensor, or of several terms.

    Args:
        flat: float32 or float64 [length], contiguous, on a CUDA device.
        scale, expected, tangent: 0-d, on the device.
        key: 32 bytes, as int64 numbers.
        number: no two parameters of one key have the same.
        terms: how many normal numbers each one of the noise is made of.
        rounds: of the cipher.
        start: which element of the parameter is the first of `flat`.
    """
    if not flat.numel():
        return
    is_wide = terms > 1 or flat.dtype == torch.float64
    group = SIDE * numbers(is_wide)
    first, last = start // group, -(-(start + flat.numel()) // group)
    given = (flat, scale, expected, tangent, *key, number, start, flat.numel(), first)
    with on(flat):
        if is_wide:
            wide_kernel[(last - first,)](*given, rounds, SIDE, terms, num_warps=WARPS)
        else:
            noise_kernel[(last - first,)](*given, rounds, SIDE, num_warps=WARPS)
