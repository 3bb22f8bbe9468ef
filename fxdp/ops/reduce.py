"""Reductions.

Over axes without the samples they leave them where they are. Over the samples' axis only a
sum has a meaning: it turns N samples into their `Partial`.
"""

from typing import Any

import torch

from fxdp.forms.batch import moved
from fxdp.forms.reduce import Reduce
from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, SumRule, Table, refuse_rounding
from fxdp.shapes import show

aten = torch.ops.aten
prims = torch.ops.prims


def axes(x: Any, dims: Any) -> list[int]:
    """The axes that are reduced; none named means all."""
    if isinstance(dims, int):
        return [dims]
    return list(dims) if dims else list(range(x.rank))


def kept(at: Shard, dims: list[int], keepdim: bool) -> Shard:
    """The samples' axis after the axes in `dims` are gone."""
    return Shard(at.dim if keepdim else at.dim - sum(d < at.dim for d in dims), at.inner)


def summed(
    call: Call, x: Any, dims: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Placement:
    """Sum over some axes."""
    refuse_rounding(x, dtype)
    match x.placement:
        case Replicate() | Partial():
            return x.placement
        case Shard() as at if at.dim in axes(x, dims):
            return Partial()
        case Shard() as at:
            return kept(at, axes(x, dims), keepdim)
        case _:
            raise Mixed("the positions of the samples in the batch are added up")


def reduced(call: Call, x: Any, dims: Any = None, *rest: Any, **kwargs: Any) -> Placement:
    """Any other reduction to one result."""
    keepdim = next((v for v in (*rest, kwargs.get("keepdim")) if isinstance(v, bool)), False)
    match x.placement:
        case Replicate():
            return Replicate()
        case Shard() as at if at.dim not in axes(x, dims):
            return kept(at, axes(x, dims), keepdim)
        case Shard():
            raise Mixed(f"it reduces {show(x.shape, call.n)} over the batch axis")
        case _:
            raise Mixed("it reduces a total over the batch", "uses-batch-total")


def reduced_all(call: Call, x: Any, *_: Any, **__: Any) -> Placement:
    """A reduction over every axis."""
    return reduced(call, x)


def normed(call: Call, x: Any, p: Any, dims: Any = None, keepdim: bool = False, *_: Any, **__: Any):
    """A vector norm; the axes come after the order of the norm."""
    return reduced(call, x, dims, keepdim)


def pair(rule: Any) -> Any:
    """The same placement for both results (value and index, variance and mean)."""

    def both(call: Call, *args: Any, **kwargs: Any) -> tuple[Placement, Placement]:
        at = rule(call, *args, **kwargs)
        return at, at

    return both


def indexed(call: Call, x: Any, dim: Any = None, keepdim: bool = False) -> Placement:
    """argmax and argmin: with no axis named, over all elements."""
    return reduced(call, x, None if dim is None else [int(dim)], keepdim)


def varied(call: Call, x: Any, dims: Any = None, **kwargs: Any) -> Placement:
    """Variances: `correction` and `keepdim` are keywords."""
    return reduced(call, x, dims, bool(kwargs.get("keepdim", False)))


def sum_form(x: Any, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Reduce:
    """The sum over samples, with the axes inside a sample summed first."""
    at, dtype = x.placement.dim, kwargs.get("dtype")
    dims = [d for d in axes(x, dims) if d != at]
    if x.one_position and not dims and dtype is None and x.value.is_floating_point():
        out = moved(x.value, at, 0)
    else:
        # The samples' axis is now axes 0 (sample) and 1 (outer and inner); the others follow.
        within = [1] + [2 + d - (d > at) for d in dims]
        out = x.samples_first().sum(within, dtype=dtype)
    for d in sorted([*dims, at]) if keepdim else []:
        out = out.unsqueeze(d + 1)
    return Reduce(out)


RULES: Table = {
    aten.sum.default: SumRule(summed, form=sum_form),
    aten.sum.dim_IntList: SumRule(summed, form=sum_form),
    **{
        op: Rule(reduced)
        for op in (
            aten.amax.default,
            aten.amin.default,
            aten.any.dim,
            aten.any.dims,
            aten.all.dim,
            aten.all.dims,
            aten.logsumexp.default,
            aten.prod.dim_int,
            aten.nansum.default,
        )
    },
    **{
        op: Rule(reduced_all)
        for op in (
            aten.any.default,
            aten.all.default,
            aten.max.default,
            aten.min.default,
            aten.prod.default,
            aten.median.default,
        )
    },
    aten.linalg_vector_norm.default: Rule(normed),
    aten.argmax.default: Rule(indexed),
    aten.argmin.default: Rule(indexed),
    prims.var.default: Rule(lambda call, x, dims, *_, **__: reduced(call, x, dims)),
    aten.var.correction: Rule(varied),
    aten.std.correction: Rule(varied),
    aten.var_mean.correction: Rule(pair(varied)),
    aten.max.dim: Rule(pair(reduced)),
    aten.min.dim: Rule(pair(reduced)),
    aten.median.dim: Rule(pair(reduced)),
    aten.mode.default: Rule(pair(reduced)),
    aten.aminmax.default: Rule(
        pair(lambda call, x, **kw: reduced(call, x, kw.get("dim"), kw.get("keepdim", False)))
    ),
}
