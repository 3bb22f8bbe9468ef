"""Rules of layer norm and group norm, kept whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxdp
from fxdp.kernels import opaque as whole
from fxdp.ops import norm
from tests.ops.placements import Case, T, case, each, hold

aten = torch.ops.aten
FEW = "replicate shard partial"
SHARED = "replicate shard"
X, STATS = T(2, 2, only=FEW), T(2, 1, only=FEW)
PIXELS, GROUPED = T(1, 4, 2, only=FEW), T(1, 2, only=FEW)

CASES = [
    case(
        aten.native_layer_norm.default,
        X, [2], each(None, T(2, only=SHARED)), T(2, only=SHARED), 1e-5,
    ),
    case(
        aten.native_layer_norm.default,
        T(2, 3, 2, only=FEW), [3, 2], T(3, 2, only=SHARED), None, 1e-5,
    ),
    case(
        whole.layer_norm_backward.default,
        X, X, [2], STATS, STATS, each(None, T(2, only=SHARED)), None,
    ),
    case(
        whole.group_norm.default,
        PIXELS, each(None, T(4, only=SHARED)), T(4, only=SHARED), 2, 1e-5,
    ),
    case(
        whole.group_norm_backward.default,
        PIXELS, PIXELS, GROUPED, GROUPED, each(None, T(4, only=SHARED)), 2,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    hold(case)


def test_every_op_is_tried() -> None:
    assert {c.op for c in CASES} == norm.RULES.keys()


class OfWeights(nn.Module):
    """Norms of things that all samples share: their gradients are linear in a sum over samples."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.picture = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(1, 6, 3))
        self.layer, self.group = nn.LayerNorm(6), nn.GroupNorm(2, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.layer(self.row).T + x @ self.group(self.picture)[0]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_norms_of_samples_and_of_weights(affine: bool, dtype: torch.dtype) -> None:
    """Also in bfloat16, where they are taken apart; against one run for each sample."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 6, 2), nn.GroupNorm(3, 6, affine=affine), nn.Flatten(),
        nn.Linear(24, 6), nn.LayerNorm(6, elementwise_affine=affine), OfWeights(),
    ).to(dtype)  # fmt: skip
    x, y = torch.randn(6, 2, 5, dtype=dtype), torch.randint(3, (6,))
    if dtype == torch.float64:
        assert fxdp.verify(model, x, y, loss_fn=F.cross_entropy, backend="eager")
    else:
        assert fxdp.prove(model[:5], x, torch.randint(6, (6,)), loss_fn=F.cross_entropy)


def test_a_norm_over_the_batch_is_refused() -> None:
    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.group_norm(self.fc(x).T.unsqueeze(0), 3)[0].T

    with pytest.raises(fxdp.BatchMixingError, match="normalizes over the batch axis"):
        fxdp.prove(Over(), torch.randn(5, 4), torch.randint(6, (5,)), loss_fn=F.cross_entropy)
