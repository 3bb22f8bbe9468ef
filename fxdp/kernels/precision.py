"""Products in full precision, whatever torch's settings are.

torch may be set to round the operands of float32 products and convolutions to half precision or
TF32 (`torch.set_float32_matmul_precision`, `torch.backends.*.fp32_precision`). A model may be
computed so. But where positions cancel, what is left of a sample's gradient is less than what
such rounding moves, and not twice in the same way: a norm would say nothing about what is released.
So norms and clipped sums are computed in float32 as it is written.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from fxdp.torch_internals import DisableAutocast, get_fp32_precision, set_fp32_precision

Key = tuple[str, str]  # a backend and one of its ops, as torch names them
ROOT: Key = ("generic", "all")
# What is not set is as the one above it is: the backend, and the root.
KEYS: dict[str, tuple[Key, ...]] = {
    name: ((name, "all"), (name, "matmul"), (name, "conv"), (name, "rnn"))
    for name in ("mkldnn", "cuda")
}
FULL = "ieee"
EXACT = (FULL, "none")
HALVES = (torch.float16, torch.bfloat16)
LOCK = threading.Lock()


def wide(x: Tensor) -> Tensor:
    """x in float32 at least, the precision in which norms, sums and noise are computed."""
    return x.float() if x.dtype in HALVES else x


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype of `wide(x)`."""
    return torch.float32 if x.dtype in HALVES else x.dtype


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a dtype: x itself, and no op in a graph, where it is in it already."""
    return x if x.dtype == dtype else x.to(dtype)


class Inside:
    """Who is inside of `full_precision`, for all threads: torch's settings are one for all.

    Attributes:
        depth: how many.
        before: what the first one found, and the last one puts back, in the order it was set.
    """

    depth: int = 0
    before: tuple[tuple[Key, str], ...] = ()


def read(key: Key) -> str:
    """A setting as it takes effect."""
    return get_fp32_precision(*key)


def write(key: Key, value: str) -> None:
    """Set a setting; "none" leaves it to the one above."""
    set_fp32_precision(*key, value)


def keys() -> tuple[Key, ...]:
    """The settings that take part, each behind the one above it."""
    return (ROOT, *KEYS["mkldnn"], *(KEYS["cuda"] if torch.cuda.is_initialized() else ()))


def is_lowered() -> bool:
    """Is any product of float32 numbers rounded to less?"""
    return any(read(key) not in EXACT for key in keys())


def raised() -> tuple[tuple[Key, str], ...]:
    """Set full precision; returns what was set before.

    From the root down: what then still rounds was set by itself, and what was left to the one above
    stays so.
    """
    before: list[tuple[Key, str]] = []
    for key in keys():
        if (value := read(key)) not in EXACT:
            before.append((key, value))
            write(key, FULL)
    return tuple(before)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Here, products of float32 numbers are computed in float32, in autocast too.

    ==========================================  =================================================
    case                                        what happens
    ==========================================  =================================================
    nothing is set                              nothing is changed
    several threads                             the last one that leaves puts the settings back;
                                                other threads' products are exact meanwhile
    an exception inside                         the settings are put back
    settings are changed by another thread      they are lost if the first one inside had changed
    meanwhile                                   them; do not
    ==========================================  =================================================
    """
    with LOCK:
        if Inside.depth == 0:
            Inside.before = raised()
        Inside.depth += 1
    try:
        with DisableAutocast():
            yield
    finally:
        with LOCK:
            Inside.depth -= 1
            if Inside.depth == 0:
                for key, value in Inside.before:
                    write(key, value)
                Inside.before = ()


def readable_precision() -> contextlib.AbstractContextManager[None]:
    """Full precision where torch cannot tell its own setting, for code that asks: it raises where
    the old and the new way of setting it were mixed."""
    try:
        torch.get_float32_matmul_precision()
    except RuntimeError:
        return full_precision()
    return contextlib.nullcontext()
