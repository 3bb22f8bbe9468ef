"""Rules of matrix products, convolutions and attention."""

import pytest
import torch

from tests.ops.placements import Case, N, T, case, each, hold

aten = torch.ops.aten
FEW = "replicate shard partial"
SHARD = "replicate shard"
SOLE = "replicate"
ATTEND = aten._scaled_dot_product_flash_attention_for_cpu
GRAD = [([1], [0], [1]), ([2], [1], [1]), ([1], [0], [2])]


def conv_back(mask: list[bool], groups: int, transposed: bool = False) -> list[Case]:
    """One-dimensional, with T folded into the batch axis by the outer and inner factors."""
    return [
        case(
            aten.convolution_backward.default,
            T(2, 2, length, only=FEW),
            T(2, 2, 3, only=FEW),
            T(2, 2 // groups, 2, only=SOLE),
            None,
            *settings,
            transposed,
            [0],
            groups,
            mask,
        )
        for settings, length in zip(GRAD, (4, 4, 5) if transposed else (2, 2, 1), strict=True)
        if not (transposed and settings[0] == [2])
    ]


CASES = [
    case(aten.mm.default, T(2, 3), T(3, 2)),
    case(aten.mm.default, T(2, 6), T(6, 3)),
    case(aten.bmm.default, T(2, 3, 2), T(2, 2, 3)),
    case(aten.bmm.default, T(3, 1, 4), T(3, 4, 1)),
    *(
        case(
            aten.convolution.default,
            T(2, 2, 4),
            T(4, 2 // groups, 2, only=SOLE),
            each(None, T(4, only=SOLE)),
            *settings,
            False,
            [0],
            groups,
        )
        for settings in GRAD
        for groups in (1, 2)
    ),
    case(
        aten.convolution.default,
        T(1, 1, 3, only=FEW),
        T(1, 1, 2, only=FEW),
        each(None, T(1, only=FEW)),
        [1],
        [0],
        [1],
        False,
        [0],
        1,
    ),
    case(aten.convolution.default, T(2, 2, 4), T(2, 3, 2), None, [2], [1], [1], True, [1], 1),
    case(
        aten.convolution.default,
        T(2, 1, 3, 3),
        T(2, 1, 2, 2, only=SHARD),
        None,
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
    ),
    case(
        aten.convolution.default,
        T(2, 2, 4),
        T(2, 2, 2, only=SHARD),
        None,
        each([1], [N]),
        [0],
        [1],
        False,
        [0],
        1,
    ),
    *(
        case(aten.convolution.default, x, w, None, [1], [0], [1], turned, [0], each(N, 2 * N, 1))
        for x, w, turned in (
            (T(1, 2 * N, 4), T(4 * N, 2, 2), False),
            (T(1, 4 * N, 4), T(2 * N, 2, 2), False),
            (T(2, 4 * N, 4), T(4 * N, 3, 2), True),
        )
    ),
    *(
        case(
            aten.convolution_backward.default,
            T(1, 4 * N, 3),
            T(1, 2 * N, 4),
            T(4 * N, 2, 2),
            [0],
            [1],
            [0],
            [1],
            False,
            [0],
            each(N, 2),
            mask,
        )  # fmt: skip
        for mask in ([True, False, False], [False, True, False])
    ),
    *conv_back([False, True, False], 1),
    *conv_back([True, False, False], 2),
    *conv_back([False, True, False], 2),
    *conv_back([False, True, False], 1, transposed=True),
    case(ATTEND.default, *[T(2, 1, 1, 2, only=SHARD)] * 3),
    case(
        ATTEND.default,
        *[T(N, 1, 3, 4)] * 3,
        attn_mask=each(T(3, 3, only=SHARD), T(1, 1, 3, 3, only=SHARD)),
    ),
    case(ATTEND.default, *[each(T(2, 2 * N, 3, 4), T(2, 2, 3, 4, only=SOLE))] * 3, 0.0, True),
    case(
        ATTEND.default,
        each(T(1, 4 * N, 3, 4), T(N, 4, 3, 4)),
        *[each(T(1, 2 * N, 3, 4), T(N, 2, 3, 4))] * 2,
    ),
]


@pytest.mark.parametrize("one", CASES, ids=str)
def test_claims_are_true(one: Case) -> None:
    hold(one)


def test_attention_backward() -> None:
    """On what the forward pass leaves, with the samples on the batch or on the head axis."""
    part, stats = T(2 * N, 2, 3, 4), T(2 * N, 2, 3)
    back = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    hold(case(back, part, part, part, part, part, stats, 0.0, False))
