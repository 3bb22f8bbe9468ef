"""The checker's own rules for ops that work element by element, or only move elements about.

A rule says whether a claim of the result follows from those of the operands. What it leaves open is
tried on random tensors.
"""

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from fxdp.checker.call import Call, Operand
from fxdp.checker.claims import Claim, Partial, Replicate, Shape, Shard, equal

# Element by element, though torch does not tag them.
UNTAGGED = {
    "aten.alias", "aten.detach", "aten.clone", "aten._to_copy", "aten.lift_fresh_copy",
    "aten.native_dropout_backward", "aten.celu", "aten.softshrink_backward",
    "aten.hardshrink_backward", "aten.logit_backward", "aten.nan_to_num", "aten.leaky_relu",
    "prims.convert_element_type",
}  # fmt: skip
# Linear, element by element, in a first operand.
COPIES = {"aten.alias", "aten.detach", "aten.clone", "aten.lift_fresh_copy", "aten.neg"}
CASTS = {"aten._to_copy", "prims.convert_element_type"}
# The flat order of elements stays.
VIEWS = {"aten.view", "aten._unsafe_view", "aten.reshape", "aten.unsqueeze", "aten.squeeze"}
# Linear in their first operand, of which they move, repeat or leave out elements, or add them up.
MOVES = VIEWS | COPIES | {
    "aten.permute", "aten.t", "aten.transpose", "aten.expand", "aten.slice", "aten.select",
    "aten.sum",
}  # fmt: skip
# Each element is drawn by itself.
DRAWS = {
    "aten.rand", "aten.randn", "aten.rand_like", "aten.randn_like", "aten.bernoulli",
    "aten.native_dropout", "aten.normal_functional", "aten.exponential",
}  # fmt: skip
# Each element is the same number: of an argument of this name, or this.
FILLS = {
    "aten.full": "fill_value", "aten.full_like": "fill_value", "aten.new_full": "fill_value",
    "aten.scalar_tensor": "s", "aten.zeros": 0, "aten.zeros_like": 0, "aten.new_zeros": 0,
    "aten.fill": "value", "aten.ones": 1, "aten.ones_like": 1, "aten.new_ones": 1,
}  # fmt: skip
# Memory that nobody set: to be written over, and not to be read.
UNSET = {
    "aten.empty", "aten.empty_like", "aten.empty_permuted", "aten.empty_strided", "aten.new_empty",
    "aten.new_empty_strided",
}  # fmt: skip


def reads_shape_alone(name: str, args: Sequence[Any], place: int) -> bool:
    """Does an op not read the values of the argument at a place?"""
    if name == "aten.convolution_backward":
        # The gradient of the input is made without it, and that of the kernel likewise.
        return place in (1, 2) and not args[10][2 - place]
    if name == "aten.bernoulli" and len(args) > 1:
        return place == 0  # the chance is the other one
    return place == 0 and (name in FILLS or name in ("aten.fill", "aten.copy"))


def is_elementwise(call: Call) -> bool:
    """Is an element of the result made of those in the same place?"""
    tagged = torch.Tag.pointwise in call.target.tags
    return (tagged or call.name in UNTAGGED) and not call.is_random and len(call.shapes) == 1


def elementwise(call: Call, claim: Claim) -> bool:
    """A function of elements, with broadcasting."""
    out = call.shapes[0]
    if not is_elementwise(call) or out is None:
        return False
    match claim:
        case Shard():
            return all(lies(x, claim, out) for x in call.tensors)
        case Partial() if not out and all(
            x.rank == 0 and (x.is_total or isinstance(x.claim, Replicate)) for x in call.tensors
        ):
            return claim == Partial()  # a total, of totals
        case Partial():
            return linear(call, claim)
        case _:
            return False


def lies(x: Operand, at: Shard, out: Shape) -> bool:
    """Has an operand, broadcast to the result, its samples where the result has them?"""
    axis = at.dim - (len(out) - x.rank)
    match x.claim:
        case Replicate():
            return axis < 0 or x.shape[axis] == 1
        case Shard(dim, inner):
            same = dim == axis and equal(inner, at.inner)
            return same and equal(x.shape[axis], out[at.dim])
        case _:
            return x.is_total


