"""Ops that move elements about.

They are linear, so a sum over samples passes through; and where they only rearrange, they
keep norms. The samples follow their axis; a view follows the digit (see `fxdp.shapes.land`).
"""

from collections.abc import Callable
from typing import Any

import sympy
import torch

from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import (
    Call,
    Rule,
    Table,
    agreed,
    keeps_value,
    refuse_counts,
    refuse_rounding,
    refuse_samples,
)
from fxdp.shapes import expr, is_whole, land, quotient, sample_axes

aten = torch.ops.aten


def moved(call: Call, x: Any, move: Callable[[Shard], Shard]) -> Placement:
    """The placement of x after `move` has said where its batch axis goes."""
    match x.placement:
        case Shard() as at:
            return move(at)
        case Iota():
            raise Mixed("the result depends on a sample's position in the batch")
        case shared_or_sum:
            return shared_or_sum


def followed(call: Call, x: Any, move: Callable[[Shard], Shard]) -> Placement:
    """`moved`, for ops that keep every element, so that a count of samples stays one."""
    if isinstance(x.placement, Iota):
        count = x.placement
        at = move(Shard(count.dim, count.inner))
        if quotient(call.out[0][at.dim], call.n * at.inner) != 1:
            raise Mixed("the result depends on a sample's position in the batch")
        return Iota(at.dim, at.inner, count.step)
    return moved(call, x, move)


def viewed(call: Call, x: Any, *_: Any, **__: Any) -> Placement:
    """A view as another shape."""
    return followed(call, x, lambda at: land(x.shape, call.out[0], at, call.n))


def permuted(call: Call, x: Any, dims: Any) -> Placement:
    """Axes in another order."""
    return followed(call, x, lambda at: Shard(list(dims).index(at.dim), at.inner))


def transposed(call: Call, x: Any, dim0: int, dim1: int) -> Placement:
    """Two axes swapped."""
    swap = {dim0: dim1, dim1: dim0}
    return followed(call, x, lambda at: Shard(swap.get(at.dim, at.dim), at.inner))


def turned(call: Call, x: Any) -> Placement:
    """The transpose of a matrix."""
    return transposed(call, x, 0, 1) if x.rank == 2 else x.placement


def unsqueezed(call: Call, x: Any, dim: int) -> Placement:
    """A new axis of size 1."""
    return followed(call, x, lambda at: Shard(at.dim + (dim <= at.dim), at.inner))


def expanded(call: Call, x: Any, *_: Any, **__: Any) -> Placement:
    """Axes of size 1 repeated; a value without samples may be given to all N of them."""
    batch = sample_axes(call.out[0], call.n)
    if isinstance(x.placement, Partial):
        return spread(call, x, batch) if batch else x.placement
    if isinstance(x.placement, Replicate) and batch:
        return whole(call, Shard(batch[0]))
    return followed(call, x, lambda at: Shard(at.dim + call.rank - x.rank, at.inner))


def spread(call: Call, x: Any, batch: list[int]) -> Placement:
    """A 0-d total over the batch that is given back to every sample."""
    if x.rank > 0 or not call.backward or x.placement.public:
        raise Mixed("a total over the batch is given back to its samples", "uses-batch-total")
    return whole(call, Shard(batch[0]))


def whole(call: Call, at: Shard) -> Shard:
    """`at`, if the result holds all samples there and nowhere else."""
    if not is_whole(call.out[0], at, call.n):
        raise Mixed("the result pairs samples with samples")
    return at


def overwritten(call: Call, x: Any, source: Any, *_: Any) -> Placement:
    """`copy_`: the shape and dtype of x, the values of source."""
    if isinstance(source.placement, Partial | Iota) and not keeps_value(source.dtype, x.dtype):
        raise Mixed("a total over the batch or a sample's position is rounded", "uses-batch-total")
    return expanded(call, source)


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


def cut(call: Call, x: Any, at: Shard, start: Any, step: Any, length: Any) -> Shard:
    """A slice of the batch axis: allowed where it takes whole batches."""
    unit = call.n * at.inner
    if step == 1 and quotient(expr(start), unit) is not None and quotient(length, unit) is not None:
        return at
    raise Mixed("it takes some samples of the batch and leaves others")


def sliced(call: Call, x: Any, dim: int = 0, start: Any = 0, end: Any = None, step: Any = 1):
    """A slice of one axis; one of the whole axis changes nothing."""
    if call.out[0] == x.shape and step == 1:
        return x.placement

    def move(at: Shard) -> Shard:
        if at.dim != dim:
            return at
        return cut(call, x, at, start or 0, step, call.out[0][dim])

    if not (isinstance(x.placement, Shard) and x.placement.dim == dim):
        refuse_counts(call, start)
    return moved(call, x, move)


def selected(call: Call, x: Any, dim: int, index: Any) -> Placement:
    """One element of an axis."""

    def move(at: Shard) -> Shard:
        if at.dim == dim:
            raise Mixed("it picks one sample of the batch")
        return Shard(at.dim - (dim < at.dim), at.inner)

    return moved(call, x, move)


def squeezed(call: Call, x: Any, dims: Any = None) -> Placement:
    """Axes of size 1 gone."""
    named = range(x.rank) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = [d for d in named if x.shape[d] == 1]
    return followed(call, x, lambda at: Shard(at.dim - sum(d < at.dim for d in gone), at.inner))


