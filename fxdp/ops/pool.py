"""Pooling, resampling and other ops over the last axes of an image-like tensor."""

from collections.abc import Callable
from typing import Any

import torch

from fxdp.forms.each import folded
from fxdp.placement import Mixed, Partial, Placement, Replicate, Shard
from fxdp.rules import Call, Rule, Table, Value, is_shared
from fxdp.torch_internals import OpOverload

aten = torch.ops.aten


def spatial(count: int) -> Callable[..., Placement]:
    """One result; the last `count` axes of every tensor are pixels, the first are not.

    All of these are linear in their first operand, which the others only pick places of.
    """

    def place(call: Call, *operands: Any, **keywords: Any) -> Placement:
        values = [x for x in (*operands, *keywords.values()) if isinstance(x, Value)]
        if isinstance(values[0].placement, Partial) and is_shared(*values[1:]):
            return values[0].placement
        places = {x.placement for x in values} - {Replicate(), Replicate(zero=True)}
        if not places:
            return Replicate()
        at = places.pop()
        if places or not all(x.placement == at for x in values) or isinstance(at, Partial):
            raise Mixed("the operands hold their samples on different axes")
        if not isinstance(at, Shard) or any(at.dim >= x.rank - count for x in values):
            raise Mixed("it pools along the batch axis")
        return at

    return place


def spatial_pair(count: int) -> Callable[..., tuple[Placement, Placement]]:
    """The same, with the positions of the maxima as a second result."""
    one = spatial(count)

    def place(call: Call, *operands: Any, **keywords: Any) -> tuple[Placement, Placement]:
        if isinstance(operands[0].placement, Partial):
            raise Mixed("a total over the batch is used to compute something else")
        at = one(call, *operands, **keywords)
        return at, at

    return place


def fractional(
    call: Call, x: Any, kernel: Any, sizes: Any, chances: Any
) -> tuple[Placement, Placement]:
    """Pooling in random windows, drawn for every plane or volume: chances are [N, C, axes]."""
    if is_shared(x, chances):
        return Replicate(), Replicate()
    at = x.placement
    same = (
        chances.placement == at and chances.shape[:2] == x.shape[:2] and x.rank == 2 + len(kernel)
    )
    if not same or not isinstance(at, Shard) or at.dim > 1:
        raise Mixed("the windows of a sample are not drawn for it alone")
    return at, at


SINGLE = {
    1: (
        "avg_pool1d",
        "adaptive_avg_pool1d",
        "upsample_nearest1d",
        "upsample_nearest1d_backward",
        "_upsample_nearest_exact1d",
        "_upsample_nearest_exact1d_backward",
        "upsample_linear1d",
        "upsample_linear1d_backward",
    ),
    2: (
        "upsample_nearest2d",
        "upsample_nearest2d_backward",
        "_upsample_nearest_exact2d",
        "_upsample_nearest_exact2d_backward",
        "upsample_bilinear2d",
        "upsample_bilinear2d_backward",
        "upsample_bicubic2d",
        "upsample_bicubic2d_backward",
        "_upsample_bilinear2d_aa",
        "_upsample_bilinear2d_aa_backward",
        "_upsample_bicubic2d_aa",
        "_upsample_bicubic2d_aa_backward",
        "avg_pool2d",
        "avg_pool2d_backward",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool2d_backward",
        "adaptive_max_pool2d_backward",
        "max_pool2d_with_indices_backward",
        "max_unpool2d",
    ),
    3: (
        "upsample_nearest3d",
        "upsample_nearest3d_backward",
        "_upsample_nearest_exact3d",
        "_upsample_nearest_exact3d_backward",
        "upsample_trilinear3d",
        "upsample_trilinear3d_backward",
        "avg_pool3d",
        "avg_pool3d_backward",
        "_adaptive_avg_pool3d",
        "_adaptive_avg_pool3d_backward",
        "adaptive_max_pool3d_backward",
        "max_pool3d_with_indices_backward",
        "max_unpool3d",
    ),
}

PAIRS = {
    2: ("max_pool2d_with_indices", "adaptive_max_pool2d"),
    3: ("max_pool3d_with_indices", "adaptive_max_pool3d"),
}

RULES: Table = (
    {
        getattr(aten, name).default: Rule(spatial(count))
        for count, names in SINGLE.items()
        for name in names
    }
    | {
        getattr(aten, name).default: Rule(spatial_pair(count))
        for count, names in PAIRS.items()
        for name in names
    }
    | dict.fromkeys(
        (aten.fractional_max_pool2d.default, aten.fractional_max_pool3d.default), Rule(fractional)
    )
)

# Each of the samples' values is a batch of images: all of them are one larger batch.
EACH: dict[OpOverload, Callable[..., Any]] = {
    op: folded(op, count)
    for count, names in SINGLE.items()
    for op in (getattr(aten, name).default for name in names)
    if not any("input_size" in a.name for a in op._schema.arguments)
}