def linear(call: Call, claim: Partial) -> bool:
    """Sums over samples, added up or scaled by what is shared."""
    tensors, named = call.tensors, call.named
    if call.counts or not tensors:
        return False
    sums = [x for x in tensors if isinstance(x.claim, Partial)]
    if not all(isinstance(x.claim, Partial | Replicate) for x in tensors) or not sums:
        return False
    one = len(sums) == 1 and sums[0].claim == claim
    if call.name in COPIES:
        return one
    if call.name in CASTS:
        kinds = (tensors[0].dtype, named["dtype"] or tensors[0].dtype)
        return one and all(k.is_floating_point or k.is_complex for k in kinds)
    if call.name == "aten.mul":
        return one
    if call.name == "aten.div":
        return one and sums[0] is call.args[0] and named.get("rounding_mode") is None
    if call.name in ("aten.add", "aten.sub") and all(isinstance(v, Operand) for v in call.args[:2]):
        own = all(x.claim in (Partial(), Replicate(zero=True)) for x in tensors)
        return claim == Partial(public=not own)
    return False


def moved(call: Call, claim: Claim) -> bool:
    """Elements in other places."""
    out = call.shapes[0]
    if call.name not in MOVES or out is None or len(call.tensors) != 1:
        return False
    (x,) = call.tensors
    if call.named.get("dtype") is not None:
        return False  # a view of bytes, a sum in another dtype
    if isinstance(claim, Partial) and not call.counts:
        return x.claim == claim
    if not isinstance(claim, Shard):
        return False
    if call.name == "aten.expand":
        return lies(x, claim, out)
    if not isinstance(x.claim, Shard):
        return False
    dim, inner = x.claim.dim, x.claim.inner
    if call.name in VIEWS:
        # The flat index is a number in mixed radix, and the sample a digit of it.
        return equal(
            inner * product(x.shape[dim + 1 :]), claim.inner * product(out[claim.dim + 1 :])
        )
    if not equal(inner, claim.inner) or call.counts:
        return False
    if call.name == "aten.permute":
        return call.named["dims"][claim.dim] % x.rank == dim
    if call.name in ("aten.t", "aten.transpose"):
        pair = (call.named.get("dim0", 0) % x.rank, call.named.get("dim1", 1) % x.rank)
        goes = dict(zip(pair, reversed(pair), strict=True)) if x.rank > 1 else {}
        return goes.get(dim, dim) == claim.dim
    if call.name in ("aten.slice", "aten.select"):
        along = call.named["dim"] % x.rank
        gone = call.name == "aten.select" and along < dim
        return along != dim and claim.dim == dim - gone
    return False


def product(sizes: Shape) -> sympy.Expr:
    return sympy.Mul(*sizes)


def joined(call: Call, claim: Claim) -> bool:
    """Tensors along an axis: samples side by side with samples, or batch after batch."""
    if call.name != "aten.cat" or not isinstance(claim, Shard):
        return False
    return all(
        isinstance(x.claim, Shard)
        and x.claim.dim == claim.dim
        and equal(x.claim.inner, claim.inner)
        for x in call.tensors
    )


def made(call: Call, claim: Claim) -> bool:
    """Constants, which lie in any order, and random numbers, of which each has its own."""
    if call.name in DRAWS:
        layouts = [x.claim for x in call.tensors]
        alone = not layouts or not call.counts
        return isinstance(claim, Shard) and alone and all(at == claim for at in layouts)
    if call.name not in FILLS:
        return False
    fill = FILLS[call.name]
    value = call.named[fill] if isinstance(fill, str) else fill
    number = isinstance(value, int | float | bool | sympy.Basic)
    if isinstance(value, sympy.Basic) and value.has(call.n):
        return claim == Partial() and call.shapes[0] == ()
    match claim:
        case Replicate(zero):
            return number and (not zero or value == 0)
        case Shard():
            return number
        case _:
            return False


RULES = (elementwise, moved, joined, made)
