"""Lookups and scatters by computed positions.

Letters: a table is shared by all samples, and each of them may look up its own rows in it
(an embedding); the gradient adds rows up at those places, a sum over samples. Where the
samples themselves are indexed, the index must count them, so that each finds its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxdp.forms.batch import Batch
from fxdp.forms.reduce import Reduce
from fxdp.forms.scatter import Scatter
from fxdp.placement import Iota, Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, SumRule, Table, Value, is_shared, refuse_samples

aten = torch.ops.aten
prims = torch.ops.prims

ELSEWHERE = "it looks up samples of the batch by computed positions"


@dataclass(frozen=True)
class Lookup:
    """What `x[indices]` does to the axes of x.

    Attributes:
        indexed: the axes of x that an index replaces.
        first: where the axes of the indices stand in the result.
        width: how many they are.
    """

    indexed: tuple[int, ...]
    first: int
    width: int

    def follow(self, dim: int) -> int:
        """The axis of the result for the axis `dim` of x, which is not indexed."""
        before = dim - sum(d < dim for d in self.indexed)
        return before + (self.width if before >= self.first else 0)


def lookup(indices: Sequence[Any]) -> Lookup:
    """Where the axes go: in the place of adjacent indices, in front of all if they are apart."""
    named = [(d, i) for d, i in enumerate(indices) if isinstance(i, Value)]
    if any(i.dtype in (torch.bool, torch.uint8) for _, i in named):
        holds = any(isinstance(i.placement, Shard) for _, i in named)
        why = "how many elements a mask selects depends on the samples"
        raise Mixed(why, "mixes-samples" if holds else "no-rule")
    dims = tuple(d for d, _ in named)
    adjacent = dims == tuple(range(dims[0], dims[0] + len(dims)))
    width = max(i.rank for _, i in named)
    return Lookup(dims, dims[0] if adjacent else 0, width)


def samples_of(look: Lookup, indices: Sequence[Any]) -> Shard | None:
    """Where the indices hold samples, as an axis of the result."""
    places = {
        Shard(i.placement.dim + look.width - i.rank + look.first, i.placement.inner)
        for i in indices
        if isinstance(i, Value) and isinstance(i.placement, Shard | Iota)
    }
    if any(isinstance(i, Value) and isinstance(i.placement, Partial) for i in indices):
        raise Mixed("a total over the batch is used as an index", "uses-batch-total")
    if len(places) > 1:
        raise Mixed("the indices hold their samples on different axes")
    return places.pop() if places else None


def found_at(call: Call, x: Any, indices: Sequence[Any]) -> Shard | None:
    """The samples' axis in `x[indices]`; None where it holds none."""
    look = lookup(indices)
    at = samples_of(look, indices)
    match x.placement:
        case Replicate():
            if any(isinstance(i, Value) and isinstance(i.placement, Iota) for i in indices):
                raise Mixed("the result depends on a sample's position in the batch")
            return at
        case Shard(dim, inner) if dim in look.indexed:
            own = indices[dim]
            others = [i for d, i in enumerate(indices) if d != dim and isinstance(i, Value)]
            if any(isinstance(i.placement, Iota) for i in others):
                raise Mixed("the result depends on a sample's position in the batch")
            own_row = isinstance(own.placement, Iota) and own.placement.step == 1
            if own_row and inner == 1 and x.shape[dim] == call.n:
                return at
            raise Mixed(ELSEWHERE)
        case Shard(dim, inner) if at is None:
            return Shard(look.follow(dim), inner)
        case _:
            raise Mixed(ELSEWHERE)


def indexed(call: Call, x: Any, indices: Any) -> Placement:
    """x[indices]"""
    if isinstance(x.placement, Partial):
        refuse_samples(*indices)
        return x.placement
    return found_at(call, x, indices) or Replicate()


def found(call: Call, x: Any) -> Placement:
    """Where elements are that are not zero: one after the other, whoever's they are."""
    if is_shared(x):
        return Replicate()
    raise Mixed("which rows are taken together, and how many, depends on all samples")


def put(call: Call, x: Any, indices: Any, values: Any, accumulate: bool = False) -> Placement:
    """x with values written or added at x[indices]."""
    sums = [isinstance(v.placement, Partial) for v in (x, values)]
    if any(sums):
        refuse_samples(*indices)
        other = values if sums[0] else x
        if all(sums) or other.placement == Replicate(zero=True):
            return Partial(public=Partial(public=True) in (x.placement, values.placement))
        raise Mixed("a total over the batch is written into other values", "uses-batch-total")
    at = found_at(call, x, indices)
    look = lookup(indices)
    rank = x.rank - len(look.indexed) + look.width
    match values.placement:
        case Replicate():
            here = None
        case Shard(dim, inner):
            here = Shard(dim + rank - values.rank, inner)
        case _:
            raise Mixed("the result depends on a sample's position in the batch")
    if here is not None and here != at:
        raise Mixed("the operands hold their samples on different axes")
    if isinstance(x.placement, Shard):
        return x.placement
    if at is None:
        return Replicate()
    if accumulate and x.placement == Replicate(zero=True):
        return Partial()
    raise Mixed("the samples write to the same place one after the other")


