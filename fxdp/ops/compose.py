"""Ops that put tensors into larger ones: joining, padding, writing, and the gradients of views.

All are linear in what they place, if the rest is zero; the samples must fill their axis whole.
"""

from collections.abc import Callable
from typing import Any

import torch

from fxdp.forms.each import folded
from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, agreed, cut, moved, refuse_counts, refuse_samples, whole
from fxdp.shapes import sample_axes
from fxdp.torch_internals import OpOverload

aten = torch.ops.aten


def repeated(call: Call, x: Any, repeats: Any) -> Placement:
    """Copies along axes: copies of the batch stand one after the other."""
    if isinstance(x.placement, Replicate) and (batch := sample_axes(call.out[0], call.n)):
        at = Shard(batch[0])
        if x.rank and (lead := at.dim - (call.rank - x.rank)) >= 0:
            at = Shard(at.dim, x.shape[lead])
        return whole(call, at)
    if isinstance(x.placement, Partial | Iota):
        raise Mixed("a total over the batch or a sample's position is repeated")
    return moved(call, x, lambda at: whole(call, Shard(at.dim + call.rank - x.rank, at.inner)))


def joined(call: Call, tensors: Any, dim: int = 0) -> Placement:
    """Tensors one after the other along an axis."""
    # An empty 1-d tensor may be joined with anything (a cache that holds nothing yet).
    tensors = [t for t in tensors if t.shape != (0,)] or list(tensors)
    sums = [isinstance(t.placement, Partial) for t in tensors]
    if any(sums):
        others = [t for t, is_sum in zip(tensors, sums, strict=True) if not is_sum]
        if all(t.placement == Replicate(zero=True) for t in others):
            return Partial(public=any(t.placement == Partial(public=True) for t in tensors))
        raise Mixed("a total over the batch is joined to other values", "uses-batch-total")
    at = agreed(call, *tensors)
    if at is None:
        zero = all(t.placement == Replicate(zero=True) for t in tensors)
        return Replicate(zero=zero)
    if at.dim == dim and not all(isinstance(t.placement, Shard) for t in tensors):
        raise Mixed("something is joined to the samples along the batch axis")
    return whole(call, at)


def stacked(call: Call, tensors: Any, dim: int = 0) -> Placement:
    """Tensors along a new axis."""
    found = {t.placement for t in tensors}
    if len(found) != 1:
        found = {p for p in found if not isinstance(p, Replicate)}
    if len(found) != 1:
        raise Mixed("the operands hold their samples on different axes")
    at = found.pop()
    if isinstance(at, Partial) and not all(
        isinstance(t.placement, Partial) or t.placement == Replicate(zero=True) for t in tensors
    ):
        raise Mixed("a total over the batch is joined to other values", "uses-batch-total")
    if isinstance(at, Shard):
        return Shard(at.dim + (dim <= at.dim), at.inner)
    if isinstance(at, Iota):
        raise Mixed("the positions of the samples in the batch are rearranged")
    return at


