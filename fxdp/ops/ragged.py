"""Where rows meet the samples that they belong to, or other rows of the same sample.

A tensor says whose a row is (`Owner`), which row of the same sample it stands for (`Pointer`), or
where a sample's rows begin (`Starts`). To pick by it gives each row what its own sample has; to add
by it gives each sample what its own rows have. Whoever made the tensor, it was looked at before the
step (`fxdp.capture.segments`).

Letters: n samples, r rows, e rows that point to rows.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import sympy
import torch

from fxdp.forms.batch import wide
from fxdp.forms.reduce import Reduce
from fxdp.forms.scatter import Scatter
from fxdp.forms.segmented import Segmented
from fxdp.placement import (
    Mixed,
    Owner,
    Partial,
    Placement,
    Pointer,
    Replicate,
    Segment,
    Shard,
    Starts,
)
from fxdp.rules import Call, Placements, Rule, Table, Value, refuse_samples
from fxdp.torch_internals import OpOverload

aten = torch.ops.aten
MAX, MEAN = 2, 1
OTHERS = "whose rows are whose, in the whole batch, is used as a value"
INTEGERS = (None, torch.int64)


def says(x: Any) -> bool:
    """Does an operand say whose rows are whose?"""
    return isinstance(x, Value) and isinstance(x.placement, Owner | Pointer | Starts)


def target(call: Call, by: Owner | Pointer, dim: int) -> Placement:
    """What an index is one into: a tensor whose axis `dim` holds the samples, or rows."""
    return Shard(dim) if isinstance(by, Owner) else Segment(dim, by.to)


def is_long(call: Call, x: Value, by: Owner | Pointer, dim: int) -> bool:
    """Is the axis `dim` of x what an index is one into, and nothing more?"""
    wanted: sympy.Expr = call.n if isinstance(by, Owner) else by.to
    return x.placement == target(call, by, dim) and x.shape[dim] == wanted


def pick(call: Call, x: Value, dim: int, by: Placement) -> Placement:
    """x at places of its axis `dim`: for each row what its own sample, or a row of that, has."""
    match by, x.placement:
        case ((Owner() | Pointer()), _) if is_long(call, x, by, dim):
            return Segment(dim, by.rows)
        case Pointer(), Owner(d, rows) if (d, rows) == (dim, by.to):
            return Owner(dim, by.rows)
        case _:
            raise Mixed(OTHERS)


def add(call: Call, x: Value, dim: int, by: Placement, source: Any, axis: int) -> Placement:
    """Rows added to x at places of its axis `dim`: to each sample, or row, those of its own.

    Args:
        axis: the axis of the source that the places are of.
    """
    if not isinstance(by, Owner | Pointer) or not is_long(call, x, by, dim):
        raise Mixed(OTHERS)
    if isinstance(source, Value):
        match source.placement:
            case Segment(d, rows, inner) if (d, rows, inner) == (axis, by.rows, 1):
                return x.placement
            case Replicate():
                return x.placement
            case _:
                raise Mixed("rows are added at the places of others")
    return x.placement


def one_index(indices: Any) -> tuple[int, Value] | None:
    """The axis that one index [R] is for, and that; None where there are others."""
    named = [(d, i) for d, i in enumerate(indices) if isinstance(i, Value)]
    if not any(says(i) for _, i in named):
        return None
    if len(named) > 1 or named[0][1].rank != 1:
        raise Mixed(OTHERS)
    return named[0]


def indexed(call: Call, x: Any, indices: Any) -> Placements | None:
    """x[..., index]"""
    if (found := one_index(indices)) is None:
        return None
    dim, index = found
    return pick(call, x, dim, index.placement)


def selected(call: Call, x: Any, dim: int, index: Any) -> Placements | None:
    """index_select"""
    return indexed(call, x, [*[None] * dim, index])


def gathered(call: Call, x: Any, dim: int, index: Any, **_: Any) -> Placements | None:
    """out[r, j] = x[index[r, j], j], where the index is the same for all j, or of one sample."""
    if not says(index):
        return None
    if getattr(index.placement, "dim", None) != dim:
        raise Mixed(OTHERS)
    return pick(call, x, dim, index.placement)


def put(
    call: Call, x: Any, indices: Any, values: Any, accumulate: bool = False
) -> Placements | None:
    """x with values added at x[..., index]."""
    if (found := one_index(indices)) is None:
        return None
    if not accumulate:
        raise Mixed("rows of a sample are written to one place, one after the other")
    dim, index = found
    return add(call, x, dim, index.placement, values, dim - (x.rank - values.rank))


def index_added(
    call: Call, x: Any, dim: int, index: Any, source: Any, **_: Any
) -> Placements | None:
    """Slices of the source added to those of x that the index names."""
    return add(call, x, dim, index.placement, source, dim) if says(index) else None


def scattered(
    call: Call, x: Any, dim: int, index: Any, source: Any, *_: Any, **__: Any
) -> Placements | None:
    """x[index[r, j], j] is added, or reduced otherwise, with source[r, j]."""
    if not says(index):
        return None
    if getattr(index.placement, "dim", None) != dim:
        raise Mixed(OTHERS)
    return add(call, x, dim, index.placement, source, dim)


def carried(rule: Rule, call: Call, x: Any, *rest: Any, **named: Any) -> Placements | None:
    """What says whose rows are whose, moved about and repeated."""
    if not says(x):
        return None
    at = x.placement
    if isinstance(at, Starts) or named.get("dtype") not in INTEGERS:
        raise Mixed(OTHERS)
    there = replace(x, placement=Shard(at.dim))
    placed = rule.place(replace(call, n=at.rows), there, *rest, **named)

    def still(to: Any) -> Placement:
        if isinstance(to, Shard) and to.inner == 1:
            return replace(at, dim=to.dim)
        raise Mixed(OTHERS)

    return tuple(map(still, placed)) if isinstance(placed, tuple) else still(placed)


def same_rows(ids: Value, offsets: Value, weights: Any) -> Segment:
    """The rows of the ids, which are those that the offsets cut."""
    at = ids.placement
    if not (isinstance(at, Segment) and at.dim == 0 and at.inner == 1 and ids.rank == 1):
        raise Mixed("the ids of a bag may come from several samples")
    if offsets.placement != Starts(at.rows):
        raise Mixed("the offsets of the bags are not those of the samples")
    if isinstance(weights, Value) and weights.placement != at:
        raise Mixed("the ids and their weights are of different rows")
    return at


def bagged(
    call: Call, table: Any, ids: Any, offsets: Any, by_frequency: bool, mode: int, sparse: bool,
    weights: Any, with_end: bool, padding: int,
) -> Placements | None:  # fmt: skip
    """The bags; then the bag of each id, the size of each bag, and the ids of the maxima."""
    if not says(offsets):
        return None
    refuse_samples(table)
    if with_end or by_frequency:
        raise Mixed("the offsets of the bags are not those of the samples")
    rows = same_rows(ids, offsets, weights).rows

    def rest(shape: Any) -> Placement:
        if shape and shape[0] == rows:
            return Owner(0, rows)
        return Shard(0) if shape and shape[0].has(call.n) else Replicate()

    return Shard(0), *map(rest, call.out[1:])


def bagged_back(
    call: Call, grad: Any, ids: Any, offsets: Any, belongs: Any, sizes: Any, maxima: Any, rows: Any,
    by_frequency: bool, mode: int, sparse: bool, weights: Any, padding: int = -1,
) -> Placements | None:  # fmt: skip
    """The gradient of the table."""
    if not says(offsets):
        return None
    if sparse or by_frequency:
        raise Mixed("a sparse gradient is none that has noise on every row", "no-rule")
    same_rows(ids, offsets, weights)
    needed = (grad, sizes, maxima) if mode == MAX else (grad, sizes)
    if any(v.placement != Shard(0) for v in needed):
        raise Mixed("the operands hold their samples on different axes")
    return Partial()


def bag_form(
    owner: torch.Tensor, n: Any, grad: Any, ids: Any, offsets: Any, belongs: Any, sizes: Any,
    maxima: Any, rows: int, by_frequency: bool, mode: int, sparse: bool, weights: Any,
    padding: int = -1,
) -> Segmented | Reduce:  # fmt: skip
    """Each sample's bag, in a table of its own: an id, or the maxima, at a time."""
    if mode == MAX:
        grad = wide(grad).masked_fill((sizes == 0).unsqueeze(-1), 0).unsqueeze(1)
        each = grad.new_zeros(n, rows, grad.shape[-1])
        return Reduce(each.scatter_add(1, maxima.clamp(min=0).unsqueeze(1), grad))
    if mode == MEAN:
        grad = grad / sizes.clamp(min=1).unsqueeze(-1)
    grad = grad.index_select(0, owner)
    if weights is not None:
        grad = grad * weights.unsqueeze(-1)
    grad = grad.masked_fill((ids == padding).unsqueeze(-1), 0)
    return Segmented(Scatter(ids.unsqueeze(1), grad.unsqueeze(1), rows), owner, n)


