"""A form as a part of a stream: what the op of `fxdp.mechanism.streaming` has to know of it."""

from functools import partial
from typing import Any

from torch import Tensor

from fxdp.mechanism.streaming import Part


def tensors(form: Any) -> dict[str, Tensor]:
    """The operands of a form, by their names."""
    return {name: x for name, x in vars(form).items() if isinstance(x, Tensor)}


def part_of(form: Any, group: int) -> Part:
    """The part of a form that can be streamed, in a group of parameters."""
    names = list(tensors(form))
    others = {name: x for name, x in vars(form).items() if name not in names}
    return Part(len(names), partial(write, type(form), names, others), form.shape, group)


def write(
    kind: Any, names: list[str], others: dict[str, Any], room: Tensor, *operands: Tensor
) -> Tensor:
    """The per-sample gradients of a form of these operands."""
    return kind(**dict(zip(names, operands, strict=True)), **others).write(room)