def padded(call: Call, x: Any, pad: Any, value: Any = 0) -> Placement:
    """Constant padding of the last axes."""
    first = x.rank - len(pad) // 2
    touched = {
        x.rank - 1 - i for i in range(len(pad) // 2) if (pad[2 * i], pad[2 * i + 1]) != (0, 0)
    }
    if isinstance(x.placement, Partial) and value != 0:
        raise Mixed("a total over the batch is padded with a constant", "uses-batch-total")
    if isinstance(x.placement, Replicate):
        return Replicate(zero=x.placement.zero and value == 0)

    def move(at: Shard) -> Shard:
        if at.dim >= first and at.dim in touched:
            raise Mixed("it pads the batch axis")
        return at

    return moved(call, x, move)


def leading(count: int, operands: int = 1) -> Callable[..., Placement]:
    """Ops that are linear in their first operand and work on its last `count` axes.

    The axes before those stay where they are, counted from the left.
    """

    def place(call: Call, x: Any, *others: Any, **__: Any) -> Placement:
        tensors = [x, *others[: operands - 1]]
        if isinstance(x.placement, Partial):
            refuse_samples(*others)
            return x.placement
        if any(t.placement != x.placement for t in tensors):
            raise Mixed("the operands hold their samples on different axes")

        def move(at: Shard) -> Shard:
            if at.dim >= x.rank - count:
                raise Mixed("it works along the batch axis")
            return at

        return moved(call, x, move)

    return place


def select_grown(call: Call, grad: Any, sizes: Any, dim: int, index: Any) -> Placement:
    """The gradient of `select`: zeros, with grad at one place of the axis `dim`."""
    return moved(call, grad, lambda at: whole(call, Shard(at.dim + (dim <= at.dim), at.inner)))


def slice_grown(call: Call, grad: Any, sizes: Any, dim: int, start: Any, end: Any, step: Any):
    """The gradient of `slice`: zeros, with grad in a part of the axis `dim`."""

    def move(at: Shard) -> Shard:
        if at.dim != dim:
            return at
        return cut(call, grad, at, start, step, grad.shape[dim])

    if not (isinstance(grad.placement, Shard) and grad.placement.dim == dim):
        refuse_counts(call, start)
    return moved(call, grad, move)


def written(call: Call, x: Any, part: Any, dim: int = 0, *where: Any) -> Placement:
    """slice_scatter and select_scatter: part written into x along `dim`."""
    refuse_counts(call, *where[:1])
    lower = part.rank < x.rank
    for one, other in ((x, part), (part, x)):
        if isinstance(one.placement, Partial):
            if other.placement in (one.placement, Replicate(zero=True)):
                return one.placement
            raise Mixed("a total over the batch is written into other values", "uses-batch-total")
    grown = part.placement
    if isinstance(grown, Shard) and lower:
        grown = Shard(grown.dim + (dim <= grown.dim), grown.inner)
    if isinstance(x.placement, Replicate) and isinstance(grown, Replicate):
        return Replicate()
    if x.placement != grown or not isinstance(grown, Shard):
        raise Mixed("the operands hold their samples on different axes")
    if grown.dim == dim and call.out[0] != part.shape:
        raise Mixed("it writes to some samples of the batch and not to others")
    return grown


def windows_back(call: Call, grad: Any, sizes: Any, dim: int, size: Any, step: Any) -> Placement:
    """The gradient of `Tensor.unfold`."""

    def move(at: Shard) -> Shard:
        if at.dim in (dim, grad.rank - 1):
            raise Mixed("it works along the batch axis")
        return whole(call, at)

    return moved(call, grad, move)


RULES: Table = {
    op: Rule(place)
    for op, place in {
        aten.repeat.default: repeated,
        aten.cat.default: joined,
        aten.stack.default: stacked,
        aten.constant_pad_nd.default: padded,
        aten.select_backward.default: select_grown,
        aten.slice_backward.default: slice_grown,
        aten.slice_scatter.default: written,
        aten.select_scatter.default: written,
        aten.unfold_backward.default: windows_back,
        aten.reflection_pad1d.default: leading(1),
        aten.reflection_pad2d.default: leading(2),
        aten.reflection_pad3d.default: leading(3),
        aten.replication_pad1d.default: leading(1),
        aten.replication_pad2d.default: leading(2),
        aten.replication_pad3d.default: leading(3),
        aten.reflection_pad1d_backward.default: leading(1, 2),
        aten.reflection_pad2d_backward.default: leading(2, 2),
        aten.reflection_pad3d_backward.default: leading(3, 2),
        aten.replication_pad1d_backward.default: leading(1, 2),
        aten.replication_pad2d_backward.default: leading(2, 2),
        aten.replication_pad3d_backward.default: leading(3, 2),
        aten.im2col.default: leading(3),
        aten.col2im.default: leading(2),
        aten.pixel_shuffle.default: leading(3),
        aten.pixel_unshuffle.default: leading(3),
    }.items()
}

PADS = {
    getattr(aten, f"{kind}_pad{count}d{back}").default: count
    for kind in ("reflection", "replication")
    for count in (1, 2, 3)
    for back in ("", "_backward")
}
EACH: dict[OpOverload, Callable[..., Any]] = {
    op: folded(op, own)
    for op, own in (PADS | {aten.im2col.default: 2, aten.col2im.default: 1}).items()
}
