"""The noise of `fxdp.mechanism.keystream` by the processor's own instructions (noise.c).

Compiled once a machine by the compiler that Inductor uses, and kept beside Inductor's code. As with
all generated code nothing of it is used before it agreed with what it stands for: at bits of every
magnitude, and at parts of parameters of all kinds. Where there is no compiler, or no instructions
for AES in it, the loops of `fxdp.mechanism.gaussian` make the same noise, more slowly.
"""

import ctypes
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxdp.kernels.native_code import built, machine
from fxdp.mechanism.keystream import GROUP, Bits, noise_of, normals, secret_of

SOURCE = Path(__file__).with_name("noise.c")
# Relative to 1 and absolute, of numbers made from equal bits.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
MOST_TERMS = 4  # as in noise.c
WORDS = [ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_uint64]
NUMBERS = [ctypes.c_double, ctypes.c_double, ctypes.c_int, ctypes.c_int]
LISTS = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
ALONE = 16 * GROUP  # elements of which one thread makes the noise


class Native:
    """The compiled noise.

    Args:
        path: of the shared library.

    Raises:
        OSError, AttributeError: it is none, or another.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._adds: dict[torch.dtype, Any] = {
            torch.float32: library.fxdp_noise_float, torch.float64: library.fxdp_noise_double,
        }  # fmt: skip
        for function in self._adds.values():
            function.argtypes, function.restype = [ctypes.c_void_p, *WORDS, *NUMBERS], None
        self._add_all: dict[torch.dtype, Any] = {
            torch.float32: library.fxdp_noise_float_of_all,
            torch.float64: library.fxdp_noise_double_of_all,
        }
        for function in self._add_all.values():
            function.argtypes, function.restype = [*LISTS, *NUMBERS[:3]], None
        self._narrow, self._wide = library.fxdp_narrow_group, library.fxdp_wide_group
        self._narrow.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._wide.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        self._narrow.restype = self._wide.restype = None

    def add(
        self, flat: Tensor, key: Tensor, number: int, scale: float, factor: float = 1.0,
        terms: int = 1, start: int = 0,
    ) -> None:  # fmt: skip
        """flat becomes (flat + scale xi) * factor; in place.

        Args:
            flat: contiguous, on the CPU, float32 or float64; elements `start` and on of a
                parameter.
            key: int64 [2] of one release.
            number: the parameter's noise number.
            terms: how many normal numbers each one of the noise is made of.

        Raises:
            AssertionError: there is no key.
        """
        threads = torch.get_num_threads() if flat.numel() > ALONE else 1
        self._adds[flat.dtype](
            flat.data_ptr(), flat.numel(), start, secret_of(key), number, scale, factor, terms,
            threads,
        )  # fmt: skip

    def add_all(
        self, totals: Sequence[Tensor], key: Tensor, numbers: Sequence[int], scale: float,
        factor: float = 1.0, terms: int = 1,
    ) -> None:  # fmt: skip
        """The same for all elements of several parameters of one dtype, in one call and thread.

        Raises:
            AssertionError: there is no key, or not one number for each.
        """
        count = len(totals)
        if len(numbers) != count:
            raise AssertionError(f"{count} sums would get the noise of {len(numbers)}")
        places = (ctypes.c_void_p * count)(*[x.data_ptr() for x in totals])
        lengths = (ctypes.c_int64 * count)(*[x.numel() for x in totals])
        which = (ctypes.c_uint64 * count)(*numbers)
        self._add_all[totals[0].dtype](
            count, places, lengths, which, secret_of(key), scale, factor, terms
        )

    def group(self, bits: Tensor) -> Tensor:
        """[GROUP] normal numbers of one group of bits, int32 [1, 2, h] or int64 [k, 2, h]."""
        wide = bits.dtype == torch.int64
        out = torch.empty(GROUP, dtype=torch.float64 if wide else torch.float32)
        if wide:
            self._wide(bits.data_ptr(), len(bits), out.data_ptr())
        else:
            self._narrow(bits.data_ptr(), out.data_ptr())
        return out

    def trouble(self) -> str | None:
        """What it computes differently from `fxdp.mechanism.keystream`, if anything."""
        key = torch.tensor([0x0123456789ABCDEF, -0x123456789ABCDEF], dtype=torch.int64)
        for dtype, terms in ((torch.float32, 1), (torch.float64, 1), (torch.float64, MOST_TERMS)):
            bits = Bits.of(key, 3, terms, dtype).next(4)
            bits[0, :, :, :64] = of_every_magnitude(bits.dtype)
            for one in bits:
                want = torch.cat(normals(one.unsqueeze(0)), 1).flatten()
                if not agree(self.group(one.contiguous()), want, dtype):
                    return f"numbers of {bits.dtype} bits"
            for at in (0, 1, GROUP - 1, 5 * GROUP):
                for length in (0, 1, GROUP, 2 * GROUP + 3):
                    flat = torch.linspace(-1, 1, length, dtype=dtype)
                    want = (flat + 0.7 * noise_of(key, 2**40, at, length, dtype, terms)) * 0.3
                    self.add(flat, key, 2**40, 0.7, 0.3, terms, at)
                    if not agree(flat, want, dtype):
                        return f"elements {at} to {at + length} in {dtype}, {terms} terms"
            flats = [torch.linspace(-1, 1, n, dtype=dtype) for n in (5, 0, GROUP + 3)]
            numbers = (7, 2**40, 0)
            wanted = [x.clone() for x in flats]
            for x, number in zip(wanted, numbers, strict=True):
                self.add(x, key, number, 0.7, 0.3, terms)
            self.add_all(flats, key, numbers, 0.7, 0.3, terms)
            if not all(map(torch.equal, flats, wanted)):
                return f"several parameters in {dtype}, {terms} terms"
        return None


def of_every_magnitude(dtype: torch.dtype) -> Tensor:
    """[64] integers: the least and the largest, and powers of 2 with either sign."""
    ends, size = torch.iinfo(dtype), 31 if dtype == torch.int32 else 63
    powers = [sign << (k * (size - 1) // 29) for k in range(30) for sign in (1, -1)]
    return torch.tensor([0, ends.max, ends.min, ends.min + 1, *powers], dtype=dtype)


def agree(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    return torch.allclose(got, want.to(got.dtype), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@functools.cache
def native() -> Native | None:
    """The compiled noise; None where it cannot be had, or computes something else.

    Warns once in the second case.
    """
    path = built(SOURCE, machine())
    if path is None:
        return None
    try:
        found = Native(path)
    except (OSError, AttributeError):  # half a file, or another's
        path.unlink(missing_ok=True)
        return None
    if (trouble := found.trouble()) is not None:
        warnings.warn(
            f"fxdp: the compiled noise differs from what it stands for ({trouble}); a slower loop "
            "takes its place",
            stacklevel=2,
        )
        return None
    return found
