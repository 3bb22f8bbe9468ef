"""Rules of ops that move elements about."""

import pytest
import torch

from tests.ops.placements import Case, N, T, case, each, hold

aten = torch.ops.aten
NEAR = "replicate shard partial"

CASES = [
    case(
        aten.view.default,
        T(2, 3, 2),
        each(
            [2, 6],
            [2 * N, 6],
            [6 * N, 2],
            [2, 6 * N],
            [3, 2 * N, 2],
            [6, 2 * N],
            [N, 2, 6],
            [2, N, 6],
            [2, 3, N, 2],
            [12 * N],
            [N, 12],
            [6, N, 2],
            [3 * N, 4],
            [4 * N, 3],
            [2, 3, 2 * N, 1],
        ),
    ),
    case(
        aten.view.default,
        T(2 * N, 3),
        each(
            [N, 6], [N, 2, 3], [2, N, 3], [6 * N], [3 * N, 2], [3, N, 2], [N, 3, 2], [2 * N, 1, 3]
        ),
    ),
    case(
        aten.view.default,
        T(3, 6 * N),
        each([3, N, 6], [3, 6, N], [3, 2, N, 3], [18 * N], [N, 3, 6]),
    ),
    case(aten.view.default, T(1, high=3), each([N, 1], [1, N], [1, 1, N, 1], [N])),
    case(aten.reshape.default, T(3, 2), each([6], [6 * N], [2, 3 * N], [2, 3])),
    case(aten._unsafe_view.default, T(3, 2), each([6], [6 * N], [2, 3 * N], [2, 3])),
    case(aten._reshape_alias.default, T(3, 2), each([6], [6 * N]), [1]),
    case(aten.permute.default, T(2, 3, 1), each([0, 2, 1], [2, 0, 1], [2, 1, 0], [-1, 0, 1])),
    case(aten.permute.default, T(1, 1, high=3), [1, 0]),
    case(aten.transpose.int, T(2, 3, 1), each(0, 1, -1), each(1, 2)),
    case(aten.t.default, each(T(2, 3), T(2), T(1, high=3))),
    case(aten.unsqueeze.default, each(T(2, 3), T(1, high=3)), each(0, 1, -1)),
    case(aten.squeeze.default, each(T(2, 1, 3), T(1, 1), T(1, 1, high=3))),
    case(aten.squeeze.dim, each(T(2, 1, 3), T(1, 1, high=3)), each(0, 1, -1)),
    case(aten.squeeze.dims, T(2, 1, 1), each([0, 1], [1, 2], [-1])),
    case(aten.flip.default, each(T(2, 3), T(1, 2, high=3)), each([0], [1], [0, 1], [-1])),
    case(aten.roll.default, T(2, 3), each([1], [N]), each([0], [1], [])),
    case(aten.roll.default, T(2, 3), [1, 1], [0, 1], samples=False),
    case(
        aten.expand.default,
        each(T(1, 3), T(3)),
        each(
            [1, 3],
            [2, 3],
            [N, 3],
            [2, N, 3],
            [2 * N, 3],
            [N, 2, 3],
            [1, 3 * N],
            [N, 3 * N],
            [2, 3 * N],
        ),
    ),
    case(aten.expand.default, T(), each([], [3], [N], [N, 3], [3, 2 * N]), samples=False),
    case(
        aten.expand.default,
        each(T(1, high=3), T(1, 1, high=3)),
        each([1, N], [N, 1], [3, N], [N, 3], [N, N], [N]),
    ),
    case(aten.expand.default, T(N, 1), each([N, 3], [N, N], [2, N, 1])),
    case(
        aten.repeat.default,
        T(2, 3),
        each([1, 1], [2, 1], [1, 2], [N, 1], [1, N], [2, 2, 1], [N, 1, 1], [2 * N, 1]),
    ),
    case(aten.repeat.default, T(3), each([N], [2 * N], [N, 2], [2, N], [2])),
    case(aten.repeat.default, T(), each([3], [N], [2, N]), samples=False),
    case(aten.repeat.default, T(1, high=3), each([1], [2], [2, 1])),
    case(
        aten.slice.Tensor,
        T(4, 3),
        each(0, 1),
        each(None, 0, 1, -1),
        each(None, 2, 9999),
        each(1, 2),
    ),
    case(
        aten.slice.Tensor,
        T(4 * N, 3),
        0,
        each(None, 0, 1, N, -N, 2 * N, -1),
        each(None, 2, 9999, N, 2 * N, 3 * N),
        each(1, 2),
    ),
    case(aten.slice.Tensor, T(2, 40), 1, each(0, 1, N, -N), each(None, 2, N, N + 3), 1),
    case(aten.slice.Tensor, T(1, 9, high=3), each(0, 1), each(0, 1), each(N, 2), 1),
    case(aten.select.int, T(9, 2), each(0, 1), each(0, 1, -1, N - 1)),
    case(aten.split.Tensor, T(2, 4), each(2, 3), each(0, 1)),
    case(aten.split.Tensor, T(4 * N, 2), each(N, 2 * N, 3 * N, 2), 0),
    case(
        aten.split_with_sizes.default,
        T(2, 4),
        each([1, 3], [N, N], [N, 3 * N], [2 * N, 2 * N], [1, 1]),
        each(0, 1),
    ),
    case(aten.unbind.int, T(2, 3), each(0, 1)),
    case(aten.cat.default, [T(1, 2), T(1, 2)], each(0, 1)),
    case(aten.cat.default, [T(2, 2, only=NEAR), T(2, 2), T(2, 2, only=NEAR)], 0),
    case(aten.cat.default, [T(2 * N, 2), T(N, 2)], each(0, 1)),
    case(aten.cat.default, [T(0), T(2, 2)], each(0, 1)),
    case(aten.cat.default, [T(1, high=3), T(1, high=3)], 0),
    case(aten.stack.default, [T(2, 3), T(2, 3)], each(0, 1, 2, -1)),
    case(aten.stack.default, [T(1, high=3), T(1, high=3)], each(0, 1)),
    case(aten.stack.default, [T(), T()], 0, samples=False),
    # On fake tensors this one, which is decomposed before, asks for the batch size.
    case(
        aten.constant_pad_nd.default,
        T(2, 3),
        each([1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [-1, 0], [N, 0]),
        each(0, 1.5, N),
        samples=False,
    ),
    case(aten.cumsum.default, T(2, 3), each(0, 1), dtype=each(None, torch.int64, torch.float32)),
    case(aten.cumsum.default, T(1, 2, high=3), each(0, 1)),
    case(aten.tril.default, T(2, 3, 3), each(0, 1, N)),
    case(aten.triu.default, T(3, 3), each(0, N), samples=False),
    case(
        aten.select_backward.default,
        T(2, 3),
        each([2, 3, 9], [2 * N, 3, 9], [2, 3 * N, 9]),
        2,
        each(0, N - 1),
    ),
    case(aten.select_backward.default, T(2, 3), each([9, 2, 3], [3, 2 * N, 3], [N, 2, 3]), 0, 1),
    case(
        aten.slice_backward.default,
        T(2, 3),
        each([2, 9], [2 * N, 9]),
        1,
        each(0, 2, N),
        each(3, 5, N + 3),
        1,
    ),
    case(
        aten.slice_backward.default,
        T(2, 3),
        each([4 * N, 3], [2 * N, 3]),
        0,
        each(0, N, 2 * N, -2 * N),
        each(4 * N, 2 * N, 9999),
        1,
    ),
    case(aten.slice_scatter.default, T(2, 4), T(2, 3), each(1), each(0, 1), each(3, 4), 1),
    case(aten.slice_scatter.default, T(9, 2), T(3, 2), 0, each(0, N), each(3, N + 3), 1),
    case(aten.slice_scatter.default, T(2, 2), T(1, 2), 0, each(0, N), each(N, 2 * N, 1), 1),
    case(aten.slice_scatter.default, T(2, 2), T(2, 2), 0, 0, each(2, 9999), 1),
    case(aten.select_scatter.default, T(2, 9), T(2), 1, each(0, N - 1)),
    case(aten.select_scatter.default, T(2, 3), T(3), 0, 1),
    case(aten.diagonal.default, T(3, 2, 3), each(0, 1), each(0, -1), each(1, 2)),
    case(
        aten.diagonal_scatter.default,
        T(3, 2, 3, only=NEAR),
        each(T(2, 3, only=NEAR), T(3, 3, only=NEAR)),
        0,
        each(0, 1),
        2,
    ),
    case(aten.copy.default, T(2, 3), each(T(2, 3), T(3), T(2, 1))),
    case(aten.copy.default, T(2, 3, dtype=torch.float32, only=NEAR), T(1, high=3)),
    case(aten.copy.default, T(2, 3, high=3, only=NEAR), each(T(2, 3), T())),
    case(aten.unfold.default, T(3, 4), each(0, 1, -1), 2, each(1, 2)),
    case(aten.unfold_backward.default, T(2, 3, 2), each([2, 4], [2 * N, 4]), 1, 2, 1),
    case(aten.unfold_backward.default, T(3, 2, 2), each([4, 2], [4, 2 * N]), 0, 2, 1),
    case(
        aten.as_strided.default,
        T(2, 3),
        each([2, 2], [2, N], [N, 2]),
        [3, 1],
        each(0, 1),
        samples=False,
    ),
    case(aten.reflection_pad1d.default, each(T(2, 1, 3), T(2, 3)), [1, 1]),
    case(aten.replication_pad1d.default, each(T(2, 1, 3), T(2, 3)), [1, 2]),
    case(aten.reflection_pad1d_backward.default, T(2, 1, 5), T(2, 1, 3), [1, 1]),
    case(aten.replication_pad1d_backward.default, T(2, 1, 5), T(2, 1, 3), [1, 1]),
    *(
        case(op, T(2, 1, 3, 2), [1, 1, 1, 0])
        for op in (aten.reflection_pad2d.default, aten.replication_pad2d.default)
    ),
    *(
        case(op, T(2, 1, 4, 4, only=NEAR), T(2, 1, 3, 2, only=NEAR), [1, 1, 1, 0])
        for op in (aten.reflection_pad2d_backward.default, aten.replication_pad2d_backward.default)
    ),
    *(
        case(op, T(2, 1, 2, 2, 2), [1, 0, 0, 1, 1, 1])
        for op in (aten.reflection_pad3d.default, aten.replication_pad3d.default)
    ),
    *(
        case(op, T(2, 1, 4, 3, 3, only=NEAR), T(2, 1, 2, 2, 2, only=NEAR), [1, 0, 0, 1, 1, 1])
        for op in (aten.reflection_pad3d_backward.default, aten.replication_pad3d_backward.default)
    ),
    # torch makes the batch size a number in these two, which are decomposed before
    case(
        aten.im2col.default,
        each(T(2, 1, 3, 3), T(2, 3, 3)),
        [2, 2],
        [1, 1],
        [0, 0],
        [1, 1],
        samples=False,
    ),
    case(
        aten.col2im.default,
        each(T(2, 4, 4), T(4, 4)),
        [3, 3],
        [2, 2],
        [1, 1],
        [0, 0],
        [1, 1],
        samples=False,
    ),
    case(aten.pixel_shuffle.default, each(T(2, 4, 1, 2), T(4, 1, 2)), 2),
    case(aten.pixel_unshuffle.default, each(T(2, 1, 2, 2), T(2, 1, 4, 2)), 2),
]


@pytest.mark.parametrize("one", CASES, ids=str)
def test_claims_are_true(one: Case) -> None:
    hold(one)
