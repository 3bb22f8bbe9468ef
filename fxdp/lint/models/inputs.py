"""The little language of `--input`: a dtype and a shape, `f32[N,3,32,32]`.

A size is a number or a name. `N` is the batch; other names stand for sizes that the user does
not care about, and get a small one unless a value is given, `T=128`. Names may not be shared
between sizes that have to differ, and are shared between sizes that have to be equal.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxdp.lint.trouble import Trouble

BATCH = "N"
ROWS = 4  # samples of an input, where the user names no number; the proof is for all numbers
FREE = (7, 11, 13, 17, 19, 23)  # sizes of names without a value: no two are equal

SHORT: dict[str, torch.dtype] = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8,
    "u8": torch.uint8, "bool": torch.bool, "c64": torch.complex64, "c128": torch.complex128,
}  # fmt: skip
LONG = {str(dtype).removeprefix("torch."): dtype for dtype in SHORT.values()}
DTYPES = {**SHORT, **LONG, "float": torch.float32, "int": torch.int64, "long": torch.int64}

SPEC = re.compile(r"^(?:(?P<name>[A-Za-z_]\w*)\s*=)?\s*(?P<dtype>\w+)\s*\[(?P<shape>[^\]]*)\]\s*$")
SIZE = re.compile(r"^(?:(?P<name>[A-Za-z_]\w*)(?:=(?P<value>\d+))?|(?P<number>\d+))$")


@dataclass(frozen=True)
class Spec:
    """One input as the user wrote it.

    Attributes:
        name: of the keyword that it is passed by; None for a positional input.
        dtype: of the tensor.
        sizes: numbers and names, in order.
        values: of the names that were given one.
    """

    name: str | None
    dtype: torch.dtype
    sizes: tuple[int | str, ...]
    values: dict[str, int]


@dataclass(frozen=True)
class Made:
    """The inputs of a step, without data.

    Attributes:
        args, kwargs: tensors.
        dims: for each of them the axis of the samples; None where all samples share it.
        sizes: what the names stand for.
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    dims: tuple[int | None, ...]
    sizes: dict[str, int]


def parse(text: str) -> Spec:
    """Read one `--input`.

    Raises:
        Trouble: it is not of the form.
    """
    found = SPEC.match(text.strip())
    if found is None:
        raise Trouble(f"cannot read the input {text!r}: write a dtype and a shape, f32[N,3,32,32]")
    if (dtype := DTYPES.get(found["dtype"])) is None:
        known = ", ".join(SHORT)
        raise Trouble(f"input {text!r} has an unknown dtype {found['dtype']!r}: one of {known}")
    sizes: list[int | str] = []
    values: dict[str, int] = {}
    for part in [p.strip() for p in found["shape"].split(",") if p.strip()]:
        size = SIZE.match(part.replace(" ", ""))
        if size is None:
            raise Trouble(f"input {text!r} has a size {part!r}, not a number, name or T=128")
        if size["value"]:
            values[size["name"]] = int(size["value"])
        sizes.append(int(size["number"]) if size["number"] else size["name"])
    return Spec(found["name"], dtype, tuple(sizes), values)


def make(specs: Iterable[Spec], device: torch.device) -> Made:
    """Tensors for the specs, of zeros where there is data at all.

    Raises:
        Trouble: a name has two values, or the same keyword is given twice.
    """
    specs = tuple(specs)
    names = [s.name for s in specs if s.name]
    if twice := {n for n in names if names.count(n) > 1}:
        raise Trouble(f"the input {sorted(twice)[0]!r} is given twice")
    sizes: dict[str, int] = {}
    for name, value in ((n, v) for s in specs for n, v in s.values.items()):
        if sizes.setdefault(name, value) != value:
            raise Trouble(f"the size {name} is given as {sizes[name]} and as {value}")
    free = iter(FREE * len(specs))
    for name in (n for s in specs for n in s.sizes if isinstance(n, str)):
        if name not in sizes:
            sizes[name] = ROWS if name == BATCH else next(free)
    named = any(BATCH in s.sizes for s in specs)
    tensors = [empty(s, sizes, device) for s in specs]
    return Made(
        tuple(t for s, t in zip(specs, tensors, strict=True) if s.name is None),
        {s.name: t for s, t in zip(specs, tensors, strict=True) if s.name},
        tuple(sample_axis(s, named) for s in sorted(specs, key=lambda s: s.name is not None)),
        sizes,
    )


def empty(spec: Spec, sizes: dict[str, int], device: torch.device) -> Tensor:
    """The tensor of a spec."""
    shape = [sizes[s] if isinstance(s, str) else s for s in spec.sizes]
    return torch.zeros(shape, dtype=spec.dtype, device=device)


def sample_axis(spec: Spec, named: bool) -> int | None:
    """Where the samples are: on the axis N; on the first where no input says N at all."""
    if BATCH in spec.sizes:
        return spec.sizes.index(BATCH)
    return None if named or not spec.sizes else 0


def written(x: Tensor, axis: int | None = 0) -> str:
    """A tensor in the same language."""
    short = next((k for k, v in SHORT.items() if v == x.dtype), str(x.dtype))
    sizes = [BATCH if i == axis else str(s) for i, s in enumerate(x.shape)]
    return f"{short}[{','.join(sizes)}]"
