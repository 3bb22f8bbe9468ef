"""Rules of distances between rows."""

import pytest
import torch

from tests.ops.placements import Case, T, case, each, hold

aten = torch.ops.aten
FEW = "replicate zero shard partial"


def few(*shape: int) -> T:
    return T(*shape, only=FEW)


CASES = [
    case(aten._cdist_forward.default, each(T(2, 3, 2), T(3, 2)), T(2, 2, 2), 2.0, None),
    case(aten._cdist_forward.default, T(1, 2, 2, 2), T(2, 3, 2), 1.0, None),
    case(aten._cdist_forward.default, T(3, 2), each(T(2, 2), T(3, 2)), each(2.0, 1.0), None),
    case(
        aten._cdist_backward.default,
        few(2, 3, 2), each(few(2, 3, 2), few(3, 2), few(1, 3, 2)), few(2, 2, 2), 2.0, few(2, 3, 2),
    ),
    case(
        aten._cdist_backward.default,
        few(3, 2), few(3, 2), few(2, 2), each(2.0, 1.0), few(3, 2),
    ),
    case(aten._cdist_backward.default, few(1, 4), few(1, 2), few(4, 2), 2.0, few(1, 4)),
]  # fmt: skip


@pytest.mark.parametrize("one", CASES, ids=str)
def test_claims_are_true(one: Case) -> None:
    hold(one)
