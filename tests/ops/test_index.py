"""Rules of lookups and scatters."""

import pytest
import torch

from tests.ops.placements import Case, N, T, case, each, hold

aten = torch.ops.aten
FEW = "replicate zero shard partial"
IDS = "replicate shard iota"
TABLE = "replicate zero"


def ids(*shape: int, high: int = 3, only: str = IDS) -> T:
    return T(*shape, high=high, only=only)


ANY = T(3, 2, only=FEW)
BELONGS = T(3, high=3, only="iota")  # the bag of each id
CASES = [
    *(
        case(op, T(3, 2), [each(ids(2), ids(1, 2), ids(2, 1))])
        for op in (aten.index.Tensor, aten._unsafe_index.Tensor)
    ),
    case(aten.index.Tensor, T(2, 3), [None, each(ids(2), ids(1), ids(1, 2))]),
    case(aten.index.Tensor, T(1, 3), [ids(1, high=1), ids(1)]),
    case(aten.index.Tensor, T(N, 3), [each(ids(1), ids(1, 1)), each(ids(1), ids(1, 2), ids(2, 1))]),
    case(
        aten.index.Tensor,
        T(3, N, 3),
        [each(None, ids(2)), ids(1, only="iota shard"), each(None, ids(1), ids(2))],
    ),
    case(aten.index.Tensor, T(N, 2, 3, only="shard"), [ids(1, only="iota"), None, ids(1)]),
    case(aten.index.Tensor, T(3, 2, 3, only=FEW), [ids(2), None, each(ids(2), ids(1), ids(1, 2))]),
    case(aten.nonzero.default, T(2, 3, high=2), samples=False),
    case(aten.index_select.default, T(3, 2), each(0, 1), each(ids(2, high=2), ids(1, high=2))),
    case(aten.embedding.default, T(3, 2), each(ids(2), ids(1, 2), ids(2, 1))),
    case(
        aten.embedding_dense_backward.default,
        T(2, 3, 2),
        T(2, 3, high=4, only=IDS),
        4,
        each(-1, 1),
        each(False, True),
    ),
    case(aten.embedding_dense_backward.default, T(1, 2), ids(1), 3, each(-1, N), False),
    case(aten.gather.default, T(3, 2), each(0, 1), ids(2, 2, high=2)),
    case(aten.gather.default, T(1, 3), each(0, 1), each(ids(1, 2, high=1), ids(1, 1, high=1))),
    case(aten.gather.default, T(2 * N, 3), 1, each(T(N, 2, high=3), T(2 * N, 1, high=3))),
    case(aten.gather.default, T(3, 2, 2, only=FEW), 1, ids(3, 1, 2, high=2)),
    case(
        aten.scatter.src,
        T(2, 3, only=FEW),
        each(0, 1),
        T(2, 1, high=2, only=IDS),
        T(2, 1, only=FEW),
    ),
    case(aten.scatter.src, T(2 * N, 3), 1, T(N, 1, high=3), each(T(N, 1), T(2 * N, 1))),
    case(aten.scatter.value, T(2, 3), each(0, 1), T(2, 1, high=2, only=IDS), each(0, 1.5, N)),
    case(
        aten.scatter_add.default,
        T(2, 3, only=FEW),
        each(0, 1),
        T(2, 3, high=2, only=IDS),
        T(2, 3, only=FEW),
    ),
    case(
        aten.scatter_add.default,
        T(5, 2, only=TABLE),
        0,
        each(T(3 * N, 2, high=5), T(2 * N, 1, high=5)),
        T(3 * N, 2),
    ),
    case(
        aten.scatter_add.default,
        T(2, 5, only=TABLE),
        1,
        T(2, 2 * N, high=5),
        each(T(2, 2 * N), T(2, 4 * N)),
    ),
    *(
        case(op, ANY, [each(ids(2), ids(1))], T(2, 2, only=FEW), each(False, True))
        for op in (aten.index_put.default, aten._unsafe_index_put.default)
    ),
    case(
        aten.index_put.default,
        ANY,
        [ids(2, 2)],
        each(T(2, 2, 2, only=FEW), T(2, only=FEW), T(only=FEW)),
        each(False, True),
    ),
    case(
        aten.index_put.default,
        T(2, 3, only=FEW),
        [None, ids(2)],
        each(T(2, 2, only=FEW), T(2, only=FEW)),
        each(False, True),
    ),
    case(
        aten.index_put.default,
        T(N, 3),
        [ids(1), ids(1)],
        each(T(1, only=FEW), T(only=FEW)),
        each(False, True),
    ),
    case(
        aten.index_put.default, T(3, 2, only=TABLE), [ids(1), ids(1, high=2)], T(1, only=FEW), True
    ),
    case(
        aten.index_put.default,
        T(3, 2, only=TABLE),
        [ids(1, 2), ids(2, 1, high=2)],
        each(T(2, 2, only=FEW), T(1, 2, only=FEW)),
        True,
    ),
    case(
        aten.index_put.default,
        T(3, 2, 3, only=TABLE),
        [ids(2), None, ids(2)],
        each(T(2, 2, only=FEW), T(2, only=FEW)),
        True,
    ),
    case(
        aten.index_put.default,
        T(2, 3, 3, only=TABLE),
        [None, ids(2), ids(1)],
        each(T(2, 2, only=FEW), T(2, 1, only=FEW)),
        True,
    ),
    case(
        aten.index_add.default,
        T(3, 2),
        each(0, 1),
        each(ids(2, high=2), ids(3, high=2)),
        T(3, 2, only=FEW),
        alpha=each(1, 3, N),
    ),
    case(
        aten.index_add.default,
        T(3, 2, 2, only=TABLE),
        each(0, 1),
        ids(2, high=2),
        each(T(2, 2, 2), T(3, 2, 2)),
        alpha=each(1, 3),
    ),
    *(
        case(
            op,
            T(4, 2),
            each(T(3, high=4), T(1, high=4)),
            ids(1),
            each(False, True),
            each(0, 1, 2),
            False,
            None,
            False,
            each(-1, 1),
        )
        for op in (aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
    ),
    case(
        aten._embedding_bag.default,
        T(4, 2, only="replicate"),
        T(3, high=4),
        ids(1),
        False,
        0,
        False,
        T(3),
    ),
    case(
        aten._embedding_bag_backward.default,
        T(1, 2, only="shard"),
        T(3, high=4, only="shard"),
        ids(1, only="iota"),
        BELONGS,
        T(N, values=(3,), high=4),
        T(1, 2, high=4, only="shard"),
        4,
        False,
        each(0, 1),
        False,
        None,
        each(-1, 1),
    ),
    case(
        aten._embedding_bag_per_sample_weights_backward.default,
        T(1, 2, only="shard"),
        T(4, 2, only="replicate"),
        T(3, high=4, only="shard"),
        ids(1, only="iota"),
        BELONGS,
        0,
        -1,
    ),
    case(aten.embedding_renorm.default, T(3, 2), T(2, high=3), 1.0, 2.0, samples=False),
    case(
        aten.searchsorted.Tensor,
        each(T(4, values=(0.0,)), T(2, 4, values=(0.0,))),
        each(T(2, 3), T(2, 1)),
        right=each(False, True),
    ),
    case(aten.searchsorted.Tensor, T(2, 3, values=(1.0,)), T(2, 2), sorter=T(2, 3, high=3)),
    case(
        aten.scatter_reduce.two,
        T(2, 3),
        each(0, 1),
        T(2, 3, high=2),
        T(2, 3),
        each("amax", "prod"),
    ),
    case(aten.bucketize.Tensor, T(2, 3), T(1, only=FEW), right=each(False, True)),
]


@pytest.mark.parametrize("one", CASES, ids=str)
def test_claims_are_true(one: Case) -> None:
    hold(one)