def parts(call: Call, x: Any, sizes: Any, dim: int = 0) -> tuple[Placement, ...]:
    """An axis cut in pieces."""
    start: sympy.Expr = sympy.Integer(0)
    placements: list[Placement] = []
    for shape in call.out:
        here = start

        def move(at: Shard, shape: Any = shape, here: Any = here) -> Shard:
            return at if at.dim != dim else cut(call, x, at, here, 1, shape[dim])

        placements.append(moved(call, x, move))
        start = start + shape[dim]
    return tuple(placements)


def unbound(call: Call, x: Any, dim: int = 0) -> tuple[Placement, ...]:
    """Every element of an axis, one by one."""
    return tuple(selected(call, x, dim, i) for i, _ in enumerate(call.out))


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


def along(call: Call, x: Any, dims: Any, *_: Any, **__: Any) -> Placement:
    """An op that mixes the named axes and keeps the shape: flip, roll, cumsum, softmax."""
    dims = [dims] if isinstance(dims, int) else list(dims) or list(range(x.rank))

    def move(at: Shard) -> Shard:
        if at.dim in dims:
            raise Mixed("it works along the batch axis")
        return at

    return moved(call, x, move)


def accumulated(call: Call, x: Any, dim: Any, *, dtype: torch.dtype | None = None) -> Placement:
    """cumsum, which is linear as long as it does not round."""
    refuse_rounding(x, dtype)
    return along(call, x, dim)


def rolled(call: Call, x: Any, shifts: Any, dims: Any = ()) -> Placement:
    """A roll names its axes last; without axes it rolls the flattened tensor."""
    return along(call, x, dims or list(range(x.rank)))


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


def matrix_triangle(call: Call, x: Any, *_: Any) -> Placement:
    """tril and triu mask the last two axes."""
    return along(call, x, [x.rank - 2, x.rank - 1])


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


def diagonal(call: Call, x: Any, offset: Any = 0, dim1: int = 0, dim2: int = 1) -> Placement:
    """The diagonal of two axes, as a new last axis."""

    def move(at: Shard) -> Shard:
        if at.dim in (dim1, dim2):
            raise Mixed("it works along the batch axis")
        return Shard(at.dim - (dim1 < at.dim) - (dim2 < at.dim), at.inner)

    return moved(call, x, move)


def diagonal_written(
    call: Call, x: Any, part: Any, offset: Any = 0, dim1: int = 0, dim2: int = 1
) -> Placement:
    """part written into the diagonal of x."""
    for one, other in ((x, part), (part, x)):
        if isinstance(one.placement, Partial):
            if other.placement in (one.placement, Replicate(zero=True)):
                return one.placement
            raise Mixed("a total over the batch is written into other values", "uses-batch-total")
    if isinstance(x.placement, Replicate) and isinstance(part.placement, Replicate):
        return Replicate()
    if not isinstance(x.placement, Shard) or part.placement != diagonal(
        call, x, offset, dim1, dim2
    ):
        raise Mixed("the operands hold their samples on different axes")
    return x.placement


def windows(call: Call, x: Any, dim: int, size: Any, step: Any) -> Placement:
    """`Tensor.unfold`: windows of an axis, their elements on a new last axis."""
    return along(call, x, dim)


def windows_back(call: Call, grad: Any, sizes: Any, dim: int, size: Any, step: Any) -> Placement:
    """The gradient of `Tensor.unfold`."""

    def move(at: Shard) -> Shard:
        if at.dim in (dim, grad.rank - 1):
            raise Mixed("it works along the batch axis")
        return whole(call, at)

    return moved(call, grad, move)


def strided(call: Call, x: Any, size: Any, stride: Any, offset: Any = None) -> Placement:
    """Arbitrary strides: only values without samples can be followed."""
    refuse_samples(x)
    refuse_counts(call, stride)
    return Replicate()


def same(call: Call, x: Any, *_: Any, **__: Any) -> Placement:
    """Triangles of constants and the like, which look at every axis."""
    refuse_samples(x)
    return Replicate()


ISOMETRIC = {
    **{op: viewed for op in (aten.view.default, aten._unsafe_view.default, aten.reshape.default)},
    aten._reshape_alias.default: viewed,
    aten.permute.default: permuted,
    aten.transpose.int: transposed,
    aten.t.default: turned,
    aten.unsqueeze.default: unsqueezed,
    aten.squeeze.default: squeezed,
    aten.squeeze.dim: squeezed,
    aten.squeeze.dims: squeezed,
    aten.flip.default: along,
    aten.roll.default: rolled,
}

LINEAR = {
    aten.copy.default: overwritten,
    aten.repeat.default: repeated,
    aten.slice.Tensor: sliced,
    aten.select.int: selected,
    aten.split.Tensor: parts,
    aten.split_with_sizes.default: parts,
    aten.unbind.int: unbound,
    aten.cat.default: joined,
    aten.stack.default: stacked,
    aten.constant_pad_nd.default: padded,
    aten.cumsum.default: accumulated,
    aten.tril.default: matrix_triangle,
    aten.triu.default: matrix_triangle,
    aten.select_backward.default: select_grown,
    aten.slice_backward.default: slice_grown,
    aten.slice_scatter.default: written,
    aten.select_scatter.default: written,
    aten.diagonal.default: diagonal,
    aten.diagonal_scatter.default: diagonal_written,
    aten._fft_r2c.default: along,
    aten._fft_c2r.default: along,
    aten._fft_c2c.default: along,
    aten.unfold.default: windows,
    aten.unfold_backward.default: windows_back,
    aten.as_strided.default: strided,
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
}

RULES: Table = (
    {op: Rule(place, isometry=True, reshapes=place is viewed) for op, place in ISOMETRIC.items()}
    | {op: Rule(place) for op, place in LINEAR.items()}
    | {aten.expand.default: Rule(expanded, repeats=True)}
)
