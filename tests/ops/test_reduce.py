"""Rules of reductions, softmax and scans."""

import pytest
import torch

from tests.ops.placements import Case, N, T, case, each, hold

aten = torch.ops.aten
B = torch.bool
FEW = "replicate shard"

DIMS = each([0], [1], [0, 1], [-1])
CASES = [
    case(
        aten.sum.default,
        each(T(2, 3), T(1, 2, high=3), T()),
        dtype=each(None, torch.float32, torch.int64),
    ),
    case(
        aten.sum.dim_IntList,
        T(2, 3, 2),
        each([0], [1], [0, 2], [-1, 0], [], None),
        each(False, True),
    ),
    case(aten.sum.dim_IntList, T(2, 2), 0, dtype=each(torch.int64, torch.float32)),
    case(aten.sum.dim_IntList, each(T(2, 3, dtype=B), T(1, 1, high=3)), each([0], [0, 1])),
    case(aten.sum.dim_IntList, T(), [], samples=False),
    *(
        case(op, T(2, 3), each([0], [1], [-1]), each(False, True))
        for op in (aten.amax.default, aten.amin.default, aten.logsumexp.default)
    ),
    *(
        case(op, T(2, 3, dtype=B), each(0, 1, -1), each(False, True))
        for op in (aten.any.dim, aten.all.dim)
    ),
    *(
        case(op, T(2, 3, dtype=B), each([0], [1], None, [-1]), each(False, True))
        for op in (aten.any.dims, aten.all.dims)
    ),
    case(
        aten.prod.dim_int, T(2, 3), each(0, 1, -1), each(False, True), dtype=each(None, torch.int64)
    ),
    case(aten.nansum.default, T(2, 3), each([0], [1], None), each(False, True)),
    *(
        case(op, each(T(2, 3), T()), samples=False)
        for op in (aten.max.default, aten.min.default, aten.prod.default, aten.median.default)
    ),
    *(case(op, T(2, 3, dtype=B), samples=False) for op in (aten.any.default, aten.all.default)),
    case(
        aten.linalg_vector_norm.default,
        T(2, 3),
        each(2, 1, float("inf"), N),
        each([0], [1], None),
        each(False, True),
    ),
    *(
        case(op, T(2, 3), each(0, 1, -1, None), each(False, True))
        for op in (aten.argmax.default, aten.argmin.default)
    ),
    *(
        case(
            op,
            T(2, 3),
            each([0], [1], None, [-1]),
            correction=each(0, 1, N),
            keepdim=each(False, True),
        )
        for op in (aten.var.correction, aten.std.correction, aten.var_mean.correction)
    ),
    *(
        case(op, T(2, 3), each(0, 1, -1), each(False, True))
        for op in (aten.max.dim, aten.min.dim, aten.median.dim, aten.mode.default)
    ),
    case(aten.aminmax.default, T(2, 3), dim=each(None, 0, 1, -1), keepdim=each(False, True)),
    case(aten._softmax.default, T(2, 3), each(0, 1, -1), False),
    case(aten._softmax.default, T(2), 0, False, samples=False),
    *(
        case(op, each(T(2, 3), T(3)), each(0, -1), False)
        for op in (aten._softmax.default, aten._log_softmax.default)
    ),
    case(aten._safe_softmax.default, T(2, 3), each(0, 1)),
    *(
        case(op, T(2, 3), T(2, 3), each(0, 1, -1), torch.float64)
        for op in (aten._softmax_backward_data.default, aten._log_softmax_backward_data.default)
    ),
    case(aten.cumprod.default, T(2, 3), each(0, 1, -1)),
    case(aten.logcumsumexp.default, T(2, 3), each(0, 1, -1)),
    case(aten.glu.default, T(2, 4), each(0, 1, -1)),
    case(aten.glu_backward.default, T(2, 2), T(2, 4), -1),
    case(aten.glu_backward.default, T(1, 2), T(2, 2), 0),
    case(torch.ops.prims.var.default, T(2, 3), each([0], [1]), each(0, 1, N)),
    case(
        aten._fft_r2c.default, T(2, 4), each([0], [1], [0, 1]), 0, each(False, True), samples=False
    ),
    case(
        aten._fft_c2c.default,
        T(2, 3, dtype=torch.complex128),
        each([0], [1], [0, 1]),
        each(0, 2),
        each(False, True),
        samples=False,
    ),
    case(
        aten._fft_c2r.default,
        T(2, 3, dtype=torch.complex128),
        each([0], [1]),
        0,
        each(4, 2),
        samples=False,
    ),
    case(aten.sort.default, T(2, 3)),
    case(aten.sort.default, T(2, 3), each(0, 1), True),
    case(aten.sort.stable, T(2, 3), stable=True),
    case(aten.sort.stable, T(2, 3), stable=True, dim=each(0, 1)),
    case(aten.argsort.default, T(2, 3), each(0, 1, -1)),
    case(aten.argsort.default, T(2, 3)),
    case(aten.topk.default, T(2, 3), 2),
    case(aten.topk.default, T(9, 2), each(1, 2, N), each(0, 1)),
    case(aten.kthvalue.default, T(9, 2), each(1, N), each(0, 1, -1), each(False, True)),
    case(aten.kthvalue.default, T(2, 3), 1),
    *(case(op, T(2, 3), each(0, 1, -1)) for op in (aten.cummax.default, aten.cummin.default)),
]


@pytest.mark.parametrize("one", CASES, ids=str)
def test_claims_are_true(one: Case) -> None:
    hold(one)
