"""Rules of pooling and resampling."""

from typing import Any

import pytest
import torch

from fxdp.ops import pool
from tests.ops.placements import Case, N, T, case, hold

aten = torch.ops.aten
FEW = "replicate shard partial"


def size(count: int, each_: int) -> list[int]:
    return [each_] * count


def arguments(name: str, count: int) -> tuple[Any, ...]:
    """Sample arguments by the name of the op, for images of `count` axes."""
    small, large = size(count, 2), size(count, 4)
    lead = (2, 1)
    image, grown = T(*lead, *small), T(*lead, *large, only=FEW)
    back = T(*lead, *small, only=FEW)
    ids = T(*lead, *small, high=2**count, only=FEW)
    if name.startswith(("upsample", "_upsample")):
        corners = [] if "nearest" in name else [False]
        if "backward" in name:
            return (T(*lead, *large), large, [1, 1, *small], *corners)
        return (image, large, *corners)
    if name.startswith("avg_pool"):
        window = (size(count, 2), size(count, 1), size(count, 0))
        if "backward" in name:
            return (T(*lead, *size(count, 1), only=FEW), back, *window, False, True, None)
        return (T(*lead, *size(count, 3), only=FEW), *window)
    if "adaptive" in name:
        if "max" in name and "backward" in name:
            return (back, grown, ids)
        return (back, grown) if "backward" in name else (T(*lead, *large), small)
    if name.startswith("max_pool"):
        window = (size(count, 2), size(count, 2), size(count, 0), size(count, 1), False)
        return (back, grown, *window, ids) if "backward" in name else (grown, *window)
    assert name.startswith("max_unpool")
    more = (size(count, 2), size(count, 0)) if count == 3 else ()
    return (back, ids, large, *more)


SIZED = ("upsample", "_upsample")
# torch takes no symbolic input_size in these.
UNSIZED = {
    *(
        f"upsample_{kind}_backward"
        for kind in ("nearest1d", "linear1d", "bilinear2d", "bicubic2d", "nearest3d", "trilinear3d")
    ),
    *(
        f"_upsample_{kind}_backward"
        for kind in ("nearest_exact1d", "bicubic2d_aa", "nearest_exact3d")
    ),
}
OPS = [
    (op, count)
    for table in (pool.SINGLE, pool.PAIRS)
    for count, names in table.items()
    for op in names
    if op not in UNSIZED
]


def cases() -> list[Case]:
    found = []
    for name, count in OPS:
        op = getattr(aten, name).default
        args = arguments(name, count)
        sized = name.startswith(SIZED) and "backward" in name
        if sized:
            large, small = size(count, 4), size(count, 2)
            args = (T(2 * N, 1, *large), large, [2 * N, 1, *small], *args[3:])
        found.append(case(op, *args))
    planes, chances = T(2, 2, 5, 5, only="replicate shard"), T(2, 2, 2, only="replicate shard")
    found.append(case(aten.fractional_max_pool2d.default, planes, [2, 2], [3, 3], chances))
    volumes, chances = T(2, 2, 4, 4, 4, only="replicate shard"), T(2, 2, 3, only="replicate shard")
    found.append(case(aten.fractional_max_pool3d.default, volumes, [2] * 3, [2] * 3, chances))
    return found


@pytest.mark.parametrize("one", cases(), ids=str)
def test_claims_are_true(one: Case) -> None:
    hold(one)