def put_form(x: torch.Tensor, indices: Any, values: Any, accumulate: bool = True) -> Any:
    """Rows added up at computed places, in a table for each sample."""
    named = [(d, i) for d, i in enumerate(indices) if i is not None]
    n = next(i for _, i in named if isinstance(i, Batch)).n
    width = max(i.rank if isinstance(i, Batch) else i.dim() for _, i in named)
    dims = [d for d, _ in named]
    rest = [d for d in range(x.dim()) if d not in dims]
    first = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0

    def own(i: Any) -> torch.Tensor:
        """[N, *width]: the index of each sample, broadcast to the rank of all of them."""
        local = i.kept() if isinstance(i, Batch) else i.unsqueeze(0)
        return local.reshape(local.shape[0], *[1] * (width + 1 - local.dim()), *local.shape[1:])

    spots = torch.broadcast_tensors(*(own(i) for _, i in named))
    sizes = [x.shape[d] for d in rest]
    local = values.kept() if isinstance(values, Batch) else values.unsqueeze(0)
    shape = [*sizes[:first], *spots[0].shape[1:], *sizes[first:]]
    local = local.reshape(local.shape[0], *[1] * (len(shape) + 1 - local.dim()), *local.shape[1:])
    local = local.expand(n, *shape).movedim(
        list(range(first + 1, first + 1 + width)), list(range(1, 1 + width))
    )
    # Several indices are one index into the axes that they replace, taken together.
    flat = torch.zeros_like(spots[0])
    for spot, d in zip(spots, dims, strict=True):
        flat = flat * x.shape[d] + torch.where(spot < 0, spot + x.shape[d], spot)
    rows = math.prod(x.shape[d] for d in dims)
    flat = flat.flatten(1)
    table = Scatter(flat, local.reshape(n, flat.shape[1], math.prod(sizes)), rows)
    if dims == [0] and x.dim() == 2:
        return table
    each = table.per_sample().reshape(n, *(x.shape[d] for d in dims), *sizes)
    return Reduce(each.permute(0, *(1 + (dims + rest).index(d) for d in range(x.dim()))))


def embedded(call: Call, weight: Any, ids: Any, *_: Any) -> Placement:
    """Rows of a table."""
    return indexed(call, weight, [ids])


def embedded_back(
    call: Call, grad: Any, ids: Any, rows: Any, padding: Any, by_frequency: bool
) -> Placement:
    """Rows of gradients, added up at their ids."""
    if by_frequency and not is_shared(ids):
        raise Mixed("scale_grad_by_freq divides by how often the whole batch holds an id")
    match grad.placement, ids.placement:
        case Shard() as at, Shard() as other if at == other:
            return Partial()
        case (Replicate() | Partial()) as shared, Replicate():
            return shared if isinstance(shared, Partial) else Replicate()
        case _:
            raise Mixed("the operands hold their samples on different axes")


def embedding_form(grad: Any, ids: Any, rows: int, padding: int, by_frequency: bool) -> Scatter:
    """The gradient of an embedding, which the row at `padding` takes no part in."""
    ids, grad = ids.samples_first().flatten(1), grad.samples_first().flatten(1, -2)
    if padding >= 0:
        grad = grad.masked_fill((ids == padding).unsqueeze(-1), 0)
    return Scatter(ids, grad, rows)


def renormed(call: Call, weight: Any, ids: Any, *_: Any) -> Placement:
    """max_norm: the rows that are looked up are scaled down in the table."""
    if is_shared(weight, ids):
        return Replicate()
    raise Mixed("the rows that the batch looks up are rewritten, without noise", "writes-samples")


def gathered(call: Call, x: Any, dim: int, index: Any, *_: Any, **__: Any) -> Placement:
    """out[i][j] = x[i][index[i][j]]"""
    match x.placement, index.placement:
        case Partial(), Replicate():
            return x.placement
        case Replicate(), Replicate():
            return Replicate()
        case Replicate(), Shard(d) as at if d == dim:
            return at
        case Shard(d) as at, Shard() as other if at == other and d != dim:
            return at
        case _:
            raise Mixed(ELSEWHERE)


def scattered(call: Call, x: Any, dim: int, index: Any, source: Any, *_: Any, **__: Any):
    """x with source written at index along dim."""
    places = [v.placement for v in (x, index, source) if isinstance(v, Value)]
    if is_shared(x, index, source):
        return Replicate()
    if any(isinstance(p, Partial) for p in places):
        writes_number = not isinstance(source, Value) and source != 0
        if (
            isinstance(index.placement, Replicate)
            and not writes_number
            and all(p in (Partial(), Replicate(zero=True)) for p in (places[0], *places[2:]))
        ):
            return Partial()
        raise Mixed("a total over the batch is written into other values", "uses-batch-total")
    at = places[0]
    if isinstance(at, Shard) and at.dim != dim and all(p == at for p in places):
        return at
    raise Mixed(ELSEWHERE)