def weights_back(
    call: Call, grad: Any, table: Any, ids: Any, offsets: Any, belongs: Any, mode: int, padding: int
) -> Placements | None:
    """The gradient of the weights of the ids."""
    if not says(offsets):
        return None
    refuse_samples(table)
    at = same_rows(ids, offsets, None)
    if grad.placement != Shard(0) or belongs.placement != Owner(0, at.rows):
        raise Mixed("the operands hold their samples on different axes")
    return at


MEET: dict[OpOverload, Callable[..., Placements | None]] = {
    aten.index.Tensor: indexed,
    aten._unsafe_index.Tensor: indexed,
    aten.index_select.default: selected,
    aten.gather.default: gathered,
    aten.index_put.default: put,
    aten._unsafe_index_put.default: put,
    aten.index_add.default: index_added,
    aten.scatter_add.default: scattered,
    aten.scatter_reduce.two: scattered,
    aten._embedding_bag.default: bagged,
    aten._embedding_bag_forward_only.default: bagged,
    aten._embedding_bag_backward.default: bagged_back,
    aten._embedding_bag_per_sample_weights_backward.default: weights_back,
}
CARRY = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.permute.default,
    aten.transpose.int, aten.t.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.flip.default, aten.expand.default, aten.select.int, aten.unbind.int,
    aten.slice.Tensor, aten.clone.default, aten.alias.default, aten.detach.default,
    aten._to_copy.default,
)  # fmt: skip
FORMS: dict[OpOverload, Callable[..., Any]] = {
    aten._embedding_bag_backward.default: bag_form,
}


def rows(table: Table) -> dict[OpOverload, dict[str, Any]]:
    """What the rules of a table say of rows, by op."""
    found: dict[OpOverload, dict[str, Any]] = {op: {"rows": place} for op, place in MEET.items()}
    for op, form in FORMS.items():
        found[op]["rows_form"] = form
    return found | {op: {"rows": partial(carried, table[op])} for op in CARRY if op in table}
