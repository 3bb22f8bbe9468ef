"""Ops that work element by element, with broadcasting.

Samples stay where they are. A sum over samples passes through what is linear; at 0-d it may
also be used otherwise, because `localize` can compute it sample by sample.
"""

from typing import Any

import sympy
import torch

from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate
from fxdp.rules import Call, Rule, Table, Value, agreed, is_shared, linear
from fxdp.torch_internals import OpOverload, OpOverloadPacket

aten = torch.ops.aten
prims = torch.ops.prims


def is_total(call: Call, x: Any) -> bool:
    """Is x a 0-d total over the batch, or the number of samples used as a value?"""
    if isinstance(x, Value):
        return isinstance(x.placement, Partial) and x.rank == 0 and not x.placement.public
    return isinstance(x, sympy.Expr) and x.has(call.n)


def pointwise(call: Call, *operands: Any, **keywords: Any) -> Placement:
    """Any function of elements."""
    operands = (*operands, *keywords.values())
    totals = [x for x in operands if is_total(call, x)]
    rest = [x for x in operands if not is_total(call, x)]
    at = agreed(call, *rest)
    if not totals:
        return at if at is not None else Replicate()
    if at is not None:
        if not call.backward:
            raise Mixed(
                "each sample's value is computed from a total over the batch", "uses-batch-total"
            )
        return at
    if call.rank == 0:
        return Partial()
    raise Mixed("a total over the batch is used to compute something else", "uses-batch-total")


def copied(call: Call, x: Any, *_: Any, **__: Any) -> Placement:
    """The same elements, perhaps in another dtype or memory layout."""
    return x.placement