def scatter_added(call: Call, x: Any, dim: int, index: Any, source: Any) -> Placement:
    """A scatter that adds: into a table of zeros it is a sum over samples."""
    match x.placement, index.placement, source.placement:
        case Replicate(zero=True), Shard(d) as at, Shard() as other if at == other and d == dim:
            return Partial()
        case _:
            return scattered(call, x, dim, index, source)


def scatter_form(x: torch.Tensor, dim: int, index: Any, source: Any) -> Reduce:
    """Each sample's scatter, into zeros of its own."""
    index, source = index.kept(), source.kept()
    own = x.new_zeros((index.shape[0], *x.shape))
    return Reduce(own.scatter_add(dim + 1, index, source))


def index_added(call: Call, x: Any, dim: int, index: Any, source: Any, **_: Any) -> Placement:
    """Slices of source added to those of x that index names."""
    match x.placement, index.placement, source.placement:
        case Replicate(), Replicate(), Replicate():
            return Replicate()
        case Shard(d) as at, Replicate(), Shard() as other if at == other and d != dim:
            return at
        case Replicate(zero=True), Shard(0, inner), Shard(d, other) if d == dim and inner == other:
            return Partial()
        case ((Partial() | Replicate(zero=True)), Replicate(), Partial()):
            return Partial(public=Partial(public=True) in (x.placement, source.placement))
        case _:
            raise Mixed(ELSEWHERE)


def index_added_form(x: Any, dim: int, index: Any, source: Any, **kwargs: Any) -> Reduce:
    """Each sample's slices, added into zeros of its own."""
    own = x.new_zeros((x.shape[dim], *x.shape[:dim], *x.shape[dim + 1 :]))
    ids, rows = index.kept(), source.kept().movedim(dim + 1, 1)
    table = own.new_zeros((ids.shape[0], *own.shape))
    spots = ids.reshape(*ids.shape, *[1] * (rows.dim() - 2)).expand_as(rows)
    return Reduce(table.scatter_add(1, spots, rows * kwargs.get("alpha", 1)).movedim(1, dim + 1))


def index_selected(call: Call, x: Any, dim: int, index: Any) -> Placement:
    """Slices of x that a vector of positions names."""
    return indexed(call, x, [*[None] * dim, index])


def bucketed(call: Call, x: Any, boundaries: Any, **_: Any) -> Placement:
    """The bucket of each element among shared boundaries."""
    refuse_samples(boundaries)
    if isinstance(x.placement, Replicate):
        return Replicate()
    if isinstance(x.placement, Shard):
        return x.placement
    raise Mixed("a total over the batch is used to compute something else", "uses-batch-total")


def searched(call: Call, boundaries: Any, x: Any, *, sorter: Any = None, **_: Any) -> Placement:
    """The place of each element among boundaries, which are shared or the sample's own."""
    if is_shared(boundaries, sorter) and (boundaries.rank == 1 or is_shared(x)):
        if not isinstance(x, Value):
            return Replicate()
        return bucketed(call, x, boundaries)
    places = {v.placement for v in (boundaries, x, sorter) if isinstance(v, Value)}
    at = places.pop()
    if places or not isinstance(at, Shard) or at.dim >= boundaries.rank - 1:
        raise Mixed(ELSEWHERE)
    return at


def scatter_reduced(
    call: Call, x: Any, dim: int, index: Any, source: Any, *_: Any, **__: Any
) -> Placement:
    """A scatter that takes maxima, products, means: of a sample's own values."""
    if is_shared(x, index, source):
        return Replicate()
    at = x.placement
    same = at == index.placement == source.placement
    if isinstance(at, Shard) and same and at.dim != dim:
        return at
    raise Mixed(ELSEWHERE)


RULES: Table = {
    aten.index.Tensor: Rule(indexed),
    aten._unsafe_index.Tensor: Rule(indexed),
    aten.index_select.default: Rule(index_selected),
    aten.nonzero.default: Rule(found),
    aten.embedding.default: Rule(embedded),
    aten.embedding_dense_backward.default: SumRule(embedded_back, form=embedding_form),
    aten.embedding_renorm.default: Rule(renormed),
    aten.gather.default: Rule(gathered),
    aten.scatter.src: Rule(scattered),
    aten.scatter.value: Rule(scattered),
    aten.scatter_add.default: SumRule(scatter_added, form=scatter_form),
    aten.index_put.default: SumRule(put, form=put_form),
    aten._unsafe_index_put.default: SumRule(put, form=put_form),
    aten.index_add.default: SumRule(index_added, form=index_added_form),
    aten.bucketize.Tensor: Rule(bucketed),
    aten.searchsorted.Tensor: Rule(searched),
    aten.scatter_reduce.two: Rule(scatter_reduced),
}
