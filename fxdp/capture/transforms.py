"""Functions within the transforms of `torch.func`, and within forward-mode AD, while a model is
captured.

There torch computes some functions by code of its own, which asks for all sizes, or which no
tensor without data can take. Those here are made of ops that do neither. A tangent that nobody
gave is zeros like any others, where torch has zeros without memory, and asks for their sizes.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxdp.capture.patches import calls
from fxdp.forms.batch import HALVES
from fxdp.torch_internals import (
    TorchInGraphFunctionVariable,
    TransformType,
    forward_ad,
    get_interpreter_stack,
    op_implementations,
)

aten = torch.ops.aten


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """On rows: torch asks how many there are where an input has more axes."""
    rows = F.linear(input.reshape(-1, input.shape[-1]), weight, bias)
    return rows.reshape(*input.shape[:-1], weight.shape[0])


def glu(input: Tensor, dim: int = -1) -> Tensor:
    half, gate = input.chunk(2, dim)
    return half * torch.sigmoid(gate)


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if inplace or not 0 <= p <= 1:
        return torch.dropout_(input, p, training)
    return torch.native_dropout(input, p, training)[0]


def normalized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """Less its mean over some axes, and over its standard deviation; in float32 at least."""
    x = x.float() if x.dtype in HALVES else x
    x = x - x.mean(dims, keepdim=True)
    return x * (x.square().mean(dims, keepdim=True) + eps).rsqrt()


def scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Times a weight, plus a bias."""
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def channels(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Times and plus a number for each channel, axis 1."""
    shape = (-1, *[1] * (x.dim() - 2))
    by, plus = (None if p is None else p.reshape(shape) for p in (weight, bias))
    return scaled(x, by, plus)


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """torch's own tangent (2.11 to 2.14) has a wrong gradient: this one has the right one."""
    dims = list(range(-len(normalized_shape), 0))
    return scaled(normalized(input, dims, eps), weight, bias).to(input.dtype)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    groups = input.unflatten(1, (num_groups, -1))
    out = normalized(groups, list(range(2, groups.dim())), eps).flatten(1, 2)
    return channels(out, weight, bias).to(input.dtype)


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Its own where statistics are kept, which are of all samples."""
    if running_mean is not None or running_var is not None or not use_input_stats:
        rest = (running_mean, running_var, use_input_stats, momentum, eps, False)
        return torch.instance_norm(input, weight, bias, *rest)
    out = normalized(input, list(range(2, input.dim())), eps)
    return channels(out, weight, bias).to(input.dtype)


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """With constants, as in eval mode; its own in training, which mixes samples."""
    if training or running_mean is None or running_var is None:
        rest = (running_mean, running_var, training, momentum, eps, False)
        return torch.batch_norm(input, weight, bias, *rest)
    scale = (running_var + eps).rsqrt()
    return channels(channels(input, scale, -running_mean * scale), weight, bias).to(input.dtype)


FORWARD: dict[Any, Callable[..., Tensor]] = {
    F.glu: glu,
    F.dropout: dropout,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    F.batch_norm: batch_norm,
}


def stand_in(function: Any, args: Sequence[Any]) -> Callable[..., Tensor] | None:
    """What takes the place of a function where it is called just now, if anything does.

    Args:
        args: Dynamo's variables.
    """
    levels = [level.key() for level in get_interpreter_stack() or ()]
    if function is F.linear and levels:
        axes = getattr(args[0].realize() if hasattr(args[0], "realize") else args[0], "ndim", 2)
        return linear if axes > 2 else None
    forward = TransformType.Jvp in levels or forward_ad._current_level >= 0
    return FORWARD.get(function) if forward else None


def zeros(fake_mode: Any, func: Any, size: Sequence[Any], *args: Any, **options: Any) -> Tensor:
    """`aten._efficientzerotensor`, as torch calls it for tensors without data."""
    given = {name: value for name, value in options.items() if value is not None}
    with fake_mode:
        return torch.zeros(size, **given)


@contextlib.contextmanager
def transforms() -> Iterator[None]:
    """While a model is captured: functions that a transform can be captured of."""
    op = aten._efficientzerotensor.default
    with calls(TorchInGraphFunctionVariable, lambda own: own.value, stand_in):
        before = op_implementations.get(op)
        op_implementations[op] = zeros
        try:
            yield
        finally:
            del op_implementations[op]
            if before is not None:
                op_implementations[op] = before
