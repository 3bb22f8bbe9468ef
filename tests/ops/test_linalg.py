"""Rules of ops on stacks of matrices and on grids."""

import pytest
import torch

from fxdp.kernels.matrix_exp import matrix_exp, matrix_exp_backward
from fxdp.ops import linalg
from tests.ops.placements import Case, T, case, each, hold

aten = torch.ops.aten
FEW = "replicate shard partial"
MATRICES = T(2, 3, 3, only=FEW)


CASES = [
    case(
        aten._linalg_check_errors.default,
        T(2, values=(0,), dtype=torch.int32), "inv", is_matrix=False,
    ),
    case(aten._linalg_det.default, MATRICES),
    case(aten._linalg_slogdet.default, MATRICES),
    case(aten._linalg_svd.default, MATRICES),
    case(aten._linalg_eigh.default, MATRICES),
    case(aten.linalg_eig.default, MATRICES),
    case(aten.linalg_cholesky_ex.default, MATRICES),
    case(aten.linalg_inv_ex.default, MATRICES),
    case(aten.linalg_lu_factor_ex.default, MATRICES),
    case(aten.linalg_matrix_exp.default, MATRICES),
    case(matrix_exp.default, MATRICES),
    case(
        matrix_exp_backward.default,
        each(T(2, 3, 3, only=FEW), T(3, 3, only=FEW)), each(MATRICES, T(3, 3, only=FEW)),
    ),
    case(aten.linalg_qr.default, T(2, 3, 2)),
    case(aten.cholesky_inverse.default, MATRICES),
    case(
        aten._linalg_solve_ex.default,
        each(T(2, 3, 3, only=FEW), T(3, 3, only=FEW), T(1, 3, 3, only=FEW)),
        each(T(2, 3, 2, only=FEW), T(2, 3, only=FEW), T(3, only=FEW)),
        left=each(True),
    ),
    case(
        aten._linalg_solve_ex.default,
        T(2, 3, 3, only=FEW), each(T(2, 2, 3, only=FEW), T(2, 3, only=FEW)), left=False,
    ),
    case(
        aten._linalg_solve_ex.default,
        each(T(3, 3, only=FEW), T(2, 3, 3, only=FEW)),
        each(T(3, 3, only=FEW), T(2, 3, 3, only=FEW), T(2, 3, only=FEW)), left=each(True, False),
    ),
    case(
        aten.linalg_lu_solve.default,
        T(3, 3, only=FEW), T(3, values=(1, 2, 3), dtype=torch.int32, only="replicate shard"),
        each(T(3, 3, only=FEW), T(2, 3, 3, only=FEW)), left=each(True, False),
        adjoint=each(True, False),
    ),
    case(
        aten.linalg_lu_solve.default,
        T(2, 3, 3, only=FEW), T(2, 3, values=(1, 2, 3), dtype=torch.int32, only="replicate shard"),
        T(2, 3, 2, only=FEW),
        adjoint=True,
    ),
    case(
        aten.linalg_solve_triangular.default,
        each(T(2, 3, 3, only=FEW), T(3, 3, only=FEW)), each(T(2, 3, 2, only=FEW), T(3, 2)),
        upper=True,
        samples=False,  # torch takes no symbolic sizes there
    ),
    case(aten.cholesky_solve.default, T(2, 3, 2, only=FEW), T(2, 3, 3, only=FEW), samples=False),
    case(
        aten.grid_sampler_2d.default,
        T(2, 2, 3, 3, only=FEW), T(2, 2, 2, 2, only=FEW), 1, 0, False,
    ),
    case(
        aten.grid_sampler_3d.default,
        T(2, 2, 3, 3, 3, only=FEW), T(2, 2, 2, 2, 3, only=FEW), 0, 2, True,
    ),
    case(
        aten.grid_sampler_2d_backward.default,
        T(2, 2, 2, 2, only=FEW), T(2, 2, 3, 3, only=FEW), T(2, 2, 2, 2, only=FEW),
        0, 0, False, each([True, True]),
    ),
    case(
        aten.grid_sampler_3d_backward.default,
        T(2, 2, 2, 2, 2, only=FEW), T(2, 2, 3, 3, 3, only=FEW), T(2, 2, 2, 2, 3, only=FEW),
        0, 0, False, each([True, True]),
    ),
]  # fmt: skip


@pytest.mark.parametrize("one", CASES, ids=str)
def test_claims_are_true(one: Case) -> None:
    hold(one)


def test_every_op_on_stacks_is_tried() -> None:
    assert {c.op for c in CASES} >= set(linalg.STACKED)
