"""Ops that move elements about.

They are linear, so a sum over samples passes through; and where they only rearrange, they
keep norms. The samples follow their axis; a view follows the digit (see `fxdp.shapes.land`).
"""

from typing import Any

import sympy
import torch

from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import (
    Call,
    Rule,
    Table,
    cut,
    followed,
    keeps_value,
    moved,
    refuse_counts,
    refuse_rounding,
    refuse_samples,
    whole,
)
from fxdp.shapes import land, sample_axes

aten = torch.ops.aten


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


def matrix_triangle(call: Call, x: Any, *_: Any) -> Placement:
    """tril and triu mask the last two axes."""
    return along(call, x, [x.rank - 2, x.rank - 1])


def diagonal(call: Call, x: Any, offset: Any = 0, dim1: int = 0, dim2: int = 1) -> Placement:
    """The diagonal of two axes, as a new last axis."""

    def move(at: Shard) -> Shard:
        if at.dim in (dim1, dim2):
            raise Mixed("it works along the batch axis")
        return Shard(at.dim - (dim1 < at.dim) - (dim2 < at.dim), at.inner)

    return moved(call, x, move)


def windows(call: Call, x: Any, dim: int, size: Any, step: Any) -> Placement:
    """`Tensor.unfold`: windows of an axis, their elements on a new last axis."""
    return along(call, x, dim)


def strided(call: Call, x: Any, size: Any, stride: Any, offset: Any = None) -> Placement:
    """Arbitrary strides: only values without samples can be followed."""
    refuse_samples(x)
    refuse_counts(call, stride)
    return Replicate()


def same(call: Call, x: Any, *_: Any, **__: Any) -> Placement:
    """Triangles of constants and the like, which look at every axis."""
    refuse_samples(x)
    return Replicate()


def overwritten(call: Call, x: Any, source: Any, *_: Any) -> Placement:
    """`copy_`: the shape and dtype of x, the values of source."""
    if isinstance(source.placement, Partial | Iota) and not keeps_value(source.dtype, x.dtype):
        raise Mixed("a total over the batch or a sample's position is rounded", "uses-batch-total")
    return expanded(call, source)


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
    aten.diagonal_scatter.default: diagonal_written,
    aten.copy.default: overwritten,
    aten.slice.Tensor: sliced,
    aten.select.int: selected,
    aten.split.Tensor: parts,
    aten.split_with_sizes.default: parts,
    aten.unbind.int: unbound,
    aten.cumsum.default: accumulated,
    aten.tril.default: matrix_triangle,
    aten.triu.default: matrix_triangle,
    aten.diagonal.default: diagonal,
    aten._fft_r2c.default: along,
    aten._fft_c2r.default: along,
    aten._fft_c2c.default: along,
    aten.unfold.default: windows,
    aten.as_strided.default: strided,
}

RULES: Table = (
    {op: Rule(place, isometry=True, reshapes=place is viewed) for op, place in ISOMETRIC.items()}
    | {op: Rule(place) for op, place in LINEAR.items()}
    | {aten.expand.default: Rule(expanded, repeats=True)}
)
