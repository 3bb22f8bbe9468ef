"""Tensors made from nothing: constants, counts and random numbers.

What is constant may be of any shape: on an axis that holds the samples every sample has its
share. A count along that axis is an `Iota`; random numbers are drawn for each sample.
"""

from typing import Any

import sympy
import torch

from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, Value, agreed
from fxdp.shapes import sample_axes

aten = torch.ops.aten
prims = torch.ops.prims


def constant(call: Call, value: Any) -> Placement:
    """The same number everywhere."""
    batch = sample_axes(call.out[0], call.n)
    if isinstance(value, sympy.Expr) and value.has(call.n):
        if call.rank == 0:
            return Partial()
        raise Mixed("the number of samples is used as a value", "uses-batch-total")
    return Shard(batch[0]) if batch else Replicate(zero=value == 0)


def zeros(call: Call, *_: Any, **__: Any) -> Placement:
    return constant(call, 0)


def ones(call: Call, *_: Any, **__: Any) -> Placement:
    return constant(call, 1)


def full(call: Call, size: Any, value: Any, **_: Any) -> Placement:
    return constant(call, value)


def like(call: Call, x: Any, value: Any = 1, **_: Any) -> Placement:
    """A constant in the shape of x, which gives nothing else of itself."""
    if isinstance(value, sympy.Expr) and value.has(call.n):
        raise Mixed("the number of samples is used as a value", "uses-batch-total")
    return x.placement if isinstance(x.placement, Shard) else constant(call, value)


def zeros_like(call: Call, x: Any, **_: Any) -> Placement:
    return like(call, x, 0)


def shaped_like(call: Call, x: Any, **_: Any) -> Placement:
    """Uninitialised, or random, in the shape of x."""
    return like(call, x, 1)


def new_full(call: Call, x: Any, size: Any, value: Any, **_: Any) -> Placement:
    return constant(call, value)


def scalar(call: Call, value: Any, **_: Any) -> Placement:
    return constant(call, value)


def iota(
    call: Call, length: Any, *, start: Any, step: Any, dtype: Any = None, **_: Any
) -> Placement:
    """Counts samples only if it starts at 0 and has one element a sample."""
    if any(isinstance(v, sympy.Expr) and v.has(call.n) for v in (start, step)):
        raise Mixed("the number of samples is used as a value", "uses-batch-total")
    if not sample_axes(call.out[0], call.n):
        return Replicate()
    integer = sympy.sympify(step).is_integer
    if start != 0 or not integer or length != call.n or dtype not in (torch.int64, torch.int32):
        raise Mixed("the result depends on a sample's position in the batch")
    return Iota(0, step=sympy.sympify(step))


def arange(call: Call, *bounds: Any, dtype: Any = None, **_: Any) -> Placement:
    """arange(end), arange(start, end) and arange(start, end, step)."""
    start, step = (bounds[0] if len(bounds) > 1 else 0), (bounds[2] if len(bounds) > 2 else 1)
    whole = all(sympy.sympify(b).is_integer for b in bounds)
    dtype = dtype or (torch.int64 if whole else torch.float32)
    return iota(call, call.out[0][0], start=start, step=step, dtype=dtype)


def constant_only(call: Call, *args: Any, **_: Any) -> Placement:
    """Patterns (eye, triangles): never along the batch axis."""
    if sample_axes(call.out[0], call.n) or any(
        isinstance(a, sympy.Expr) and a.has(call.n) for a in args
    ):
        raise Mixed("the result depends on a sample's position in the batch")
    return Replicate()


def drawn(call: Call, *_: Any, **__: Any) -> Placement:
    """Random numbers: every sample draws its own."""
    batch = sample_axes(call.out[0], call.n)
    return Shard(batch[0]) if batch else Replicate()


def drawn_like(call: Call, x: Any, *others: Any, **_: Any) -> Placement:
    """Random numbers whose distribution x may set."""
    at = agreed(call, *(v for v in (x, *others) if isinstance(v, Value)))
    return at if at is not None else Replicate()


def dropped(call: Call, x: Any, *_: Any) -> tuple[Placement, Placement]:
    """Dropout and its mask."""
    at = drawn_like(call, x)
    return at, at


def drawn_along(call: Call, x: Any, *_: Any, **__: Any) -> Placement:
    """Numbers drawn by the chances on the last axis of x."""
    at = drawn_like(call, x)
    if isinstance(at, Shard) and at.dim == x.rank - 1:
        raise Mixed("it works along the batch axis")
    return at


RULES: Table = {
    aten.full.default: Rule(full, constant=True),
    aten.zeros.default: Rule(zeros, constant=True),
    aten.ones.default: Rule(ones, constant=True),
    aten.empty.memory_format: Rule(ones, constant=True),
    aten.empty_strided.default: Rule(ones, constant=True),
    aten.empty_permuted.default: Rule(ones, constant=True),
    aten.new_full.default: Rule(new_full, constant=True),
    aten.new_zeros.default: Rule(zeros, constant=True),
    aten.new_ones.default: Rule(ones, constant=True),
    aten.new_empty.default: Rule(ones, constant=True),
    aten.new_empty_strided.default: Rule(ones, constant=True),
    aten.full_like.default: Rule(like, constant=True),
    aten.zeros_like.default: Rule(zeros_like, constant=True),
    aten.ones_like.default: Rule(shaped_like, constant=True),
    aten.empty_like.default: Rule(shaped_like, constant=True),
    aten.scalar_tensor.default: Rule(scalar),
    prims.iota.default: Rule(iota),
    aten.arange.default: Rule(arange),
    aten.arange.start: Rule(arange),
    aten.arange.start_step: Rule(arange),
    aten.eye.default: Rule(constant_only),
    aten.eye.m: Rule(constant_only),
    aten.tril_indices.default: Rule(constant_only),
    aten.triu_indices.default: Rule(constant_only),
    aten.linspace.default: Rule(constant_only),
    aten.randperm.default: Rule(constant_only),
    aten.rand.default: Rule(drawn),
    aten.randn.default: Rule(drawn),
    aten.randint.default: Rule(drawn),
    aten.randint.low: Rule(drawn),
    aten.rand_like.default: Rule(drawn_like),
    aten.randn_like.default: Rule(drawn_like),
    aten.bernoulli.default: Rule(drawn_like),
    aten.bernoulli.p: Rule(drawn_like),
    aten.native_dropout.default: Rule(dropped),
    aten.exponential.default: Rule(drawn_like),
    aten.geometric.default: Rule(drawn_like),
    aten.log_normal.default: Rule(drawn_like),
    aten.normal.float_float: Rule(drawn),
    aten.normal.Tensor_float: Rule(drawn_like),
    aten.normal.float_Tensor: Rule(lambda call, mean, std, **_: drawn_like(call, std)),
    aten.normal.Tensor_Tensor: Rule(drawn_like),
    aten.normal_functional.default: Rule(drawn_like),
    aten.uniform.default: Rule(drawn_like),
    aten.randint_like.default: Rule(drawn_like),
    aten.randint_like.low_dtype: Rule(drawn_like),
    aten.multinomial.default: Rule(drawn_along),
}