def cast(call: Call, x: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Placement:
    """The same numbers in another dtype; a sum must stay a sum, a count a count."""
    if isinstance(x.placement, Iota) and not {x.dtype, dtype or x.dtype} <= {
        torch.int32,
        torch.int64,
    }:
        raise Mixed("the result depends on a sample's position in the batch")
    if isinstance(x.placement, Partial) and dtype is not None and not dtype.is_floating_point:
        return pointwise(call, x)
    return x.placement


def noisy(call: Call, x: Any, noise: Any, *_: Any, **__: Any) -> tuple[Placement, Placement]:
    """RReLU in training: slopes are drawn in the shape of x."""
    at = pointwise(call, x, noise)
    return at, at


def negated(call: Call, x: Any) -> Placement:
    """Linear in x, and a zero stays one."""
    if not isinstance(x, Value):  # torch.conj of a complex number
        return Replicate()
    return x.placement if isinstance(x.placement, Partial) else pointwise(call, x)


def scaled(call: Call, x: Any, y: Any) -> Placement:
    """Linear in each operand."""
    for one, other in ((x, y), (y, x)):
        if isinstance(one, Value) and isinstance(one.placement, Partial) and is_shared(other):
            if is_total(call, other):
                break
            return one.placement
    return pointwise(call, x, y)


def divided(call: Call, x: Any, y: Any, **kwargs: Any) -> Placement:
    """Linear in the first operand, unless the quotient is rounded."""
    if kwargs.get("rounding_mode") is None and is_shared(y) and not is_total(call, y):
        return linear(call, x, y) or pointwise(call, x, y)
    return pointwise(call, x, y)


def added(call: Call, x: Any, y: Any, alpha: Any = 1) -> Placement:
    """Sums add up to sums; a term without samples is kept apart from one that has them."""
    if isinstance(alpha, sympy.Expr) and alpha.has(call.n):
        raise Mixed("the number of samples scales one of the terms", "uses-batch-total")
    sums = [isinstance(v, Value) and isinstance(v.placement, Partial) for v in (x, y)]
    if all(sums) and (x.shape == y.shape or call.rank > 0):
        return Partial(public=x.placement.public or y.placement.public)
    if any(sums) and call.rank > 0:
        total, other = (x, y) if sums[0] else (y, x)
        if isinstance(other, Value) and other.shape == total.shape and is_shared(other):
            zero = isinstance(other.placement, Replicate) and other.placement.zero
            return Partial(public=total.placement.public or not zero)
    return pointwise(call, x, y)


def chosen(call: Call, condition: Any, x: Any, y: Any) -> Placement:
    """Linear in both branches together if the condition holds no samples."""
    if call.rank > 0 and is_shared(condition):
        places = {x.placement, y.placement}
        sums = places & {Partial(), Partial(public=True)}
        if sums and places <= sums | {Replicate(zero=True)}:
            return Partial(public=Partial(public=True) in sums)
    return pointwise(call, condition, x, y)


def sloped(call: Call, grad: Any, *rest: Any, **keywords: Any) -> Placement:
    """A gradient times the slope of a function, which the other operands tell."""
    if isinstance(grad.placement, Partial) and is_shared(*rest):
        return grad.placement
    return pointwise(call, grad, *rest, **keywords)


def mean_divides(call: Call, grad: Any, x: Any, target: Any, reduction: Any, *_: Any) -> Placement:
    """The gradient of a loss, which under a mean divides by the size of the whole batch."""
    if reduction == 1 and not is_shared(grad, x, target):
        raise Mixed("it divides by the number of elements of the batch", "uses-batch-total")
    return pointwise(call, grad, x, target)


def sigmoid_logged(call: Call, x: Any) -> tuple[Placement, Placement]:
    """The logarithm of the sigmoid also returns a buffer, which is empty or like x."""
    at = pointwise(call, x)
    return at, at if call.out[1] == call.out[0] else Replicate()


def filled(call: Call, x: Any, mask: Any, value: Any) -> Placement:
    """`where(mask, value, x)`."""
    if isinstance(x.placement, Partial) and value == 0 and is_shared(mask):
        return x.placement
    return pointwise(call, x, mask, value)


def _tagged() -> list[OpOverload]:
    """Every overload that torch tags as pointwise, that changes no operand and draws nothing."""
    packets = [getattr(aten, name) for name in dir(aten)]
    ops = [
        getattr(packet, overload)
        for packet in packets
        if isinstance(packet, OpOverloadPacket)
        for overload in packet.overloads()
    ]
    return [
        op
        for op in ops
        if torch.Tag.pointwise in op.tags
        and torch.Tag.nondeterministic_seeded not in op.tags
        and not op._schema.is_mutable
        and len(op._schema.returns) == 1
    ]


# Linear in their first operand, a gradient.
SLOPES: tuple[OpOverload, ...] = (
    aten.elu_backward.default,
    aten.gelu_backward.default,
    aten.hardsigmoid_backward.default,
    aten.hardswish_backward.default,
    aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default,
    aten.log_sigmoid_backward.default,
    aten.mish_backward.default,
    aten.sigmoid_backward.default,
    aten.silu_backward.default,
    aten.softplus_backward.default,
    aten.tanh_backward.default,
    aten.threshold_backward.default,
)

# Pointwise by nature, though torch does not tag them.
UNTAGGED: tuple[OpOverload, ...] = (
    aten._conj_physical.default,
    aten.celu.default,
    aten.leaky_relu.default,  # torch 2.11
    aten.logit_backward.default,
    aten.nan_to_num.default,
    aten.softshrink_backward.default,
    aten.hardshrink_backward.default,
    aten.native_dropout_backward.default,
    aten.rrelu_with_noise_backward.default,
    prims.convert_element_type.default,
)


def as_complex(call: Call, x: Any) -> Placement:
    """A view that adds or drops a last axis of real and imaginary parts."""
    at = x.placement
    if isinstance(at, Partial | Replicate):
        return at
    if at.dim >= min(call.rank, x.rank):
        raise Mixed("the batch axis holds real and imaginary parts")
    return at


RULES: Table = {op: Rule(pointwise, pointwise=True) for op in (*_tagged(), *UNTAGGED)} | {
    **{op: Rule(sloped, pointwise=True) for op in SLOPES},
    aten.alias.default: Rule(copied, identity=True),
    aten.detach.default: Rule(copied, identity=True),
    aten.clone.default: Rule(copied, isometry=True, pointwise=True),
    aten.contiguous.default: Rule(copied, isometry=True, pointwise=True),
    aten.lift_fresh_copy.default: Rule(copied, isometry=True, pointwise=True),
    aten._to_copy.default: Rule(cast, isometry=True, pointwise=True),
    aten._conj.default: Rule(negated, isometry=True, pointwise=True),
    aten.neg.default: Rule(negated, isometry=True, pointwise=True),
    aten.mul.Tensor: Rule(scaled, pointwise=True),
    aten.mul.Scalar: Rule(scaled, pointwise=True),
    aten.div.Tensor: Rule(divided, pointwise=True),
    aten.div.Scalar: Rule(divided, pointwise=True),
    aten.div.Tensor_mode: Rule(divided, pointwise=True),
    aten.add.Tensor: Rule(added, pointwise=True, adds=True),
    aten.sub.Tensor: Rule(added, pointwise=True),
    aten.where.self: Rule(chosen, pointwise=True),
    aten.masked_fill.Scalar: Rule(filled, pointwise=True),
    aten.masked_fill.Tensor: Rule(pointwise, pointwise=True),
    aten.view_as_real.default: Rule(as_complex, isometry=True),
    aten.view_as_complex.default: Rule(as_complex, isometry=True),
    aten.huber_loss_backward.default: Rule(mean_divides),
    aten.rrelu_with_noise_functional.default: Rule(noisy),
    aten.log_sigmoid_forward.default: Rule(sigmoid_logged),
}
